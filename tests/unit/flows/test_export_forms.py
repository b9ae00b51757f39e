"""What a model leaves as: its numbers rounded to a type, and a configuration and a card that say so."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from flows.commands.store import export
from flows.inspect.export import export_model
from storage.artifact import Artifact
from storage.catalog import Catalog
from storage.draft import Draft
from storage.errors import ConfigError
from storage.settings import Settings, identity
from storage.store import Store
from storage.testing import artifact_of
from tasks.formats.families import FAMILIES
from tasks.formats.rounded import write_rounded
from tasks.models.form import Form, form_of
from tests.support.base_model import WEIGHTS, import_base, small_model

HALF_OF_THE_LAST_BIT = {"bf16": 2.0**-8, "fp16": 2.0**-11}
"""Largest relative error of rounding to the nearest."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Artifact]:
    root = tmp_path_factory.mktemp("forms")
    small_model(root / "model")
    return Store(root / "store"), import_base(root / "model", root / "store")


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_weights_are_rounded_to_the_nearest_and_load_in_their_type(
    base: tuple[Store, Artifact], tmp_path: Path, dtype: str
) -> None:
    store, artifact = base
    target = tmp_path / "out"
    export_model(Catalog(store), artifact, target, Form(dtype=dtype))
    before, after = load_file(artifact.path / "export" / WEIGHTS), load_file(target / WEIGHTS)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        error = (after[name].double() - tensor.double()).abs()
        assert bool((error <= HALF_OF_THE_LAST_BIT.get(dtype, 0.0) * tensor.double().abs() + 3e-8).all()), (
            name
        )
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[dtype]
    assert AutoModelForCausalLM.from_pretrained(target).dtype == kind
    config = json.loads((target / "config.json").read_bytes())
    assert config["dtype"] == config["torch_dtype"] == str(kind).removeprefix("torch.")
    card = (target / "README.md").read_text()
    assert f"The weights here are {dtype}, made from those of the store." in card
    assert "digest of the files in the store `" in card


def test_without_a_type_the_files_are_those_of_the_store(
    base: tuple[Store, Artifact], tmp_path: Path
) -> None:
    store, artifact = base
    export_model(Catalog(store), artifact, tmp_path / "out", form_of("safetensors", None, {}))
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (artifact.path / "export" / WEIGHTS).read_bytes()
    assert "digest of these files `" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16", "bf16"), ("bf16_weights", "bf16"), ("fp32", None), (None, None)]
)
def test_a_model_that_was_trained_in_bf16_leaves_as_bf16(precision: str | None, dtype: str | None) -> None:
    training: dict[str, Any] = {} if precision is None else {"precision": precision}
    assert form_of("safetensors", None, training) == Form("safetensors", dtype)
    as_in_the_store = precision != "bf16_weights"
    assert form_of("safetensors", "fp32", training).dtype == (None if as_in_the_store else "fp32")


class Trained(Settings):
    """Of a training that this file stands in for."""

    precision: str = identity(description="arithmetic")


@dataclass(frozen=True)
class Directory:
    """Where its model lies."""

    path: str


def run(config: Trained, inputs: Directory, draft: Draft) -> dict[str, int]:
    shutil.copytree(inputs.path, draft.path / "export", copy_function=shutil.copyfile)
    draft.part("export", "export")
    return {}


def test_the_command_asks_the_stage_that_made_the_model(base: tuple[Store, Artifact], tmp_path: Path) -> None:
    _, made = base
    for precision, dtype in (("bf16", "bfloat16"), ("fp32", "float32")):
        stage = SimpleNamespace(STAGE="letters", VERSION=1, run=run)
        inputs = Directory(str(made.path / "export"))
        trained = artifact_of(stage, Trained(precision=precision), inputs, tmp_path / "store")
        target = tmp_path / precision
        export(trained.key, target, tmp_path / "store", None, "safetensors", None, None)
        assert json.loads((target / "config.json").read_bytes())["dtype"] == dtype


def test_a_number_beyond_the_type_is_refused_and_nothing_is_left(
    base: tuple[Store, Artifact], tmp_path: Path
) -> None:
    export, out = tmp_path / "export", tmp_path / "out"
    export.mkdir()
    out.mkdir()
    (out / "config.json").write_text("{}")
    save_file({"head": torch.tensor([1.0, -7e4]), "ids": torch.tensor([70_000])}, export / WEIGHTS)
    with pytest.raises(ConfigError, match=r"head holds 7e\+04, and fp16 ends at 65,504; take --dtype bf16"):
        write_rounded(export, out, "fp16")
    write_rounded(export, out, "bf16")
    assert load_file(out / WEIGHTS)["ids"].tolist() == [70_000]


@pytest.mark.parametrize(
    ("format_", "dtype", "said"),
    [
        ("onnx", None, "--format onnx: unknown format; one of safetensors, gguf"),
        (
            "safetensors",
            "int3",
            "--dtype int3: unknown type; one of bf16, fp16, fp32, q8_0, q5_1, q5_0, q4_1, q4_0",
        ),
        (
            "gguf",
            "q4_k_m",
            "--dtype q4_k_m is made by llama.cpp's own program of a bf16 file: onward export MODEL DIR --format gguf "
            "--dtype bf16, then llama-quantize DIR/model-bf16.gguf DIR/model-q4_k_m.gguf q4_k_m; of 4 bits, q4_0 and "
            "q4_1 are made here",
        ),
        ("safetensors", "q4_0", "--dtype q4_0 is a type of GGUF files; add --format gguf"),
        ("safetensors", "q8_0", "--dtype q8_0 is a type of GGUF files; add --format gguf"),
    ],
)
def test_a_form_that_does_not_exist_is_refused(format_: str, dtype: str | None, said: str) -> None:
    with pytest.raises(ConfigError) as raised:
        form_of(format_, dtype, {})
    assert str(raised.value) == said


def test_a_gguf_file_comes_with_a_modelfile_and_a_card(base: tuple[Store, Artifact], tmp_path: Path) -> None:
    store, artifact = base
    target = tmp_path / "out"
    export_model(Catalog(store), artifact, target, form_of("gguf", "q8_0", {}))
    assert sorted(path.name for path in target.iterdir()) == ["Modelfile", "README.md", "model-q8_0.gguf"]
    assert (target / "Modelfile").read_text().startswith("FROM ./model-q8_0.gguf\n")
    card = (target / "README.md").read_text()
    assert "llama-cli -m model-q8_0.gguf" in card and "The weights here are q8_0, made from" in card
    reader = gguf.GGUFReader(target / "model-q8_0.gguf")
    assert reader.fields["general.name"].contents() == f"base-{artifact.key[:12]}"


def test_a_model_that_gguf_cannot_say_leaves_nothing(
    base: tuple[Store, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, artifact = base
    monkeypatch.delitem(FAMILIES, "llama")
    with pytest.raises(ConfigError, match="a model of kind llama cannot be written"):
        export_model(Catalog(store), artifact, tmp_path / "out", form_of("gguf", None, {}))
    assert list(tmp_path.iterdir()) == []
