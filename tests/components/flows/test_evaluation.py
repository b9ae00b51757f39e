"""A given model is measured as a run measures its own: the same stages, the same keys, so the same scores."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

from flows.config import TrackingConfig, load_config
from flows.dag.plan import make_plan
from flows.dag.pretrain import adapt, describe, measure, scores_of
from flows.dag.requests import Requests
from flows.dag.state import Model, Outcome
from flows.inspect.export import export_model
from flows.lineage.graph import as_text, graph_of
from flows.lineage.names import resolve
from flows.runs.checks import check
from flows.runs.evaluate import Evaluation, held_out_of, measures_of, model_of
from storage.artifact import Artifact
from storage.catalog import Catalog
from storage.errors import ConfigError, HubUnreachable, OnwardError, StageFailed
from storage.runs import RunRecord, write_record
from storage.store import Request, Store
from tasks.evaluation import samples
from tasks.evaluation.catalog import EvaluationConfig, OwnBenchmark
from tasks.models.merge import MergePlan
from tests.support.small import write_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ran(tmp_path_factory, reference_run):
    """A store with a whole small run in it, to be written to: (home, store, configuration of its first budget)."""
    home = tmp_path_factory.mktemp("ran")
    shutil.copytree(reference_run, home, symlinks=True, dirs_exist_ok=True)
    path = write_config(home, budgets=("8K",))
    store = Store(home / "store")
    made = tuple((artifact.stage, artifact.key) for artifact in store.artifacts())
    write_record(store, RunRecord("small-abcdef", "small", json.loads(path.read_text()), made))
    return home, store, load_config(path)


@pytest.fixture(autouse=True)
def at_home(ran, monkeypatch):
    monkeypatch.setenv("ONWARD_HOME", str(ran[0]))


def wanted(config: Any, /, **over: Any) -> Evaluation:
    given: dict[str, Any] = {
        "model": "",
        "benchmarks": config.evaluation,
        "run": "small",
        "sequence_length": config.packing.sequence_length,
        "seed": config.seed,
        "device": "cpu",
        "benchmark_files": None,
        "store": "store",
        "name": "evaluation",
        "tracking": TrackingConfig(),
    }
    return Evaluation(**{**given, **over})


def builder(store: Store, states: list[tuple[str, str]]) -> Callable[..., Artifact]:
    """Makes stages by the store alone; `states` keeps (stage, what was done)."""

    def build(request: Request, **named: object) -> Artifact:
        outcome = store.ensure(request)
        states.append((request.stage, outcome.state))
        return outcome.artifact

    return build


def measured(store: Store, asked: Evaluation) -> tuple[Model, list[tuple[str, str]]]:
    states: list[tuple[str, str]] = []
    build = builder(store, states)
    holdouts = held_out_of(store, asked.run) if asked.run else {}
    model, outcome = model_of(asked, store, build), Outcome()
    measure(measures_of(asked, holdouts, lambda text: None), build, outcome, model, holdouts)
    return model, states


def test_what_the_run_has_measured_is_found(ran):
    _, store, run = ran
    trained = next(artifact for artifact in store.artifacts() if artifact.stage == "decay")
    model, states = measured(store, wanted(run, model=trained.key[:10]))
    assert {state for _, state in states} == {"cached"}
    assert {"perplexity/domain", "perplexity/general", "eval/continuation/acc"} <= set(scores_of(model))
    assert model.tokens == trained.stats["tokens_seen"] > 7000


def test_a_directory_is_imported_and_gives_the_same_scores(ran):
    home, store, run = ran
    trained = next(artifact for artifact in store.artifacts() if artifact.stage == "decay")
    shutil.copytree(trained.path / "export", home / "given", copy_function=shutil.copyfile)
    known, _ = measured(store, wanted(run, model=f"decay/{trained.key[:6]}"))
    given, states = measured(store, wanted(run, model="given"))
    assert ("base", "built") in states
    assert scores_of(given) == pytest.approx(scores_of(known))


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ({"run": "other"}, "has no run 'other' (there are: small-abcdef)"),
        ({"run": None}, "nothing to measure"),
        ({"model": "decay/000000"}, "no artifact"),
        ({"model": "nowhere/at-all"}, "nowhere/at-all"),
        ({"sequence_length": 4096}, "sequence_length 4,096 is longer than the 128 positions"),
        ({"benchmarks": EvaluationConfig(domain=("mmlux",))}, "mmlux is not supported"),
        (
            {"benchmarks": EvaluationConfig(domain=("sciq",)), "benchmark_files": "nowhere"},
            "sciq has no file",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(ran, over, words):
    _, store, run = ran
    key = next(artifact.key for artifact in store.artifacts() if artifact.stage == "decay")
    with pytest.raises((ConfigError, HubUnreachable)) as caught:
        measured(store, wanted(run, **{"model": f"decay/{key[:8]}", **over}))
    assert words in str(caught.value)


def test_a_trunk_is_no_model(ran):
    _, store, run = ran
    trunk = next(a for a in store.artifacts() if a.stage == "train" and not a.has("export"))
    with pytest.raises(ConfigError, match="holds no model"):
        measured(store, wanted(run, model=f"train/{trunk.key[:8]}"))


@pytest.mark.parametrize("name", ["../up", "/etc/x", "a/b", "", "x" * 61])
def test_a_name_that_leads_elsewhere_is_refused(ran, name):
    with pytest.raises(ValidationError, match="name"):
        wanted(ran[2], name=name)


def test_its_id_is_of_what_is_measured_alone(ran):
    _, _, run = ran
    one = wanted(run, model="given")
    elsewhere = wanted(run, model="given", store="/elsewhere", device="auto", name="other")
    assert one.id == elsewhere.id
    assert one.id != wanted(run, model="given", sequence_length=32).id
    assert one.title.startswith("evaluation · given · ")
    assert Path(wanted(run, model="/a/b/model").title.split(" · ")[1]).name == "model"


def questions(home: Path, name: str, rows: int, bad: bool = False) -> Path:
    """A benchmark of the user's in `home`; a bad one has no question in its last row."""
    lines = [
        {"question": f"the {word} of", "choices": ["the", "and that"], "answer": place % 2}
        for place, word in enumerate(["value", "type", "name", "object", "class", "form"][:rows])
    ]
    lines[-1] |= {"question": ""} if bad else {}
    path = home / f"{name}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def with_own(config: Any, home: Path, *names: str) -> Any:
    """The run's configuration with further benchmarks of the user's."""
    own = tuple(OwnBenchmark(name=name, file=str(home / f"{name}.jsonl")) for name in names)
    section = config.evaluation.model_copy(update={"own": (*config.evaluation.own, *own)})
    return config.model_copy(update={"evaluation": section})


