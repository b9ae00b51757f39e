"""A tuning's grid, its standings and its page; the trials themselves run in tests/system/test_tune.py."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path
from typing import Any

import pytest

from flows.config import load_config, parse_config, with_overrides
from flows.runs.trials import Trial, budgets_override, grid, next_command, rungs_of
from flows.tuning import Asked, _Tuning, execute, planned_trials, told_as
from flows.ui.console import Console
from storage.errors import ConfigError, OnwardError
from tasks.pages.blocks import Picture
from tasks.pages.canvas import as_svg, save
from tasks.pages.html import html_of
from tasks.pages.markdown import markdown_of
from tasks.pages.report.facts import Within
from tasks.pages.report.tuning import (
    Standing,
    TrialRow,
    TuningFacts,
    front_of,
    pareto_figure,
    ranked,
    tuning_blocks,
)
from tests.support.runs import minimal


def configured(**over: Any) -> Any:
    sources = [
        {"name": "a", "role": "domain", "weight": 3, "python_docs": "domain"},
        {"name": "b", "role": "replay", "weight": 1, "python_docs": "general"},
        {"name": "c", "role": "replay", "weight": 0, "files": ["c.txt"]},
    ]
    return parse_config(minimal(corpus__sources=sources, **over))


def test_every_combination_is_a_trial_in_order() -> None:
    trials = grid(
        configured(),
        ["training.learning_rate = 1e-3, 2e-3", "training.optimizer.betas=[0.9,0.95],[0.9,0.99]"],
    )
    assert [trial.overrides for trial in trials] == [
        (f"training.learning_rate={rate}", f"training.optimizer.betas={betas}")
        for rate in ("1e-3", "2e-3")
        for betas in ("[0.9,0.95]", "[0.9,0.99]")
    ]
    assert trials[0].name == "learning_rate 1e-3 · betas [0.9,0.95]"


def test_the_replay_share_keeps_the_proportions_within_a_role(tmp_path: Path) -> None:
    (trial,) = grid(configured(), ["replay=0.2"])
    assert trial.overrides == ("corpus.sources[0].weight=0.8", "corpus.sources[1].weight=0.2")
    path = tmp_path / "c.yaml"
    path.write_text(
        "name: c\ncorpus: {sources: [{name: a, role: domain, weight: 3, python_docs: domain}, "
        "{name: b, role: replay, weight: 1, python_docs: general}]}\nmodel: {base: m}\n"
        "packing: {sequence_length: 64}\ntraining: {token_budgets: [1M], batch_tokens: 64}\n"
    )
    assert [source.weight for source in load_config(path, trial.overrides).corpus.sources] == [0.8, 0.2]


@pytest.mark.parametrize(
    ("vary", "words"),
    [
        ([], "nothing is varied"),
        (["training.learning_rate"], "key=value"),
        (["training.learning_rate="], "key=value"),
        (["training.learning_rate=1,,2"], "key=value"),
        (["training.learning_rate=1,1"], "different values"),
        (["=1,2"], "key=value"),
        (["a.b=1,2", "a.b=3"], "varied twice"),
        (["training.token_budgets=1M,2M"], "same in all trials"),
        (["training.execution.threads=1,2"], "same in all trials"),
        (["replay=0.1,1"], "below 1"),
        (["replay=x"], "below 1"),
        (["replay=-0.1"], "below 1"),
        ([f"{name}=1,2,3,4,5,6" for name in "abc"], "216 trials"),
    ],
)
def test_what_is_no_grid_is_refused(vary: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        grid(configured(), vary)


def test_an_override_of_a_configuration_is_that_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "name: c\ncorpus: {sources: [{name: a, role: domain, weight: 3, python_docs: domain}]}\nmodel: {base: m}\n"
        "packing: {sequence_length: 64}\ntraining: {token_budgets: [1M], batch_tokens: 64, learning_rate: 1e-3}\n"
    )
    run = load_config(path)
    for overrides in (
        ["training.learning_rate=2e-3", "training.token_budgets=[4K, 8K]"],
        ["training.schedule.kind=rewarm"],
        ["corpus.sources[0].weight=0.8", "training.optimizer.weight_decay=1"],
        ["training.stop={source: a, patience_tokens: 4K}"],
        [],
    ):
        assert with_overrides(run, overrides) == load_config(path, overrides)
    with pytest.raises(ConfigError, match=r"training\.learning_rate"):
        with_overrides(run, ["training.lerning_rate=1"])


def test_replay_needs_both_roles() -> None:
    alone = parse_config(minimal())
    with pytest.raises(ConfigError, match="both roles"):
        grid(alone, ["replay=0.1"])


def test_budgets_of_trials_rise_and_stay_below_the_last() -> None:
    run = configured()  # 400K, 1M; 4,096 a step
    assert rungs_of(run, []) == [40_000]
    assert rungs_of(run, [8192, 65536]) == [8192, 65536]
    for wrong in ([0], [-1], [5, 5], [9, 4], [2_000_000]):
        with pytest.raises(ConfigError, match="--budgets"):
            rungs_of(run, wrong)
    assert rungs_of(configured(training__token_budgets=["8K"]), []) == [4096]


def test_the_next_command_goes_on_to_the_budgets_beyond() -> None:
    trial = Trial({"training.learning_rate": "2e-3"}, ("training.learning_rate=2e-3",))
    overrides, command = next_command(
        Path("my file.yaml"), configured(), ["seed=3"], trial, [64_000, 500_000]
    )
    assert overrides == [
        "seed=3",
        "training.learning_rate=2e-3",
        budgets_override([64_000, 500_000, 1_000_000]),
    ]
    assert command == (
        "onward run 'my file.yaml' --set seed=3 --set training.learning_rate=2e-3 --set "
        "'training.token_budgets=[64K, 500K, 1M]'"
    )


def row(name: str, *standings: tuple[float, float | None]) -> TrialRow:
    made = {
        1000 * 2**place: Standing(
            Within(domain, domain - 0.01, domain + 0.01),
            None if general is None else Within(general, None, None),
        )
        for place, (domain, general) in enumerate(standings)
    }
    return TrialRow(name=name, values={"x": name}, run=f"r-{name}", report=f"report/{name}", standings=made)


def test_the_best_gains_more_than_it_loses() -> None:
    careful, bold, dropped = row("careful", (-0.2, 0.01)), row("bold", (-0.3, 0.2)), row("early", (-0.5, 0.0))
    later = row("later", (-0.1, 0.0), (-0.15, -0.05))
    assert [one.name for one in ranked([bold, careful], 1.0)] == ["careful", "bold"]
    assert [one.name for one in ranked([bold, careful], 0.0)] == ["bold", "careful"]
    assert [one.name for one in ranked([dropped, later], 1.0)] == ["later", "early"]
    assert math.isclose(
        later.last.score(1.0), -0.15
    )  # a gain on general text does not make up for the domain


def test_the_front_holds_what_nothing_beats() -> None:
    a, b, c = row("a", (-0.3, 0.2)), row("b", (-0.2, 0.01)), row("c", (-0.2, 0.05))
    twin = row("twin", (-0.2, 0.01))
    assert [one.name for one in front_of([a, b, c, twin])] == ["a", "b", "twin"]
    assert [one.name for one in front_of([row("d", (-0.1, None)), row("e", (-0.2, None))])] == ["e"]


def facts_of(*rows: TrialRow) -> TuningFacts:
    order = ranked(rows, 1.0)
    return TuningFacts(
        trials=tuple(order),
        forgetting=1.0,
        front=tuple(one.name for one in front_of(order)),
        runner_up="Against the second.",
        command="onward run c.yaml --set x=1",
        found="It finds 2 of 4.",
    )


def test_the_page_says_what_was_chosen_and_how_to_go_on(tmp_path: Path) -> None:
    facts = facts_of(row("bold", (-0.3, 0.2)), row("careful", (-0.2, 0.01)), row("worse", (-0.1, 0.5)))
    (tmp_path / "figures").mkdir()
    save(lambda tips: pareto_figure(facts, tips), tmp_path / "figures", "pareto")
    blocks = tuning_blocks(facts, "demo", [Picture("pareto", "A figure.")])
    page, text = html_of(blocks, tmp_path), markdown_of(blocks)
    for words in ("Best of 3: careful.", "onward run c.yaml --set x=1", "It finds 2 of 4."):
        assert words in page and words in text
    assert "| careful | 1,000 | −0.200 [−0.210, −0.190] | +0.010 | −0.190 | yes | r-careful |" in text
    assert "| worse | 1,000 | −0.100 [−0.110, −0.090] | +0.500 | 0.400 |  | r-worse |" in text


def test_the_figure_names_each_trial_and_tells_its_changes() -> None:
    facts = facts_of(row("bold", (-0.3, 0.2)), row("careful", (-0.2, 0.01)))
    svg = as_svg(lambda tips: pareto_figure(facts, tips), "pareto")
    assert "<title>careful: domain -0.200, general +0.010</title>" in svg
    assert svg == as_svg(lambda tips: pareto_figure(facts, tips), "pareto")
    lone = facts_of(row("alone", (-0.3, None)))
    assert "alone: domain" in as_svg(lambda tips: pareto_figure(lone, tips), "pareto")


def test_the_replay_share_keeps_the_scale_that_a_decay_weight_stands_on() -> None:
    run = configured()
    first, *others = run.corpus.sources
    sources = (first.model_copy(update={"decay_weight": 1.0}), *others)
    run = run.model_copy(update={"corpus": run.corpus.model_copy(update={"sources": sources})})
    (trial,) = grid(run, ["replay=0.25"])
    assert trial.overrides == ("corpus.sources[0].weight=3", "corpus.sources[1].weight=1")


def test_each_tuning_of_a_configuration_has_a_directory_of_its_own(tmp_path: Path) -> None:
    def directory(asked: Asked) -> Path:
        run = configured(store=str(tmp_path))
        trials, rungs, common = planned_trials(run, asked)
        return _Tuning(run, asked, trials, rungs, common, Console()).directory

    rates = ("training.learning_rate=1e-3,2e-3",)
    plain = Asked(rates)
    others = [
        Asked(("training.learning_rate=1e-3",)),
        Asked(rates, budgets=(8192,)),
        Asked(rates, keep=0.3),
        Asked(rates, forgetting=2.0),
        Asked(rates, benchmarks=True),
    ]
    assert directory(plain) == directory(plain)
    assert len({directory(one) for one in (plain, *others)}) == 6


def test_without_a_file_the_next_command_names_one_that_holds_what_was_asked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="password"):
        configured(tracking={"mlflow_uri": "https://me:hunter2@mlflow.org:5000"})
    run = configured(store=str(tmp_path), training__learning_rate=7e-4)
    asked = Asked(("training.learning_rate=1e-3",))
    tuning = _Tuning(run, asked, *planned_trials(run, asked), Console())
    command = shlex.split(tuning.command_of(tuning.trials[0])[1])
    assert command[:2] == ["onward", "run"] and Path(command[2]).parent == tuning.directory
    assert load_config(Path(command[2])) == run


def test_where_a_trial_fails_the_answer_has_its_name_and_those_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = configured(store=str(tmp_path))
    results = iter([{"report": "report/x", "mlflow_run": None}])

    def trial(start: object, say: object) -> dict[str, Any]:
        if (found := next(results, None)) is None:
            raise OnwardError("the loss is not finite")
        return found

    monkeypatch.setattr("flows.tuning.end_of", trial)
    monkeypatch.setattr("flows.tuning.standing_in", lambda *_: Standing(Within(-0.1, -0.2, 0.0), None))
    with told_as(Path("c.yaml"), []) as ended, pytest.raises(OnwardError, match="not finite"):
        execute(run, Asked(("training.learning_rate=1e-3,2e-3,3e-3",)), Console())
    assert ended["trial"] == "learning_rate 2e-3"
    assert [one["name"] for one in ended["trials"]] == ["learning_rate 1e-3"]
    assert not json.loads(json.dumps(ended))["trials"][0]["standings"]["40000"]["general"]
