"""What is wrong with a base's files is said when it is imported: one sentence, the file, and the way out."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from storage.errors import ConfigError
from tasks.models import base
from tasks.models.base import ModelConfig, resolve_base
from tests.support.base_model import WEIGHTS, import_base, json_with, small_model, with_tensors

Change = Callable[[Path], Any]
UP, DOWN = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight"
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound base; each test changes a copy."""
    directory = tmp_path_factory.mktemp("sound") / "model"
    small_model(directory)
    return directory


@pytest.fixture
def model(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "model"))


def config(**values: Any) -> Change:
    return lambda model: json_with(model / "config.json", **values)


def text(name: str, content: str | bytes) -> Change:
    raw = content if isinstance(content, bytes) else content.encode()
    return lambda model: (model / name).write_bytes(raw)


def without(*names: str) -> Change:
    return lambda model: [(model / name).unlink() for name in names]


def tensor(name: str, value: Any) -> Change:
    """Another tensor in the place of one; a function gets the one that is there."""

    def change(model: Path) -> None:
        now = load_file(model / WEIGHTS).get(name)
        with_tensors(model, **{name.replace(".", "__"): value(now) if callable(value) else value})

    return change


def one_value(name: str, value: float) -> Change:
    def put(found: torch.Tensor) -> torch.Tensor:
        found.view(-1)[3] = value
        return found

    return tensor(name, put)


def head(change: Callable[[dict[str, Any]], Any]) -> Change:
    """The head of the weights' file, changed; the bytes behind it stay."""

    def edit(model: Path) -> None:
        raw = (model / WEIGHTS).read_bytes()
        size = struct.unpack("<Q", raw[:8])[0]
        entries = json.loads(raw[8 : 8 + size])
        change(entries)
        head = json.dumps(entries).encode()
        head += b" " * (-len(head) % 8)
        (model / WEIGHTS).write_bytes(struct.pack("<Q", len(head)) + head + raw[8 + size :])

    return edit


def offsets(first: int, last: int) -> Change:
    return head(lambda entries: entries[UP].update(data_offsets=[first, last]))


def cut(keep: float) -> Change:
    def change(model: Path) -> None:
        raw = (model / WEIGHTS).read_bytes()
        (model / WEIGHTS).write_bytes(raw[: int(len(raw) * keep)])

    return change