def adapted(store: Store, config: Any) -> tuple[Outcome, list[tuple[str, str]], OnwardError | None]:
    """The run's DAG over the store: what it came to, what was done, and what it ended with."""
    states: list[tuple[str, str]] = []
    outcome, error = Outcome(), None
    try:
        adapt(Requests(config, store, lambda text: None), builder(store, states), outcome=outcome)
    except OnwardError as caught:
        error = caught
    return outcome, states, error


def test_a_failed_benchmark_fails_alone_and_is_retried_alone(ran):
    home, store, run = ran
    questions(home, "sound", 4)
    questions(home, "broken", 4, bad=True)
    config = with_own(run, home, "broken", "sound")
    outcome, states, error = adapted(store, config)
    assert isinstance(error, StageFailed) and "broken of base: broken.jsonl, row 4" in str(error)
    assert "broken of 8K" in str(error) and outcome.report is None
    assert [sorted(model.scores) for model in outcome.models] == [["continuation", "sound"]] * 2
    assert [stage for stage, state in states if state == "built"].count("evaluate") == 2
    questions(home, "broken", 4)  # put right
    outcome, states, error = adapted(store, config)
    assert error is None and outcome.report is not None
    built = [stage for stage, state in states if state == "built"]
    counted = ("contamination", "data")  # its questions, which are others now
    assert sorted(stage for stage in built if stage not in counted) == ["evaluate", "evaluate", "report"]
    assert all(set(model.scores) == {"continuation", "sound", "broken"} for model in outcome.models)


def test_one_failure_is_told_in_its_own_words(ran):
    home, store, run = ran
    questions(home, "alone", 3, bad=True)
    asked = wanted(run, model=next(a.key for a in store.artifacts() if a.stage == "decay"), run=None)
    own = (OwnBenchmark(name="alone", file=str(home / "alone.jsonl")),)
    asked = asked.model_copy(update={"benchmarks": EvaluationConfig(own=own)})
    with pytest.raises(
        ConfigError, match=r"alone.jsonl, line 3: question is empty"
    ):  # before anything is measured
        measures_of(asked, {}, lambda text: None)
    questions(home, "alone", 3)
    measures, outcome, build = measures_of(asked, {}, lambda text: None), Outcome(), builder(store, [])
    questions(home, "alone", 3, bad=True)  # and where it was changed since, while it is measured
    with pytest.raises(OnwardError, match=r"alone.jsonl"):
        measure(measures, build, outcome, model_of(asked, store, build), {})
        outcome.settle()


