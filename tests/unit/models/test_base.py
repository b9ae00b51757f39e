from __future__ import annotations

import hashlib
import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from storage.artifact import Artifact, Input
from storage.draft import Draft
from storage.errors import ConfigError, HubUnreachable
from storage.keys import key_inputs
from storage.settings import identity_of
from storage.testing import artifact_of
from tasks.corpus.tokenizer import train, write_tokenizer
from tasks.models import base
from tasks.models.base import BaseConfig, InitConfig, ModelConfig, resolve_base
from tasks.models.files import end_of_text, model_facts, tokenizer_digest

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "layers": 2,
    "heads": 4,
    "max_positions": 64,
    "pretrain_tokens": "1M",
}


@pytest.fixture
def stories(tmp_path: Path, shared_data: Path) -> Path:
    """A writable copy of a real small model."""
    directory = tmp_path / "stories"
    directory.mkdir()
    for path in (shared_data / "models/stories260K-hf").iterdir():
        (directory / path.name).write_bytes(path.read_bytes())
    return directory


@pytest.fixture(scope="module")
def tokenizer_part(tmp_path_factory: pytest.TempPathFactory) -> Input:
    root = tmp_path_factory.mktemp("tokenizer")
    (root / "tokenizer").mkdir()
    write_tokenizer(train(iter(["the cat sat on the mat"] * 9), 270), root / "tokenizer")
    files = ("tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json")
    digest = hashlib.sha256((root / files[0]).read_bytes()).hexdigest()
    return Input("tokenizer", "2" * 64, "tokenizer", digest, root, files)


def imported(directory: Path, store: Path) -> Artifact:
    return artifact_of(base, BaseConfig(), resolve_base(ModelConfig(base=str(directory)), Path("/")), store)


def initialised(store: Path, tokenizer: Input, seed: int = 0, **shape: Any) -> Artifact:
    config = ModelConfig.model_validate({"base": {"init": SHAPE | shape}})
    return artifact_of(base, BaseConfig(), resolve_base(config, store, seed=seed, tokenizer=tokenizer), store)


