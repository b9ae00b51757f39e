"""The configuration: a wrong one is refused with the key named; every field is identity or execution."""

from __future__ import annotations

import re

import pytest
import yaml
from pydantic import TypeAdapter

from flows.config import RunConfig, known_keys, load_config, parse_config
from storage.errors import ConfigError
from storage.settings import Section, identity_of, role_of, types_of
from tests.support import ROOT
from tests.support.runs import minimal

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def sections(model: type[Section], seen: set[type]) -> set[type]:
    """All configuration sections reachable from a model."""
    from flows.config import _sections

    if model not in seen:
        seen.add(model)
        for annotation in types_of(model).values():
            for below, _ in _sections(annotation):
                sections(below, seen)
    return seen


def test_every_field_of_every_section_is_identity_or_execution():
    found = sections(RunConfig, set())
    assert len(found) > 12
    for model in found:
        described = TypeAdapter(model).json_schema()["properties"]
        for field in types_of(model):
            assert role_of(model, field) in ("identity", "execution")
            assert described[field].get("description"), f"{model.__name__}.{field} has no description"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_configurations_are_valid(path):
    run = load_config(path)
    assert run.training.token_budgets
    assert identity_of(run)


@pytest.mark.parametrize("name", ["edu-125m", "textbooks-135m"])
def test_the_examples_for_one_gpu_and_a_laptop_say_why(name):
    """Of each key with a value of its own; a line of keys may be spoken of in its section's comment."""
    lines = [line for line in (ROOT / f"configs/{name}.yaml").read_text().splitlines() if ": " in line]
    bare = [line for line in lines if not line.startswith("#") and "  #" not in line]
    assert len(bare) < len(lines) / 4, bare
    assert re.search("^# For (one GPU|a laptop):", (ROOT / f"configs/{name}.yaml").read_text(), re.M)


def test_numbers_as_people_write_them():
    run = parse_config(minimal(training__execution={"checkpoint_every": "5min"}))
    assert run.training.token_budgets == (400_000, 1_000_000)
    assert run.training.learning_rate == pytest.approx(5e-4)
    assert run.training.execution.checkpoint_every == 300


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ({"training__batch_size": 3}, ["training.batch_size", "training.batch_tokens"]),
        ({"batch_tokens": 3}, ["batch_tokens", "training.batch_tokens"]),
        ({"corpus__slice_byte": 3}, ["corpus.slice_byte", "corpus.slice_bytes"]),
        ({"training__token_budgets": ["1M", "400K"]}, ["token_budgets", "rise"]),
        ({"training__batch_tokens": "many"}, ["training.batch_tokens", "many"]),
        (
            {"training__schedule": {"kind": "wsd", "decay": 0.1}},
            ["decay", "training.schedule.decay_fraction"],
        ),
        ({"corpus__sources": []}, ["corpus.sources"]),
        (
            {"corpus__sources": [{"name": "a", "role": "domain", "weight": 1}]},
            ["'a'", "files", "python_docs"],
        ),
        ({"training__precision": "fp8"}, ["training.precision", "bf16"]),
        (
            {"training__precision": "bf16_weights"},
            ["training.optimizer.stochastic_rounding", "must be true", "256th"],
        ),
        (
            {"training__optimizer": {"stochastic_rounding": True}},
            ["training.optimizer.stochastic_rounding", "must be false"],
        ),
        ({"training__optimizer": {"states": "4bit"}}, ["training.optimizer.states", "8bit"]),
        ({"training__optimizer": {"pull_to_base": 5000}}, ["training.optimizer.pull_to_base", "at most 1"]),
        (
            {"training__average": {"checkpoints": 1, "every_tokens": "1M"}},
            ["training.average.checkpoints", "2"],
        ),
        (
            {
                "training__optimizer": {"states": "8bit"},
                "training__execution": {"sharding": "full", "processes": 2},
            },
            ["training.execution.sharding", "8bit"],
        ),
        ({"name": "a/b"}, ["name"]),
        (
            {
                "training__stop": {"source": "a", "patience_tokens": "100K"},
                "corpus__holdout_fraction": 0,
            },
            ["training.stop needs held-out text", "corpus.holdout_fraction above 0"],
        ),
    ],
)
def test_a_wrong_configuration_is_refused_with_the_key_named(over, words):
    with pytest.raises(ConfigError) as caught:
        parse_config(minimal(**over))
    for word in words:
        assert word in str(caught.value)