def test_a_new_benchmark_evaluates_only_that(ran):
    home, store, run = ran
    questions(home, "early", 5)
    _, _, error = adapted(store, with_own(run, home, "early"))
    assert error is None
    questions(home, "later", 6)
    outcome, states, error = adapted(store, with_own(run, home, "early", "later"))
    assert error is None and "later" in outcome.models[-1].scores
    assert sorted(stage for stage, state in states if state == "built") == [
        "contamination",  # its questions counted in the corpus, which was made without knowing them
        "data",
        "evaluate",
        "evaluate",
        "report",
    ]
    limited = with_own(run, home, "early", "later")
    section = limited.evaluation.model_copy(update={"limit": 3})
    _, states, _ = adapted(store, limited.model_copy(update={"evaluation": section}))
    assert [stage for stage, state in states if state == "built"].count("evaluate") == 6  # other settings


def test_a_reports_lineage_names_the_files_of_its_benchmarks(ran):
    home, store, run = ran
    scored = questions(home, "scored", 5)
    outcome, _, error = adapted(store, with_own(run, home, "scored"))
    assert error is None and outcome.report is not None and "scored" in outcome.counted
    digest = hashlib.sha256(scored.read_bytes()).hexdigest()
    entered = {
        (graph.nodes[key].stage, one.name, one.digest)
        for graph in [graph_of(store, outcome.report)]
        for key, found in graph.outside.items()
        for one in found
        if one.kind == "benchmark" and one.group == "scored"
    }
    assert entered == {("evaluate", "questions", digest), ("contamination", "scored.jsonl", digest)}
    text = as_text(graph_of(store, outcome.report))
    assert f"benchmark scored · questions  sha256 {digest}" in text
    assert f"package evaluation · lm_eval  version {version('lm_eval')}" in text


def test_every_model_continues_the_prompts_and_other_prompts_make_nothing_else_again(ran):
    _, store, run = ran
    outcome, _, _ = adapted(store, run)
    for model in outcome.models:
        rows = json.loads(model.samples.part("samples").only().read_text())
        assert {row["prompt"] for row in rows} == set(samples.PROMPTS)
    section = run.evaluation.model_copy(update={"prompts": ("def main",)})
    outcome, states, _ = adapted(store, run.model_copy(update={"evaluation": section}))
    assert {stage for stage, state in states if state == "built"} <= {"samples", "report"}
    rows = json.loads(outcome.models[-1].samples.part("samples").only().read_text())
    assert "def main" in {row["prompt"] for row in rows}
    section = run.evaluation.model_copy(update={"sample_tokens": 0})
    outcome, states, _ = adapted(store, run.model_copy(update={"evaluation": section}))
    assert outcome.models[0].samples is None and "samples" not in {stage for stage, _ in states}


def test_what_training_kept_on_its_way_is_measured_on_request(ran):
    _, store, run = ran
    training = run.training.model_copy(update={"keep_every_tokens": 2000})
    section = run.evaluation.model_copy(update={"checkpoints": True})
    config = run.model_copy(update={"training": training, "evaluation": section})
    outcome, states, error = adapted(store, config)
    assert error is None and [model.name for model in outcome.models] == ["base", "8K"]
    assert [model.name for model in outcome.between] == ["2K trunk", "4K trunk", "6K trunk"]
    assert [model.tokens for model in outcome.between] == [2000, 4000, 6000]
    for model in outcome.between:
        files = {path.name for path in model.export.part("export").paths}
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= files
        assert not files & {"optimizer.safetensors", "state.json"}
        assert set(model.perplexity) == {"domain", "general"} and set(model.scores) == {"continuation"}
    way = [model.perplexity["domain"].stats["perplexity"] for model in outcome.between]
    base = outcome.models[0].perplexity["domain"].stats["perplexity"]
    assert base > way[0] > way[1] > way[2]
    assert [one["name"] for one in describe(outcome)] == ["base", "2K trunk", "4K trunk", "6K trunk", "8K"]
    assert all((store.root / one["path"] / "config.json").is_file() for one in describe(outcome))
    _, states, _ = adapted(store, config)
    assert {state for _, state in states} == {"cached"}
    plain = config.model_copy(update={"evaluation": run.evaluation})
    outcome, states, _ = adapted(store, plain)
    assert not outcome.between and {state for _, state in states} == {"cached"}  # the report is the same
    with pytest.raises(ConfigError, match=r"set training\.keep_every_tokens"):
        check(run.model_copy(update={"evaluation": section}))