def edit(path: Path, **changes: Any) -> None:
    values = json.loads(path.read_bytes()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def test_import_keeps_the_logits(stories: Path, tmp_path: Path) -> None:
    export = imported(stories, tmp_path / "store").path / "export"
    ids = torch.arange(1, 200).unsqueeze(0)
    with torch.no_grad():
        before = AutoModelForCausalLM.from_pretrained(stories, dtype=torch.float32)(ids).logits
        after = AutoModelForCausalLM.from_pretrained(export)(ids).logits
    assert torch.equal(before, after)
    text = "Once upon a time <s> there"
    reference = Tokenizer.from_file(str(stories / "tokenizer.json"))
    loaded = AutoTokenizer.from_pretrained(export)
    assert (
        loaded(text, add_special_tokens=False).input_ids
        == reference.encode(text, add_special_tokens=False).ids
    )


def test_export_is_float32_deterministic_and_without_aliases(stories: Path, tmp_path: Path) -> None:
    tensors = load_file(stories / "model.safetensors")
    save_file({name: t.to(torch.bfloat16) for name, t in tensors.items()}, stories / "model.safetensors")
    edit(stories / "config.json", torch_dtype="bfloat16")
    one, two = imported(stories, tmp_path / "one"), imported(stories, tmp_path / "two")
    assert one.part("export").digest == two.part("export").digest
    with safe_open(one.path / "export/model.safetensors", framework="pt") as weights:
        names = set(weights.keys())
        assert {weights.get_tensor(name).dtype for name in names} == {torch.float32}
    assert "lm_head.weight" not in names
    model = AutoModelForCausalLM.from_pretrained(one.path / "export")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.dtype == torch.float32
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        text = (one.path / "export" / name).read_text()
        assert "transformers_version" not in text
        assert str(stories) not in text


def test_facts_and_parts(stories: Path, tmp_path: Path) -> None:
    made = imported(stories, tmp_path / "store")
    facts = model_facts(made.path / "export")
    assert (facts.layers, facts.hidden_size, facts.max_positions, facts.vocabulary, facts.eot) == (
        5,
        64,
        512,
        512,
        2,
    )
    with safe_open(stories / "model.safetensors", framework="numpy") as weights:
        assert facts.parameters == sum(weights.get_tensor(name).size for name in weights.keys())  # noqa: SIM118
    assert facts.architecture == "LlamaForCausalLM"
    assert facts.tokenizer == made.part("tokenizer").digest == tokenizer_digest(made.path / "export")
    assert made.stats["eot"] == end_of_text(made.path / "export") == 2
    assert made.part("tokenizer").files == ("export/tokenizer.json", "export/tokenizer_config.json")
    assert set(made.part("tokenizer").files) < set(made.part("export").files)


def test_bos_falls_back_to_eos_everywhere(stories: Path, tmp_path: Path) -> None:
    edit(stories / "tokenizer_config.json", bos_token=None)
    edit(stories / "config.json", bos_token_id=300)
    export = imported(stories, tmp_path / "store").path / "export"
    loaded = AutoTokenizer.from_pretrained(export)
    assert loaded.bos_token_id == loaded.eos_token_id == 2
    for name in ("config.json", "generation_config.json"):
        ids = json.loads((export / name).read_bytes())
        assert (ids["bos_token_id"], ids["eos_token_id"]) == (2, 2)


def test_a_raw_tokenizer_takes_its_end_of_text_from_the_models_configuration(
    tmp_path: Path, shared_data: Path
) -> None:
    directory = tmp_path / "gpt2"
    shape = GPT2Config(n_embd=8, n_layer=1, n_head=1, n_positions=32, bos_token_id=50256, eos_token_id=50256)
    GPT2LMHeadModel(shape).save_pretrained(directory)
    shutil.copy(shared_data / "tokenizers/gpt2/tokenizer.json", directory / "tokenizer.json")
    made = imported(directory, tmp_path / "store")
    loaded = AutoTokenizer.from_pretrained(made.path / "export")
    assert loaded.eos_token == loaded.bos_token == "<|endoftext|>"
    assert made.stats["eot"] == 50256
    assert made.stats["max_positions"] == 32
    text = "It's  a <b>test</b>\n\n ünï 漢"
    reference = Tokenizer.from_file(str(directory / "tokenizer.json"))
    assert loaded(text).input_ids == reference.encode(text).ids
    ids = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        before = AutoModelForCausalLM.from_pretrained(directory).eval()(ids).logits
        after = AutoModelForCausalLM.from_pretrained(made.path / "export").eval()(ids).logits
    assert torch.equal(before, after)


def test_what_cannot_be_used_is_refused(stories: Path, tmp_path: Path) -> None:
    def refused(message: str, *, change: Any) -> None:
        directory = tmp_path / "broken"
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(stories, directory)
        change(directory)
        with pytest.raises(ConfigError, match=message):
            imported(directory, tmp_path / "store")

    def pickled(directory: Path) -> None:
        (directory / "model.safetensors").unlink()
        torch.save({}, directory / "pytorch_model.bin")

    def halved(directory: Path) -> None:
        tensors = load_file(directory / "model.safetensors")
        del tensors["model.layers.0.mlp.up_proj.weight"]
        save_file(tensors, directory / "model.safetensors")

    def without_end(directory: Path) -> None:
        edit(directory / "tokenizer_config.json", eos_token=None)
        edit(directory / "config.json", eos_token_id=300)

    def remote(directory: Path) -> None:
        edit(directory / "config.json", model_type="own", auto_map={"AutoConfig": "own.Config"})
        (directory / "own.py").write_text("raise SystemExit('ran')")

    def more_words(directory: Path) -> None:
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        tokenizer.add_tokens(["one more"])
        tokenizer.save(str(directory / "tokenizer.json"))

    refused("pytorch_model.bin: pickled", change=pickled)
    refused("lacks weights", change=halved)
    refused("no end-of-text", change=without_end)
    refused("without remote code", change=remote)
    refused("ids up to 512", change=more_words)
    refused("no tokenizer", change=lambda d: (d / "tokenizer.json").unlink())
    refused("no config.json", change=lambda d: (d / "config.json").unlink())
    refused("is no JSON", change=lambda d: (d / "tokenizer.json").write_text("{"))


def test_a_local_base_counts_by_content_and_not_by_place(stories: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    shutil.copytree(stories, tmp_path / "home" / "copy")
    (tmp_path / "home" / "copy" / "README.md").write_text("not read")
    here = resolve_base(ModelConfig(base=str(stories)), tmp_path)
    there = resolve_base(ModelConfig(base="copy", dropout=0.1), tmp_path / "home")
    assert key_inputs(here) == key_inputs(there)
    assert str(tmp_path) not in json.dumps(key_inputs(here))
    edit(tmp_path / "home/copy/tokenizer_config.json", model_max_length=3)
    changed = resolve_base(ModelConfig(base="copy"), tmp_path / "home")
    assert key_inputs(here) != key_inputs(changed)
    with pytest.raises(ConfigError, match="changed since"):
        base.run(BaseConfig(), base.BaseInputs(here.origin, path=changed.path), Draft(tmp_path / "draft"))


def test_a_base_that_is_nowhere_is_refused(tmp_path: Path) -> None:
    for name in ("./no/such", "/no/such", "a/b/c", "no directory"):
        with pytest.raises(ConfigError, match="no directory"):
            resolve_base(ModelConfig(base=name), tmp_path)
    with pytest.raises(HubUnreachable, match="model.base: the hub cannot be reached.*no local one named"):
        resolve_base(ModelConfig(base="no-such-organisation/no-such-model"), tmp_path)
    commit = "0" * 40
    known = resolve_base(ModelConfig(base="some/model", revision=commit), tmp_path)
    assert known.origin == {"hub": "some/model", "commit": commit}


def test_new_models_are_the_same_every_time_and_touch_no_random_state(
    tmp_path: Path, tokenizer_part: Input
) -> None:
    torch.manual_seed(7)
    states = (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate())
    one = initialised(tmp_path / "one", tokenizer_part)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]
    assert random.getstate() == states[2]
    torch.manual_seed(8)
    two = initialised(tmp_path / "two", tokenizer_part, pretrain_tokens="2M")
    other = initialised(tmp_path / "two", tokenizer_part, seed=1)
    assert one.key == two.key, "the budget of round 0 is no matter of the initial weights"
    assert one.part("export").digest == two.part("export").digest != other.part("export").digest


def test_a_new_model_loads_and_begins_near_the_uniform_loss(tmp_path: Path, tokenizer_part: Input) -> None:
    made = initialised(tmp_path / "store", tokenizer_part, kv_heads=2)
    model = AutoModelForCausalLM.from_pretrained(made.path / "export")
    tokenizer = AutoTokenizer.from_pretrained(made.path / "export")
    assert model.config.vocab_size == len(tokenizer) == made.stats["vocabulary"]
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert (
        model.config.eos_token_id == model.config.bos_token_id == tokenizer.eos_token_id == made.stats["eot"]
    )
    assert sum(p.numel() for p in model.parameters()) == made.stats["parameters"]
    assert model.config.num_key_value_heads == 2
    assert model.config.intermediate_size == 96
    ids = torch.tensor([tokenizer("the cat sat on the mat and the cat").input_ids])
    with torch.no_grad():
        loss = float(model(ids, labels=ids).loss)
    assert abs(loss - np.log(made.stats["vocabulary"])) < 0.2
    deviations = {name: float(p.detach().std()) for name, p in model.named_parameters() if p.dim() == 2}
    assert abs(deviations["model.embed_tokens.weight"] - 0.02) < 0.002
    assert abs(deviations["model.layers.1.mlp.down_proj.weight"] - 0.01) < 0.001


def test_untied_heads_are_drawn_apart(tmp_path: Path, tokenizer_part: Input) -> None:
    made = initialised(tmp_path / "store", tokenizer_part, tie_embeddings=False)
    model = AutoModelForCausalLM.from_pretrained(made.path / "export")
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)


def test_the_section_reads_all_three_kinds_and_keeps_paths_out_of_identity() -> None:
    section = ModelConfig.model_validate({"base": {"init": SHAPE | {"tokenizer": {"vocabulary": "4K"}}}})
    assert isinstance(section.base, InitConfig)
    assert section.base.tokenizer.vocabulary == 4000
    assert ModelConfig.model_validate(section.model_dump()) == section
    assert identity_of(ModelConfig(base="/some/where", revision="x")) == {"dropout": 0.0}
    for wrong in ({"hidden_size": 36}, {"kv_heads": 3}, {"width": 3}):
        with pytest.raises(ValidationError):
            ModelConfig.model_validate({"base": {"init": SHAPE | wrong}})
