"""K2: a key names the versions of what it uses: raised for one component, only what uses it is made again."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows.config import load_config
from flows.dag.plan import PlanRow, Reasons, render
from storage.artifact import Input
from storage.manifest import read_manifest
from storage.store import Making, Request, Store
from tasks.corpus import dedup, filter, ingest, tokenize
from tasks.evaluation import evaluate
from tasks.models.train import COMPONENTS as TRAINING
from tasks.stages import TABLE
from tests.support.golden_keys import OTHER, OTHER_OPTIONS, ROOT, SHIPPED, read, requests_of, world

CONFIGURATIONS = {name: (name, ()) for name in SHIPPED} | {OTHER: ("edu-125m", OTHER_OPTIONS)}


@pytest.fixture
def home():
    with world() as directory:
        yield directory


def requests(name: str, home: Path) -> dict[str, Request]:
    shipped, overrides = CONFIGURATIONS[name]
    run = load_config(ROOT / "configs" / f"{shipped}.yaml", [*overrides, "store=store"])
    return dict(requests_of(run, home))


def made_again(name: str, home: Path) -> set[str]:
    """The stages of a configuration of which a key is another than the committed one."""
    golden = read()["keys"][name]
    return {one.stage for label, one in requests(name, home).items() if one.key != golden[label]["key"]}


@pytest.mark.parametrize(
    ("components", "raised", "again"),
    [
        # the demo has C4 and FineWeb off, any language, and masks personal data; the other options mask none
        (filter.COMPONENTS, "c4", {"edu-125m": {"filter", "data"}, OTHER: {"filter", "data"}, "demo": set()}),
        (filter.COMPONENTS, "fineweb", {"edu-125m": {"filter", "data"}, "demo": set()}),
        (filter.COMPONENTS, "language", {"edu-125m": {"filter", "data"}, "demo": set()}),
        (
            filter.COMPONENTS,
            "gopher",
            {"edu-125m": {"filter", "data"}, "demo": {"filter", "data"}, OTHER: set()},
        ),
        (filter.COMPONENTS, "pii", {"demo": {"filter", "data"}, OTHER: set()}),
        (filter.COMPONENTS, "education", {"edu-125m": set(), OTHER: {"filter", "data"}}),
        (dedup.COMPONENTS, "minhash", {"demo": {"dedup"}, OTHER: set()}),
        (dedup.COMPONENTS, "exact", {"demo": {"dedup"}, OTHER: set()}),
        (dedup.COMPONENTS, "paragraphs", {"demo": set(), OTHER: {"dedup"}}),
        (ingest.COMPONENTS, "lines", {"edu-pythia-160m": {"ingest"}, "edu-125m": set(), "demo": set()}),
        (ingest.COMPONENTS, "parquet", {"edu-125m": {"ingest"}, "edu-pythia-160m": set()}),
        (ingest.COMPONENTS, "python", {"demo": {"ingest"}, "edu-125m": set()}),
        (ingest.COMPONENTS, "hub", {"edu-125m": {"ingest"}, "edu-pythia-160m": set()}),
        (TRAINING, "8bit", {"edu-125m": set(), OTHER: {"train"}}),
        (TRAINING, "cosine", {"edu-125m": set(), OTHER: {"train"}}),
        (TRAINING, "wsd", {"edu-125m": {"train", "decay"}, OTHER: set()}),
        (TRAINING, "average", {"demo": set(), OTHER: {"train"}}),
        (TRAINING, "export", {"edu-125m": {"decay"}, "demo": {"train", "decay"}}),
        (TRAINING, "fp32", {"edu-125m": set(), "demo": {"train", "decay"}}),
        (evaluate.COMPONENTS, "harness", {"edu-125m": {"evaluate"}, "demo": set()}),
        (evaluate.COMPONENTS, "questions", {"edu-125m": set(), "demo": {"evaluate"}}),
        (evaluate.COMPONENTS, "mmlu", {"edu-125m": {"evaluate"}, OTHER: set()}),
    ],
)
def test_a_raised_component_makes_again_only_what_uses_it(components, raised, again, home, monkeypatch):
    monkeypatch.setitem(components, raised, components[raised] + 1)
    assert {name: made_again(name, home) for name in again} == again


def test_of_a_stage_only_the_artifacts_that_use_it_are_made_again(home, monkeypatch):
    """The rest of the stage stays: other slices, other rounds, other benchmarks."""
    golden = read()["keys"]
    for name, components, raised, labels in (
        ("edu-125m", evaluate.COMPONENTS, "mmlu", {f"evaluate · round {n} · mmlu" for n in (0, 1, 2)}),
        ("demo", TRAINING, "export", {"train · round 0", "decay · round 1 · 400K", "decay · round 2 · 1M"}),
    ):
        with monkeypatch.context() as patch:
            patch.setitem(components, raised, components[raised] + 1)
            found = {
                label for label, one in requests(name, home).items() if one.key != golden[name][label]["key"]
            }
        assert found == labels


def test_a_holdout_is_of_a_first_slice_alone(home, monkeypatch):
    from tasks.corpus import decontaminate

    golden = read()["keys"]["demo"]
    monkeypatch.setitem(decontaminate.COMPONENTS, "holdout", 2)
    now = {label: one for label, one in requests("demo", home).items() if one.stage == "decontaminate"}
    again = {label for label, one in now.items() if one.key != golden[label]["key"]}
    assert again == {label for label, one in now.items() if one.inputs.first_of_source} < set(now)


def test_kinds_of_tokenizers_and_of_models_are_read_from_their_files(tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": "Unigram"}}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt_neox"}))
    (tmp_path / "tokenizer_config.json").write_text("{}")
    files = ("config.json", "tokenizer.json", "tokenizer_config.json")
    part = Input("base", "k", "tokenizer", "d", tmp_path, files)
    inputs = tokenize.TokenizeInputs(part, part)
    assert list(tokenize.components(tokenize.TokenizeConfig(), inputs)) == ["unigram"]
    special = [{"content": "</s>", "special": True}]
    unigram = {"type": "Unigram", "vocab": [["</s>", 0.0]]}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "tokenizer.json").write_text(
        json.dumps({"model": unigram, "added_tokens": special})
    )
    other = replace(inputs, tokenizer=replace(part, root=tmp_path / "other"))
    assert list(tokenize.components(tokenize.TokenizeConfig(), other)) == ["unigram", "special"]
    with world() as home:
        segment = next(one for one in requests("demo", home).values() if one.stage == "decay")
    used = set(segment.module.components(segment.config, replace(segment.inputs, start=part)))
    assert used == {"gpt_neox", "export", "document_masking", "wsd", "fp32"}


@pytest.mark.parametrize("name", [stage.module for stage in TABLE])
def test_components_are_counted_from_one_and_told_of_every_request(name, home):
    module = importlib.import_module(name)
    if not hasattr(module, "COMPONENTS"):
        assert not hasattr(module, "components")
        return
    assert module.COMPONENTS and all(version >= 1 for version in module.COMPONENTS.values())
    if module.STAGE == "tokenize":  # of its tokenizer's file: the test above
        return
    if module.STAGE == "extract":  # of no source of these: tests/unit/documents/test_shelves.py
        return
    asked = [one for name in CONFIGURATIONS for one in requests(name, home).values() if one.module is module]
    assert asked
    for one in asked:
        assert set(module.components(one.config, one.inputs)) <= set(module.COMPONENTS)


# ---- what is said of it ---------------------------------------------------------------------------------------------


@pytest.fixture
def letters(tmp_path):
    """A real stage with two components, `loud` and `plain`, in a store of its own."""
    path = tmp_path / "letters.py"
    path.write_text(STAGE)
    spec = importlib.util.spec_from_file_location("letters", path)
    module: Any = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["letters"] = module
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules["letters"]


STAGE = """
from dataclasses import dataclass