def test_models_between_are_made_measured_and_found_by_their_names(ran):
    home, store, run = ran
    training = run.training.model_copy(update={"keep_every_tokens": 2000})
    plan = MergePlan(interpolate=(0.5,), average=2)
    config = run.model_copy(update={"training": training, "merge": plan})
    check(config)
    rows = {(row.stage, row.item): row.state for row in make_plan(config)}
    assert rows["merge", "alpha-0.5"] in ("to build", "open") and rows["merge", "average-2"] in (
        "to build",
        "open",
    )
    outcome, _, error = adapted(store, config)
    assert error is None and [model.name for model in outcome.merged] == ["8K-alpha-0.5", "8K-average-2"]
    assert [model.tokens for model in outcome.merged] == [8000, 6000]
    for model in outcome.merged:
        assert set(model.perplexity) == {"domain", "general"} and set(model.scores) == {"continuation"}
    between, mean = (one.perplexity["domain"].stats["perplexity"] for one in outcome.merged)
    base, trained = (one.perplexity["domain"].stats["perplexity"] for one in outcome.models)
    assert trained < between < base and mean < base
    assert [one["name"] for one in describe(outcome)] == ["base", "8K", "8K-alpha-0.5", "8K-average-2"]
    facts = json.loads((outcome.report.path / "report.json").read_bytes())
    assert [one["name"] for one in facts["merges"]["points"]] == [
        "base",
        "8K-alpha-0.5",
        "8K",
        "8K-average-2",
    ]
    _, states, _ = adapted(store, config)
    assert {state for _, state in states} == {"cached"}
    _, states, _ = adapted(store, config.model_copy(update={"merge": MergePlan(interpolate=(0.25, 0.5))}))
    assert [stage for stage, state in states if state == "built"] == [
        "merge", "perplexity", "perplexity", "evaluate", "report",
    ]  # fmt: skip

    made = [
        (one.stage, one.key)
        for model in (*outcome.models, *outcome.merged)
        for one in (model.export, *model.journals)
    ]
    record = json.loads(write_config(home, "merged", ("8K",), training__keep_every_tokens=2000).read_text())
    write_record(store, RunRecord("merged-abcdef", "merged", record, tuple(dict.fromkeys(made))))
    named = {
        name: resolve(f"merged:{name}", store.root)[1]
        for name in ("8K-alpha-0.5", "8K-average-2", "8K-trunk", "base")
    }
    assert [named[one.name].key for one in outcome.merged] == [one.export.key for one in outcome.merged]
    assert named["8K-trunk"].key == outcome.models[-1].journals[0].key
    for name, one in named.items():
        export_model(Catalog(store), one, home / f"out-{name}")
        AutoModelForCausalLM.from_pretrained(home / f"out-{name}")
        AutoTokenizer.from_pretrained(home / f"out-{name}")
    card = (home / "out-8K-alpha-0.5" / "README.md").read_text()
    assert "0.5 × those of the base + 0.5 × those after training" in card and " tokens seen, the text" in card
    assert "It is the trunk before its rate decays" in (home / "out-8K-trunk" / "README.md").read_text()
    weights = home / "out-8K-trunk" / "model.safetensors"
    assert weights.read_bytes() == (named["8K-trunk"].path / "trunk" / "model.safetensors").read_bytes()


def test_too_few_kept_checkpoints_are_told_and_the_others_are_made(ran):
    _, store, run = ran
    training = run.training.model_copy(update={"keep_every_tokens": 3000})
    config = run.model_copy(update={"training": training, "merge": MergePlan(interpolate=(0.5,), average=3)})
    with pytest.raises(
        ConfigError, match=r"merge\.average: 3 checkpoints .* keeps 2; lower training\.keep_every"
    ):
        check(config)
    outcome, _, error = adapted(store, config)
    assert isinstance(error, ConfigError) and "kept 2; lower training.keep_every_tokens" in str(error)
    assert [model.name for model in outcome.merged] == ["8K-alpha-0.5"] and outcome.report is None


def test_a_kept_checkpoint_that_cannot_be_exported_ends_neither_training_nor_measuring(ran, tmp_path):
    shutil.copytree(ran[1].root, tmp_path / "store", symlinks=True)
    store, run = Store(tmp_path / "store"), ran[2]
    training = run.training.model_copy(update={"keep_every_tokens": 4000, "token_budgets": (8000, 12000)})
    section = run.evaluation.model_copy(update={"checkpoints": True})
    config = run.model_copy(update={"training": training, "evaluation": section})
    place = store.root / "checkpoint"
    shutil.rmtree(place, ignore_errors=True)
    place.write_text("a file where the stage's directory should be")
    outcome, _, error = adapted(store, config)
    assert [(model.name, sorted(model.scores)) for model in outcome.models] == [
        ("base", ["continuation"]),
        ("8K", ["continuation"]),
        ("12K", ["continuation"]),
    ]
    assert "export of 4K trunk" in outcome.failed and "export of 8K trunk" in outcome.failed
    assert error is not None and outcome.report is None and not outcome.between
    assert outcome.data is not None
    place.unlink()
    outcome, states, error = adapted(store, config)
    assert error is None and [model.name for model in outcome.between] == ["4K trunk", "8K trunk"]
    assert not {stage for stage, state in states if state == "built"} & {"train", "decay"}