def index(*names: Any, weights: str = "part.safetensors") -> Change:
    """Sharded weights whose index names `names` in the place of the one that is there."""

    def change(model: Path) -> None:
        (model / WEIGHTS).rename(model / weights)
        tensors = list(load_file(model / weights))
        mapped = {name: names[at % len(names)] for at, name in enumerate(tensors)}
        (model / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": mapped}))
        if not (model.parent / "part.safetensors").exists():
            shutil.copy(model / weights, model.parent / "part.safetensors")

    return change


def all_of(*changes: Change) -> Change:
    return lambda model: [change(model) for change in changes]


def linked(name: str, target: str = "../elsewhere") -> Change:
    def change(model: Path) -> None:
        (model / name).rename(model.parent / "elsewhere")
        (model / name).symlink_to(target)

    return change


def only(name: str) -> Change:
    return lambda model: (model / WEIGHTS).rename(model / name)


WHOLE = "no whole safetensors file"
REFUSED: dict[str, tuple[Change, str]] = {
    "gptq": (config(quantization_config={"quant_method": "gptq", "bits": 4}), r"quantised \(gptq\)"),
    "awq": (config(quantization_config={"quant_method": "awq", "bits": 4}), r"quantised \(awq\)"),
    "bitsandbytes": (config(quantization_config={"load_in_4bit": True}), r"quantised \(load_in_4bit\)"),
    "fp8": (config(quantization_config={"quant_method": "fp8"}), r"quantised \(fp8\)"),
    "compressed": (config(compression_config={"format": "int"}), "quantised"),
    "quantised oddly": (config(quantization_config="yes"), "quantised"),
    "fp8 weights": (tensor(UP, lambda found: found.to(torch.float8_e4m3fn)), "quantised weights"),
    "int8 weights": (tensor(UP, lambda found: found.to(torch.int8)), "whole numbers where weights should be"),
    "adapter beside": (text("adapter_config.json", "{}"), "holds an adapter"),
    "adapter alone": (
        all_of(without("config.json", WEIGHTS), text("adapter_config.json", "{}")),
        "holds an adapter",
    ),
    "pad id": (config(pad_token_id=269), "pad_token_id 269, but the model has 269 words"),
    "negative pad id": (config(pad_token_id=-270), "pad_token_id -270"),
    "nan": (one_value(UP, float("nan")), f"NaN or infinity in {UP}"),
    "infinity": (one_value("model.norm.weight", float("inf")), "NaN or infinity in model.norm.weight"),
    "minus infinity": (one_value(DOWN, float("-inf")), f"NaN or infinity in {DOWN}"),
    "too large": (
        tensor(UP, lambda found: torch.full(found.shape, 1e300, dtype=torch.float64)),
        "NaN or infinity",
    ),
    "zeros": (
        lambda model: save_file(
            {n: torch.zeros_like(t) for n, t in load_file(model / WEIGHTS).items()}, model / WEIGHTS
        ),
        "nothing but zeros",
    ),
    "zero embedding": (tensor("model.embed_tokens.weight", torch.zeros_like), "nothing but zeros"),
    "shape": (tensor(UP, torch.ones(32, 15)), r"another shape .*is \[32, 15\], not \[32, 16\]"),
    "shape by configuration": (config(intermediate_size=48), "another shape"),
    "missing": (tensor(UP, None), "lacks weights of a LlamaForCausalLM: " + UP),
    "missing head": (tensor("lm_head.weight", None), "lacks weights.*lm_head"),
    "more layers": (config(num_hidden_layers=3), "lacks weights.* and 15 more"),
    "cut": (cut(0.9), WHOLE),
    "cut in the head": (cut(0.001), WHOLE),
    "empty": (cut(0.0), WHOLE),
    "head too long": (text(WEIGHTS, struct.pack("<Q", 2**60) + b"{}"), WHOLE),
    "head is no json": (text(WEIGHTS, struct.pack("<Q", 4) + b"!!!!"), WHOLE),
    "offsets behind the end": (offsets(0, 10**9), WHOLE),
    "offsets backwards": (offsets(2048, 0), WHOLE),
    "overlapping": (offsets(0, 2048), WHOLE),
    "unknown type": (head(lambda entries: entries[UP].update(dtype="Q4_K")), WHOLE),
    "git lfs": (
        text(WEIGHTS, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        "git lfs pull",
    ),
    "a web page": (text(WEIGHTS, "<!DOCTYPE html><html>404</html>"), WHOLE),
    "pickle": (only("pytorch_model.bin"), "only pytorch_model.bin: pickled weights can run code"),
    "torch": (only("model.pt"), "only model.pt: pickled"),
    "gguf": (only("model-q4.gguf"), "only model-q4.gguf; .*the model that it was made from"),
    "another name": (only("weights.safetensors"), "only weights.safetensors; convert"),
    "no weights": (without(WEIGHTS), "no model.safetensors; convert"),
    "both": (
        lambda model: (
            index("part.safetensors")(model),
            shutil.copy(model / "part.safetensors", model / WEIGHTS),
        ),
        "holds both",
    ),
    "up": (index("../part.safetensors"), r"names \.\./part.safetensors"),
    "up by a folder": (index("sub/../../part.safetensors"), "only .*beside it are read"),
    "absolute": (index("/etc/hostname.safetensors"), "only .*beside it are read"),
    "in a folder": (index("sub/part.safetensors"), "only .*beside it are read"),
    "for windows": (index("..\\part.safetensors"), "only .*beside it are read"),
    "encoded": (index("%2e%2e%2fpart.safetensors"), "which is not there"),
    "another case": (index("PART.safetensors"), "which is not there"),
    "one of two": (index("part.safetensors", "part-2.safetensors"), "part-2.safetensors, which is not there"),
    "pickled shard": (index("part.bin"), "only .*beside it are read"),
    "numbers as shards": (index(7), "no weight_map"),
    "no map": (all_of(without(WEIGHTS), text(INDEX, '{"weight_map": []}')), "no weight_map"),
    "index is a list": (all_of(without(WEIGHTS), text(INDEX, "[]")), r"holds \[\] where a JSON object"),
    "other weights": (config(transformers_weights="../part.safetensors"), "names other weights"),
    "no tokenizer": (without("tokenizer.json"), "no tokenizer"),
    "tokenizer []": (text("tokenizer.json", "[]"), "where a JSON object should be"),
    "tokenizer null": (text("tokenizer.json", "null"), "holds null where"),
    "tokenizer of nothing": (text("tokenizer.json", '{"version": "1.0"}'), "is no tokenizer"),
    "tokenizer configuration": (text("tokenizer_config.json", '"x"'), "where a JSON object should be"),
    "tokens up": (
        lambda model: json_with(model / "tokenizer_config.json", vocab_file="../vocab.json"),
        r"names a file outside .*vocab_file: \.\./vocab.json",
    ),
    "tokens anywhere": (
        lambda model: json_with(model / "tokenizer_config.json", merges_file="/etc/passwd"),
        "names a file outside",
    ),
    "tokens of a version": (
        lambda model: json_with(
            model / "tokenizer_config.json", fast_tokenizer_files=["../tokenizer.4.0.0.json"]
        ),
        "names a file outside",
    ),
    "no configuration": (without("config.json"), "no config.json"),
    "configuration null": (text("config.json", "null"), "holds null where"),
    "configuration []": (text("config.json", "[]"), r"holds \[\] where"),
    "configuration cut": (text("config.json", '{"model_type": "lla'), "is no JSON"),
    "configuration empty": (text("config.json", ""), "is no JSON"),
    "configuration not utf-8": (text("config.json", b'{"a": "\xff\xfe"}'), "is no JSON"),
    "configuration deep": (text("config.json", '{"a":' + "[" * 100_000), "is no JSON"),
    "configuration nan": (text("config.json", '{"model_type": "llama", "rms_norm_eps": NaN}'), "holds NaN"),
    "configuration of nothing": (text("config.json", "{}"), "without remote code"),
    "types": (config(num_hidden_layers="many"), "config.json"),
    "generation": (text("generation_config.json", "{"), "generation_config.json is no JSON"),
    "generation []": (text("generation_config.json", "[]"), "generation_config.json holds"),
    "linked weights": (linked(WEIGHTS), "leads out of the model's directory"),
    "linked configuration": (linked("config.json"), "leads out of the model's directory"),
    "linked tokenizer": (linked("tokenizer.json"), "leads out of the model's directory"),
    "linked nowhere": (linked(WEIGHTS, "../nowhere"), "leads out of the model's directory"),
    "linked to itself": (linked(WEIGHTS, WEIGHTS), "is no file"),
    "a folder": (lambda model: ((model / WEIGHTS).unlink(), (model / WEIGHTS).mkdir()), "is no file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_said(model: Path, tmp_path: Path, case: str) -> None:
    change, words = REFUSED[case]
    change(model)
    with pytest.raises(ConfigError, match=words) as refused:
        import_base(model, tmp_path / "store")
    said = str(refused.value)
    assert said.startswith("model.base: ") and "\n" not in said
    assert "/.work/" not in said and "pip install" not in said and "onward_packed" not in said
    assert not list((tmp_path / "store").glob("base/*"))


TAKEN: dict[str, tuple[Change, str]] = {
    "shards": (index("part.safetensors"), ""),
    "one shard by index": (index(WEIGHTS, weights=WEIGHTS), ""),
    "half precision": (tensor(UP, lambda found: found.to(torch.float16)), ""),
    "double precision": (tensor(UP, lambda found: found.to(torch.float64)), ""),
    "pad id of the last word": (config(pad_token_id=-1), ""),
    "pad id null": (config(pad_token_id=None), ""),
    "one zero matrix": (tensor(UP, torch.zeros_like), ""),
    "buffers of old versions": (
        tensor("model.layers.0.self_attn.rotary_emb.inv_freq", torch.ones(4, dtype=torch.int64)),
        "",
    ),
    "more than its architecture has": (
        tensor("score.weight", torch.ones(2, 2)),
        "does not use: score.weight",
    ),
    "links inside": (linked(WEIGHTS, "../model/weights"), ""),
    "where a tokenizer once lay": (
        lambda model: json_with(
            model / "tokenizer_config.json", tokenizer_file="/home/a/t.json", name_or_path="../b"
        ),
        "",
    ),
    "as it was": (config(), ""),
}


@pytest.mark.parametrize("case", TAKEN)
def test_what_is_whole_is_taken(model: Path, tmp_path: Path, case: str) -> None:
    change, warning = TAKEN[case]
    if case == "links inside":
        (model.parent / "elsewhere").symlink_to(model.parent / "gone")
        (model / WEIGHTS).rename(model / "weights")
        (model / WEIGHTS).symlink_to("weights")
    else:
        change(model)
    made = import_base(model, tmp_path / "store")
    warnings = " ".join(made.manifest.provenance["warnings"])
    assert warning in warnings and (warning or not warnings)


def test_a_tied_head_may_be_missing_or_there(tmp_path: Path) -> None:
    small_model(tmp_path / "model", tie_word_embeddings=True)
    one = import_base(tmp_path / "model", tmp_path / "one")
    embedding = load_file(tmp_path / "model" / WEIGHTS)["model.embed_tokens.weight"]
    with_tensors(tmp_path / "model", lm_head__weight=embedding.clone())
    two = import_base(tmp_path / "model", tmp_path / "two")
    assert "lm_head.weight" not in load_file(two.path / "export" / WEIGHTS)
    assert one.key != two.key and one.part("export").digest == two.part("export").digest


def test_a_tokenizer_of_another_model_is_suspected(tmp_path: Path) -> None:
    small_model(tmp_path / "model", vocab_size=400)
    made = import_base(tmp_path / "model", tmp_path / "store")
    [warning] = made.manifest.provenance["warnings"]
    assert "269 ids" in warning and "400 words" in warning


def test_a_snapshot_of_the_hubs_client_consists_of_links_that_are_taken(sound: Path, tmp_path: Path) -> None:
    place = tmp_path / "models--me--small"
    snapshot = place / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (place / "blobs").mkdir()
    for path in sound.iterdir():
        shutil.copy(path, place / "blobs" / f"digest-of-{path.name}")
        (snapshot / path.name).symlink_to(f"../../blobs/digest-of-{path.name}")
    here, there = import_base(sound, tmp_path / "one"), import_base(snapshot, tmp_path / "two")
    assert here.key == there.key
    (tmp_path / "tokenizer.json").write_bytes((sound / "tokenizer.json").read_bytes())
    (snapshot / "tokenizer.json").unlink()
    (snapshot / "tokenizer.json").symlink_to("../../../tokenizer.json")
    with pytest.raises(ConfigError, match="leads out"):
        resolve_base(ModelConfig(base=str(snapshot)), Path("/"))


def test_every_file_that_an_import_reads_is_in_its_key(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers is shown a directory in which only these are."""
    from tasks.models import files

    seen: list[set[str]] = []
    plain = files.as_read

    def watched(directory: Path, beside: Path) -> Any:
        from contextlib import contextmanager

        @contextmanager
        def reading() -> Any:
            with plain(directory, beside) as staged:
                seen.append({path.name for path in staged.iterdir()})
                yield staged

        return reading()

    monkeypatch.setattr(files, "as_read", watched)
    for name in ("modeling_own.py", "pytorch_model.bin", "custom_generate", "notes.txt", "model.pt"):
        (model / name).write_bytes(b"x") if "." in name else (model / name).mkdir()
    import_base(model, tmp_path / "store")
    assert seen == [{"config.json", WEIGHTS, "tokenizer.json", "tokenizer_config.json"}]
    for name in sorted(seen[0]):
        before = base.directory_digest(model)
        (model / name).write_bytes((model / name).read_bytes() + b" ")
        assert base.directory_digest(model) != before, name
