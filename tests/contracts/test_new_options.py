"""K1: an option that came after 0.1.0 is in no key while it means "as before", in any section; chosen, it is.

Two options that were tried on 0.1.0, `nesterov` of the optimizer and `toxicity` of the filter, are added to the sections
of a shipped configuration, and its keys are compared with the committed ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field, make_dataclass, replace
from typing import Any

import pytest

from flows.config import CorpusConfig, RunConfig, load_config
from flows.runs.names import run_id
from storage import fields
from storage.keys import key_inputs, recorded_inputs
from storage.settings import Settings, identity, identity_values
from storage.store import Request
from tasks.corpus.filter import FilterConfig
from tasks.models import train
from tasks.training.read_spec import read_spec
from tasks.training.spec import Optimizer
from tests.support.golden_keys import ROOT, keys_of, read, requests_of, world


@dataclass(frozen=True)
class LaterOptimizer(Optimizer):
    nesterov: bool = fields.identity(False, since="0.2", description="look ahead along the momentum")


class LaterFilter(FilterConfig):
    toxicity: bool = identity(False, since="0.2", description="drop what insults")


class Extract(Settings):
    engine: str = identity("plain", description="from pages to text")


class LaterCorpus(CorpusConfig):
    extract: Extract = identity(default_factory=Extract, since="0.2", description="a section that came later")


def later(run: RunConfig, nesterov: bool = False, toxicity: bool = False) -> RunConfig:
    """The same configuration under a release that has two more options and one more section."""
    optimizer = LaterOptimizer(**vars(run.training.optimizer), nesterov=nesterov)
    filter = LaterFilter(**run.corpus.filter.model_dump(), toxicity=toxicity)
    corpus = LaterCorpus(
        **{name: getattr(run.corpus, name) for name in CorpusConfig.model_fields if name != "filter"},
        filter=filter,
    )
    training = run.training.model_copy(update={"optimizer": optimizer})
    return run.model_copy(update={"training": training, "corpus": corpus})


@pytest.fixture
def golden() -> dict[str, Any]:
    found = read()
    return {**found["keys"]["demo"], "run": found["runs"]["demo"]["id"]}


@pytest.fixture
def home():
    with world() as directory:
        yield directory


@pytest.fixture
def demo(home) -> RunConfig:
    return load_config(ROOT / "configs" / "demo.yaml", ["store=store"])


def changed(run: RunConfig, home: Any, golden: dict[str, Any]) -> set[str]:
    """The stages of which a key is another."""
    now = keys_of(run, home)
    return {entry["stage"] for label, entry in now.items() if entry["key"] != golden[label]["key"]}


def test_left_at_their_defaults_they_change_no_key_and_no_run_id(demo, home, golden):
    assert changed(later(demo), home, golden) == set()
    assert run_id(later(demo)) == golden["run"]


def test_chosen_they_change_the_keys_of_their_own_stages_alone(demo, home, golden):
    assert changed(later(demo, nesterov=True), home, golden) == {"train", "decay"}
    assert changed(later(demo, toxicity=True), home, golden) == {"filter", "data"}
    assert run_id(later(demo, nesterov=True)) != golden["run"] != run_id(later(demo, toxicity=True))


def test_all_of_them_are_shown_as_parameters(demo):
    shown = identity_values(later(demo))
    assert shown["training"]["optimizer"]["nesterov"] is False
    assert shown["corpus"]["extract"] == {"engine": "plain"}


def test_the_trainer_is_told_what_it_was_always_told(demo, home, tmp_path):
    """Its work directories and checkpoints hold what it was told: they must go on under a later release."""
    told = []
    for name, run in (("before", demo), ("later", later(demo))):
        (tmp_path / name).mkdir()
        asked = next(one for label, one in requests_of(run, home) if label.startswith("decay"))
        train._write_spec(asked.config, replace(asked.inputs, shards=(), heldout={}), tmp_path / name)
        told.append(read_spec(tmp_path / name / "spec.json").identity)
    assert told[0] == told[1] and told[0].digest == told[1].digest


def test_an_input_that_came_later_is_in_no_key_while_it_is_not_there(demo, home):
    request = next(one for label, one in requests_of(demo, home) if label.startswith("decay"))
    values = vars(request.inputs)
    added = ("judge", Any, field(default=None, metadata={"since": "0.2"}))
    Later = make_dataclass("Later", [added], bases=(train.TrainInputs,), frozen=True)

    absent = Request(request.module, request.config, Later(**values))
    given = Request(request.module, request.config, Later(**values, judge="a model"))

    assert absent.key == request.key and recorded_inputs(absent.inputs) == recorded_inputs(request.inputs)
    assert given.key != request.key and key_inputs(given.inputs)["judge"] == "a model"


def test_a_later_input_needs_a_default():
    @dataclass(frozen=True)
    class Wrong:
        judge: str = field(metadata={"since": "0.2"})

    with pytest.raises(TypeError, match="needs a default"):
        key_inputs(Wrong("a"))


def test_what_documents_begin_with_is_in_the_keys_of_the_stages_that_read_it(demo, home, golden):
    """Of training too, by the manifest."""
    begun = demo.model_copy(update={"packing": demo.packing.model_copy(update={"begin": "bos"})})
    assert changed(begun, home, golden) == {"pack", "perplexity", "evaluate", "samples"}
