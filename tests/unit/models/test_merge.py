"""Weights between models: each number is the rounded sum, bytes are the library's, and what is not alike is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from storage.artifact import Artifact
from storage.errors import ConfigError
from storage.testing import artifact_of
from tasks.models import merge, summed
from tasks.models.base import readers_of
from tasks.models.checkpoint import kept_of, kept_part
from tasks.models.merge import MergeConfig, MergeInputs, MergePlan, Source
from tasks.models.summed import check_words, write_sum
from tests.support.base_model import WEIGHTS, import_base, json_with, small_model
from tests.support.evaluation.cases import FilesConfig, FilesInputs, stage_of_files

TEMPLATE = "{% for m in messages %}<eos>{{ m.content }}{% endfor %}"


def moved(directory: Path, seed: int, **kind: Any) -> dict[str, torch.Tensor]:
    """The small model in `directory`, its weights moved by noise: what training did to it."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: tensor + 0.05 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in load_file(directory / WEIGHTS).items()
    }
    save_file(
        {name: tensor.to(**kind) for name, tensor in tensors.items()}, directory / WEIGHTS, {"format": "pt"}
    )
    return load_file(directory / WEIGHTS)


@pytest.fixture
def base(tmp_path: Path) -> Artifact:
    small_model(tmp_path / "base")
    return import_base(tmp_path / "base", tmp_path / "store")


def adapted(base: Artifact, root: Path, seed: int = 1, part: str = "export", **kind: Any) -> Artifact:
    """An artifact of a training that began with `base`."""
    directory = root / f"adapted-{seed}"
    directory.mkdir()
    for path in base.part("export").paths:
        (directory / path.name).write_bytes(path.read_bytes())
    moved(directory, seed, **kind)
    stats = FilesConfig(stats={"tokens_seen": 1000 * seed})
    return artifact_of(stage_of_files("decay"), stats, FilesInputs({part: str(directory)}), root / "store")


def merged(store: Path, kind: Any, value: float, *models: Source, readers: Any = None) -> Artifact:
    return artifact_of(merge, MergeConfig(kind=kind, value=value), MergeInputs(models, readers), store)


def export(artifact: Artifact) -> Source:
    return Source(artifact.part("export"))


def test_between_two_models_every_number_is_the_rounded_sum(base: Artifact, tmp_path: Path) -> None:
    other = adapted(base, tmp_path)
    made = merged(tmp_path / "store", "interpolate", 0.3, export(base), export(other))
    first, last = load_file(base.path / "export" / WEIGHTS), load_file(other.path / "export" / WEIGHTS)
    for name, tensor in load_file(made.path / "export" / WEIGHTS).items():
        assert torch.equal(tensor, ((1 - 0.3) * first[name].double() + 0.3 * last[name].double()).float()), (
            name
        )
    assert made.stats["tokens_seen"] == 1000
    assert made.stats["parameters"] == sum(tensor.numel() for tensor in first.values())
    AutoModelForCausalLM.from_pretrained(made.path / "export")
    assert {path.name for path in made.part("export").paths} == {
        path.name for path in base.part("export").paths
    }


def test_a_file_has_the_librarys_bytes_however_small_the_blocks_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_model(tmp_path / "one")
    small_model(tmp_path / "other")
    tensors = moved(tmp_path / "other", 3)
    for block in (7, 1 << 20):
        monkeypatch.setattr(summed, "_BLOCK", block)
        out = tmp_path / f"out-{block}"
        out.mkdir()
        write_sum([tmp_path / "one", tmp_path / "other"], (0.0, 1.0), out)
        save_file(tensors, tmp_path / "again", {"format": "pt"})
        assert (out / WEIGHTS).read_bytes() == (tmp_path / "again").read_bytes()