from storage.settings import Settings, identity

STAGE = "letters"
VERSION = 1
COMPONENTS = {"loud": 1, "plain": 1}


class Config(Settings):
    loud: bool = identity(True, description="in capitals")


@dataclass(frozen=True)
class Inputs:
    text: str = "a"


@dataclass(frozen=True)
class Stats:
    letters: int


def components(config, inputs):
    yield "loud" if config.loud else "plain"


def run(config, inputs, draft):
    (draft.path / "text").write_text(inputs.text.upper() if config.loud else inputs.text)
    draft.part("text", "text")
    return Stats(len(inputs.text))
"""


def test_the_manifest_records_them_and_a_plan_says_so_in_one_line(letters, tmp_path, monkeypatch):
    store = Store(tmp_path / "store")
    loud = Request(letters, letters.Config(), letters.Inputs())
    plain = Request(letters, letters.Config(loud=False), letters.Inputs())
    first = [store.ensure(one, Making()).artifact for one in (loud, plain)]
    assert all("components" not in json.loads((one.path / "manifest.json").read_bytes()) for one in first)

    monkeypatch.setitem(letters.COMPONENTS, "loud", 3)
    assert store.ensure(plain, Making()).state == "cached"
    assert store.lookup("letters", loud.key) is None
    why = Reasons(store)(loud)
    assert why == (
        "letters is of a newer version than in the store (loud 1 → 3), and is made again: see docs/upgrades.md",
    )
    made = store.ensure(loud, Making()).artifact
    assert read_manifest(made.path).components == {"loud": 3}

    monkeypatch.setattr(letters, "VERSION", 2)
    lines = Reasons(store)(Request(letters, letters.Config(), letters.Inputs("b")))
    assert lines[0].startswith("letters is of a newer version than in the store (1 → 2)")
    assert lines[1:] == ("inputs.text: a → b",)
    monkeypatch.setitem(letters.COMPONENTS, "loud", 1)
    monkeypatch.setattr(letters, "VERSION", 1)
    assert store.lookup("letters", loud.key) is not None  # what was made before is there still


def test_a_newer_version_is_said_once_for_all_slices():
    reason = (
        "filter is of a newer version than in the store (c4 1 → 2), and is made again: see docs/upgrades.md"
    )
    rows = [PlanRow("filter", number, None, None, "to build", "k", (reason,)) for number in (1, 2, 3)]
    rows.append(
        PlanRow("filter", 4, None, None, "to build", "k", (reason, "corpus.filter.gopher: true → false"))
    )
    text = render(rows)
    assert text.count("newer version") == 1
    assert (
        "newer     filter is of a newer version than in the store (c4 1 → 2) × 4, and is made again: see docs/upgrades.md"
        in text
    )
    assert "corpus.filter.gopher: true → false" in text