def test_overrides(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(minimal()))
    run = load_config(path, ["training.token_budgets=[40M, 100M]", "seed=7", "model.dropout=0.1"])
    assert (run.training.token_budgets, run.seed, run.model.dropout) == ((40_000_000, 100_000_000), 7, 0.1)
    with pytest.raises(ConfigError, match="key=value"):
        load_config(path, ["seed"])


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "a: [1\n", "\x00"])
def test_a_file_that_is_no_configuration_is_refused(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="run.yaml"):
        load_config(path)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("corpus.filter.c4=banana", "corpus.filter.c4: Input should be a valid boolean"),
        ("corpus.filter.c5=true", "corpus.filter.c5: unknown key; did you mean corpus.filter.c4"),
        ("corpus.filter.thresholds.gopher_short=x", "corpus.filter.thresholds.gopher_short: "),
        ("corpus.sources.0.weight=.inf", "corpus.sources[0].weight: Input should be a finite number"),
        ("corpus.sources[0].weight=-1", "corpus.sources[0].weight: "),
        ("corpus.sources.0.path=a", "corpus.sources[0].path: unknown key"),
        ("corpus.sources.0.hub.split=a b", "corpus.sources[0].hub.split: "),
        ("corpus.sources.1.weight=1", "1 is no entry of the list (there are: 0)"),
        ("corpus.sources.x=1", "x is no entry of the list"),
        ("corpus.dedup.minhash.bands=0.5", "corpus.dedup.minhash.bands: "),
        ("corpus.execution.workers=null", "corpus.execution.workers: "),
        (
            "corpus.execution.workers=0",
            "corpus.execution.workers: Input should be greater than or equal to 1",
        ),
        ("model.base={init: {layers: 0}}", "model.base.init.layers: Input should be greater"),
        (
            "model.base={init: {layer: 2}}",
            "model.base.init.layer: unknown key; did you mean model.base.init.layers",
        ),
        ("model.base={init: {heads: true}}", "model.base.init.heads: must be a number, not true"),
        ("model.base=3", "model.base: Input should be a valid string"),
        ("training.schedule={kind: wsd, decay: 1}", "training.schedule.decay: unknown key"),
        (
            "training.schedule={kind: rewarm, warmup_tokens: x}",
            "training.schedule.warmup_tokens: 'x' is not a count",
        ),
        (
            "training.schedule={kind: linear}",
            "training.schedule: must be a section whose kind is one of wsd, rewarm",
        ),
        ("training.average.checkpoints=1", "training.average.checkpoints: "),
        ("training.token_budgets=[1M, true]", "training.token_budgets[1]: must be a count, not true"),
        ("training.learning_rate=1e400", "training.learning_rate: Input should be a finite number"),
        (
            "training.learning_rate=null",
            "training.learning_rate: Input should be a valid number (given: None)",
        ),
        ("training.execution.micro_batch=null", "training.execution.micro_batch: "),
        ("evaluation.own=[{name: a, questions: 0}]", "evaluation.own[0].questions: "),
        ("evaluation.own=[3]", "evaluation.own[0]: must be a section of keys and values"),
        ("corpus=null", "corpus: must be a section of keys and values"),
        ("corpus.sources={}", "corpus.sources: must be a list"),
        ("seed=" + "9" * 5000, "--set seed: line 1: a number of 5,000 digits"),
        ("seed='" + "9" * 5000 + "'", "seed: a text of 5,000 characters is no number"),
        ("seed=9223372036854775808", "seed: is beyond 9223372036854775807"),
        ("name=2026-02-30", "--set name: line 1: 2026-02-30 is a date"),
        ("name={a: 1, a: 2}", "--set name: line 1: a: stands a second time"),
        ("store=''", "store: is empty"),
        ('store="a\\0b"', "store: 'a\\x00b' holds a control character"),
        ("store=" + "x" * 5000, "store: a path of 5,000 characters is too long"),
        ("store=null", "store: Input should be a valid string"),
    ],
    ids=lambda value: value[:40],
)
def test_an_override_is_refused_under_the_full_name_of_its_key(tmp_path, override, words):
    path = tmp_path / "run.yaml"
    raw = minimal()
    raw["corpus"]["sources"][0]["hub"] = None
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(ConfigError) as caught:
        load_config(path, [override])
    assert words in str(caught.value)
    assert len(str(caught.value)) < 1500


def test_an_override_reaches_into_a_list(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(minimal()))
    for written in ("corpus.sources.0.weight", "corpus.sources[0].weight"):
        assert load_config(path, [f"{written}=3"]).corpus.sources[0].weight == 3


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    "over",
    [
        {"name": "other"},
        {"store": "elsewhere"},
        {"corpus__execution": {"workers": 7}},
        {"training__execution": {"micro_batch": 2, "checkpoint_every": "1s", "device": "cpu"}},
        {"tracking": {"mlflow_uri": "http://127.0.0.1:1"}},
        {"benchmark_files": "/nowhere"},
    ],
)
def test_execution_is_not_in_the_identity(over):
    assert identity_of(parse_config(minimal(**over))) == identity_of(parse_config(minimal()))


def test_keys_are_known_by_dotted_name():
    keys = set(known_keys(RunConfig))
    assert {
        "corpus.sources[].weight",
        "training.schedule.decay_fraction",
        "corpus.dedup.minhash.ngram",
    } <= keys


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"optimizer": {"betas": [0.9, 1.0]}}, r"training\.optimizer\.betas\[1\]: .* less than 1"),
        ({"optimizer": {"betas": [-0.1, 0.9]}}, r"training\.optimizer\.betas\[0\]: .* equal to 0"),
        ({"optimizer": {"eps": float("inf")}}, r"training\.optimizer\.eps: .* finite"),
        (
            {"optimizer": {"esp": 1e-8}},
            r"training\.optimizer\.esp: unknown key; did you mean training\.optimizer\.eps",
        ),
        ({"keep_every_tokens": 0}, r"training\.keep_every_tokens: .* greater than 0"),
        ({"execution": {"micro_batch": 0}}, r"training\.execution\.micro_batch: .* equal to 1"),
        ({"execution": {"threads": 10**9}}, r"training\.execution\.threads: .* equal to 4096"),
        ({"execution": {"nodes": 2}}, r"training\.execution\.rendezvous must be host:port"),
    ],
)
def test_what_the_trainer_would_refuse_the_configuration_refuses_by_the_same_bounds(changes, named):
    with pytest.raises(ConfigError, match=named):
        parse_config(minimal(**{f"training__{key}": value for key, value in changes.items()}))
