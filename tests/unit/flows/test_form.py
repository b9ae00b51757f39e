"""The form: what its schema offers and refuses; and that whatever it lets through means the same as in a YAML file."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect.utilities.schema_tools.validation import ValidationError, is_valid_schema, validate

from flows.config import load_config, parse_config
from flows.entrypoints import evaluate, pretrain
from flows.tuning import tune
from flows.ui.changed_most import KEYS, Changes, changed
from flows.ui.form import form_schema, form_values
from storage.counts import count_text, parse_count
from storage.errors import ConfigError
from storage.units import parse_seconds, seconds_text
from tests.support import ROOT

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
SCHEMA = form_schema(pretrain)


def shown(path) -> dict[str, Any]:
    raw = {
        "config": load_config(path).model_dump(mode="json"),
        "force": [],
        "until": "report",
        "slices": None,
    }
    return form_values(raw, SCHEMA)


def with_value(dotted: str, value: Any) -> dict[str, Any]:
    """The demo's parameters with one of them changed."""
    changed = copy.deepcopy(shown(ROOT / "configs" / "demo.yaml"))
    node: Any = changed
    *path, last = dotted.split(".")
    for step in path:
        node = node[int(step) if step.isdigit() else step]
    node[last] = value
    return changed


def properties(schema: dict[str, Any] = SCHEMA) -> list[tuple[str, dict[str, Any]]]:
    """Every property of every section, by `Section.name`."""
    found = [("", schema)] + [(f"{n}.", d) for n, d in schema["definitions"].items() if "properties" in d]
    return [(prefix + name, p) for prefix, d in found for name, p in d["properties"].items()]


def resolved(prop: dict[str, Any]) -> dict[str, Any]:
    """The property as the UI reads it: a reference is looked up by its last part."""
    reference = prop.get("$ref")
    return {**SCHEMA["definitions"][reference.rsplit("/", 1)[-1]], **prop} if reference else prop


def test_the_schema_is_one_that_the_server_takes():
    assert is_valid_schema(SCHEMA) is None  # raises where it is not
    assert is_valid_schema(form_schema(evaluate)) is None and is_valid_schema(form_schema(tune)) is None


_DRAWN = {
    "title",
    "description",
    "type",
    "properties",
    "required",
    "anyOf",
    "items",
    "enum",
    "format",
    "default",
}