def test_checkpoints_of_a_trunk_are_averaged_where_they_lie(base: Artifact, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    for seed in (1, 2, 3):
        to = kept / f"tokens-{1000 * seed:015d}"
        to.mkdir(parents=True)
        for path in base.part("export").paths:
            (to / path.name).write_bytes(path.read_bytes())
        moved(to, seed)
        (to / "optimizer.safetensors").write_bytes(b"of training alone")
        (to / "trunk.json").write_text("{}")
    trunk = artifact_of(
        stage_of_files("train"), FilesConfig(stats={}), FilesInputs({"kept": str(kept)}), tmp_path / "store"
    )
    models = [Source(kept_part(trunk), f"kept/tokens-{tokens:015d}") for tokens in kept_of(trunk)]
    made = merged(tmp_path / "store", "average", 3, *models)
    expected = [load_file(one.path / WEIGHTS) for one in models]
    for name, tensor in load_file(made.path / "export" / WEIGHTS).items():
        mean = sum(one[name].double() * (1 / 3) for one in expected)
        assert torch.equal(tensor, mean.float()), name  # type: ignore[union-attr]
    assert made.stats["tokens_seen"] == 3000
    assert not {"optimizer.safetensors", "trunk.json"} & {path.name for path in made.part("export").paths}


def test_weights_kept_in_bf16_are_rounded_once(base: Artifact, tmp_path: Path) -> None:
    other = adapted(base, tmp_path, dtype=torch.bfloat16)
    made = merged(tmp_path / "store", "interpolate", 0.5, export(base), export(other))
    first, last = load_file(base.path / "export" / WEIGHTS), load_file(other.path / "export" / WEIGHTS)
    for name, tensor in load_file(made.path / "export" / WEIGHTS).items():
        assert torch.equal(tensor, (0.5 * first[name].double() + 0.5 * last[name].double()).bfloat16())


def test_what_made_a_chat_model_is_added_and_its_template_is_kept(base: Artifact, tmp_path: Path) -> None:
    small_model(tmp_path / "chat")
    moved(tmp_path / "chat", 9)
    (tmp_path / "chat" / "chat_template.jinja").write_text(TEMPLATE)
    json_with(tmp_path / "chat" / "generation_config.json", temperature=0.6, do_sample=True)
    chat, other = import_base(tmp_path / "chat", tmp_path / "store"), adapted(base, tmp_path)
    made = merged(
        tmp_path / "store",
        "instruct",
        0.5,
        export(base),
        export(chat),
        export(other),
        readers=readers_of(chat),
    )
    before, talks, after = (load_file(one.path / "export" / WEIGHTS) for one in (base, chat, other))
    for name, tensor in load_file(made.path / "export" / WEIGHTS).items():
        wanted = -0.5 * before[name].double() + 0.5 * talks[name].double() + after[name].double()
        assert torch.equal(tensor, wanted.float()), name
    assert AutoTokenizer.from_pretrained(made.path / "export").chat_template == TEMPLATE
    assert json.loads((made.path / "export" / "generation_config.json").read_bytes())["temperature"] == 0.6


def test_models_that_are_not_alike_are_refused(base: Artifact, tmp_path: Path) -> None:
    small_model(tmp_path / "wide", intermediate_size=48)
    wide = import_base(tmp_path / "wide", tmp_path / "store")
    with pytest.raises(
        ConfigError, match=r"mlp\.\w+\.weight is \[.*: only models of one shape can be merged"
    ):
        merged(tmp_path / "store", "interpolate", 0.5, export(base), export(wide))
    small_model(tmp_path / "deep", num_hidden_layers=2)
    deep = import_base(tmp_path / "deep", tmp_path / "store")
    with pytest.raises(ConfigError, match=r"lacks the weights model\.layers\.1"):
        merged(tmp_path / "store", "interpolate", 0.5, export(base), export(deep))


def test_a_chat_model_of_another_tokenizer_is_refused(base: Artifact, tmp_path: Path) -> None:
    directory = tmp_path / "other"
    directory.mkdir()
    spec = json.loads((base.path / "export" / "tokenizer.json").read_bytes())
    vocabulary = spec["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (directory / "tokenizer.json").write_text(json.dumps(spec))
    Tokenizer.from_file(str(directory / "tokenizer.json"))
    with pytest.raises(ConfigError, match=r"merge\.instruct: its tokenizer gives '[ab]' another id"):
        check_words(base.path / "export", directory)
    check_words(base.path / "export", base.path / "export")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"interpolate": [0.5, 0.5]}, "merge.interpolate names a value twice"),
        ({"interpolate": [1.0]}, "less than 1"),
        ({"interpolate": [0.0]}, "greater than 0"),
        ({"average": 1}, "greater than or equal to 2"),
        ({"strength": []}, "at least 1 item"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        MergePlan(**given)
    assert not MergePlan().asked and MergePlan(average=2).asked