def drawn(schema: Any) -> Any:
    """A schema as the UI sends it back to be checked before it submits: without what it does not draw."""
    if isinstance(schema, list):
        return [drawn(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: {name: drawn(one) for name, one in value.items()} if key == "properties" else drawn(value)
        for key, value in schema.items()
        if key in _DRAWN or key == "$ref"
    }


def test_the_form_can_be_checked_before_it_is_submitted():
    sent = drawn(SCHEMA) | {"definitions": {name: drawn(one) for name, one in SCHEMA["definitions"].items()}}
    assert "'$id'" not in str(sent)
    assert validate(shown(ROOT / "configs" / "demo.yaml"), sent) == []
    first = {"change": SCHEMA["properties"]["change"]["default"]}
    assert validate(shown(ROOT / "configs" / "demo.yaml") | first, sent) == [], "as the UI fills it in"
    wrong = with_value("config.training.learning_rate", "much")
    assert [error.json_path for error in validate(wrong, sent)] == ["$.config.training.learning_rate"]


def test_every_parameter_has_a_title_a_description_and_a_place():
    assert len(properties()) > 70
    for name, prop in properties():
        assert prop["title"], name
        assert len(prop["description"]) > 5 and prop["description"].endswith("."), (
            name,
            prop["description"],
        )
        assert isinstance(prop["position"], int), name
        assert "null" not in prop["description"], (name, prop["description"])


def test_nothing_is_shown_as_a_bare_union_or_as_raw_json():
    """Tabs only where there is a choice between sections; a JSON editor only for what the user names."""
    tabs, editors = set(), set()
    for name, prop in properties():
        seen = resolved(prop)
        if "anyOf" in seen:
            tabs.add(name)
        elif "type" not in seen or (seen["type"] == "object" and not seen.get("properties")):
            editors.add(name)
    assert tabs == {
        "ModelConfig.base",
        "TrainingConfig.schedule",
        "TrainingConfig.average",
        "TrainingConfig.stop",
        "DedupConfig.minhash",
        "DedupConfig.paragraphs",
        "SourceConfig.hub",
        "SourceConfig.like",
    }
    assert editors == {"FilterConfig.thresholds", "SourceConfig.where"}


def test_what_is_changed_most_stands_first():
    def order(section):
        return sorted(section["properties"], key=lambda name: section["properties"][name]["position"])

    assert order(SCHEMA)[0] == "change" and order(SCHEMA)[-1] == "config"
    assert order(SCHEMA["definitions"]["Changes"])[:2] == ["token_budgets", "learning_rate"]
    assert len(order(SCHEMA["definitions"]["Changes"])) == 10
    assert order(SCHEMA["definitions"]["RunConfig"])[:3] == ["name", "training", "model"]
    assert order(SCHEMA["definitions"]["TrainingConfig"])[:3] == [
        "token_budgets",
        "batch_tokens",
        "learning_rate",
    ]


def test_descriptions_are_shown_as_they_are_written():
    """The UI shows Markdown: outside of code, a browser would take `<split>` for a tag."""
    seen = SCHEMA["definitions"]["RunConfig"]["properties"]["benchmark_files"]["description"]
    assert "`<benchmark>/<split>.jsonl[.gz]`; " in seen
    for flow in (pretrain, evaluate, tune):
        for name, prop in properties(form_schema(flow)):
            bare = re.sub("`[^`]*`", "", prop["description"])
            assert not set(bare) & set("<*"), (name, bare)


def test_a_choice_of_sections_is_named_for_people():
    tabs = SCHEMA["definitions"]["TrainingConfig"]["properties"]["schedule"]["anyOf"]
    named = [SCHEMA["definitions"][tab["$ref"].rsplit("/", 1)[-1]]["title"] for tab in tabs]
    assert named == ["Warm up, hold, decay (wsd)", "Warm up anew in each round (rewarm)"]
    assert [tab["title"] for tab in tabs] == named, "the newer UI shows the tab's own"
    assert SCHEMA["definitions"]["AveragePlan"]["title"] == "On"


def test_the_short_form_changes_the_configuration_behind_it():
    run = load_config(ROOT / "configs" / "demo.yaml")
    assert changed(run, Changes()) is run
    given = {
        "token_budgets": ["200K"],
        "learning_rate": 1e-3,
        "batch_tokens": "2048",
        "warmup_tokens": "20K",
        "sequence_length": 128,
        "base": "openai-community/gpt2",
        "holdout_fraction": 0.2,
        "questions": 50,
        "device": "cpu",
        "seed": 7,
    }
    assert list(given) == list(KEYS) == list(Changes.model_fields)
    values = {**shown(ROOT / "configs" / "demo.yaml"), "change": given}
    validate(values, SCHEMA, raise_on_error=True)
    new = changed(run, Changes.model_validate(given))
    assert new.training.token_budgets == (200_000,) and new.training.schedule.warmup_tokens == 20_000
    assert new.training.batch_tokens == 2048 and new.training.learning_rate == 1e-3
    assert (new.packing.sequence_length, new.model.base) == (128, "openai-community/gpt2")
    assert (new.corpus.holdout_fraction, new.evaluation.limit, new.seed) == (0.2, 50, 7)
    assert new.corpus.sources == run.corpus.sources
    nothing = {**values, "change": dict.fromkeys(given)}
    validate(nothing, SCHEMA, raise_on_error=True)
    with pytest.raises(ValidationError, match=r"change\.learning_rate"):
        validate({**values, "change": {"learning_rate": 2}}, SCHEMA, raise_on_error=True)
    with pytest.raises(ConfigError, match=r"token_budgets.*rise"):
        changed(run, Changes.model_validate({"token_budgets": ["2M", "1M"]}))


def test_choices_are_lists():
    seen = {name: resolved(prop) for name, prop in properties()}
    assert seen["until"]["enum"][-1] == "report"
    assert "all" in seen["force"]["items"]["enum"]
    assert seen["TrainingExecution.compile"]["enum"] == ["auto", "on", "off"]
    assert seen["SourceConfig.python_docs"]["enum"] == ["domain", "general"]
    assert "hellaswag" in seen["EvaluationConfig.general"]["items"]["enum"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_configuration_comes_through_the_form_unchanged(path):
    values = shown(path)
    validate(values, SCHEMA, raise_on_error=True)
    assert parse_config(values["config"]) == load_config(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("config.training.batch_tokens", "4K"),
        ("config.training.batch_tokens", 4096),
        ("config.training.keep_every_tokens", None),
        ("config.training.keep_every_tokens", "4M"),
        ("config.training.token_budgets", ["400K", 1_000_000]),
        ("config.training.execution.micro_batch", "auto"),
        ("config.training.execution.micro_batch", "4"),
        ("config.training.execution.micro_batch", 4),
        ("config.training.execution.compile", "on"),
        ("config.training.execution.compile", False),
        ("config.training.execution.checkpoint_every", "5min"),
        ("config.training.execution.checkpoint_every", 30),
        ("config.training.execution.threads", None),
        ("config.training.schedule", {"kind": "rewarm", "warmup_tokens": "1M"}),
        ("config.corpus.dedup.minhash", None),
        ("config.corpus.dedup.paragraphs", {"min_characters": 40}),
        ("config.model.base", "openai-community/gpt2"),
        ("config.corpus.execution.executor", "dask://127.0.0.1:8786"),
    ],
)
def test_what_the_form_lets_through_is_a_configuration(field, value):
    values = with_value(field, value)
    validate(values, SCHEMA, raise_on_error=True)
    assert parse_config(values["config"]).name == "demo"


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("config.training.batch_tokens", "400X", "config.training.batch_tokens"),
        ("config.training.batch_tokens", 0, "config.training.batch_tokens"),
        ("config.training.batch_tokens", "0", "config.training.batch_tokens"),
        ("config.training.batch_tokens", None, "config.training.batch_tokens"),
        ("config.training.token_budgets", ["1M", "x"], "config.training.token_budgets[1]"),
        ("config.training.token_budgets", [], "config.training.token_budgets"),
        ("config.training.learning_rate", -1, "config.training.learning_rate"),
        ("config.training.execution.micro_batch", "four", "config.training.execution.micro_batch"),
        ("config.training.execution.compile", "maybe", "config.training.execution.compile"),
        (
            "config.training.execution.checkpoint_every",
            "5 moons",
            "config.training.execution.checkpoint_every",
        ),
        ("config.training.execution.threads", 0, "config.training.execution.threads"),
        ("config.training.execution.threads", 10**9, "config.training.execution.threads"),
        ("config.training.optimizer.betas", [0.9, 1.0], "config.training.optimizer.betas[1]"),
        ("config.training.keep_every_tokens", 0, "config.training.keep_every_tokens"),
        ("config.training.schedule", {"kind": "cosine"}, "config.training.schedule.kind"),
        ("config.training.schedule.decay_fraction", 2, "config.training.schedule.decay_fraction"),
        ("config.corpus.holdout_fraction", 0.9, "config.corpus.holdout_fraction"),
        ("config.corpus.sources.0.role", "other", "config.corpus.sources[0].role"),
        ("config.corpus.sources.0.python_docs", "x", "config.corpus.sources[0].python_docs"),
        ("config.model.base.layers", 0, "config.model.base.layers"),
        ("config.evaluation.limit", 1, "config.evaluation.limit"),
        ("config.evaluation.domain", ["mmlux"], "config.evaluation.domain[0]"),
        ("config.seeed", 1, "seeed"),
        ("config.seed", None, "config.seed"),
        ("until", "later", "until"),
        ("force", ["trian"], "force[0]"),
        ("slices", 0, "slices"),
        ("dry_run", "perhaps", "dry_run"),
    ],
)
def test_a_wrong_value_is_refused_with_the_field_named(field, value, named):
    with pytest.raises(ValidationError) as caught:
        validate(with_value(field, value), SCHEMA, raise_on_error=True)
    assert named in str(caught.value)


@pytest.mark.parametrize("flow", [pretrain, evaluate, tune])
def test_a_parameter_that_no_flow_has_is_refused(flow):
    """A server that took it would start a process that ends before the flow begins."""
    schema = {**form_schema(flow), "required": []}
    assert validate({}, schema) == []
    with pytest.raises(ValidationError, match="'nokey' was unexpected"):
        validate({"nokey": 1}, schema, raise_on_error=True)


@given(st.integers(0, 10**13))
def test_counts_are_written_exactly(count):
    assert parse_count(count_text(count)) == count


@given(st.one_of(st.integers(1, 10**6).map(float), st.floats(0.001, 10**6)))
def test_durations_are_written_exactly(seconds):
    assert parse_seconds(seconds_text(seconds)) == seconds


def test_short_texts():
    assert [count_text(n) for n in (400_000_000, 1_500_000, 524_288, 0)] == ["400M", "1.5M", "524288", "0"]
    assert [seconds_text(s) for s in (300.0, 0.5, 7200.0, 90.0)] == ["5min", "500ms", "2h", "90s"]
