"""The flow `tune`: trials of one configuration as flow runs below one, what each gained and lost, and the next command.

Each trial is the flow `pretrain` with small budgets: it has its own pages, its own run in MLflow, and goes on where it was
killed. This flow only chooses which of them go on, and shows them together: on its page in Prefect, on a run in MLflow
above theirs, and in the store (`flows.runs.trials.write_page`). The same parameters find everything again.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from prefect import flow
from pydantic import Field

from flows.config import RunConfig, with_overrides
from flows.entrypoints import pretrain
from flows.inspect.compare import compare
from flows.machine.processes import ProcessId
from flows.quote.planned import quoted
from flows.runs.differs import compared_with, current_name
from flows.runs.names import run_id
from flows.runs.prefect_away import End, end_of, keep_end
from flows.runs.prefect_states import crash_lost_attempts
from flows.runs.session import current_flow_run
from flows.runs.tracked import experiment
from flows.runs.trials import (
    Trial,
    budgets_override,
    directory_of,
    grid,
    next_command,
    of_a_trial,
    rungs_of,
    standing_in,
    write_config,
    write_page,
)
from flows.tracking.tuned import tell_tuning
from flows.ui import publish
from flows.ui.console import Console
from storage.atomic import write_bytes
from storage.counts import rounded_count
from storage.runs import RunRecord
from storage.settings import Count
from storage.store import Store
from tasks.pages.markdown import markdown_of
from tasks.pages.report.tuning import TrialRow, TuningFacts, front_of, ranked, tuning_blocks

_ATTEMPTS = "attempts.json"
_of_command: ContextVar[_Told | None] = ContextVar("of_command", default=None)


@dataclass(frozen=True)
class _Told:
    """The file of a command with its overrides, and the answer so far if the tuning does not end well."""

    path: Path
    given: tuple[str, ...]
    answer: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """What is tried. `vary`: `key=value,value,…`; `keep`: the share of trials that goes on from one budget to the next."""

    vary: tuple[str, ...]
    budgets: tuple[int, ...] = ()
    keep: float = 0.5
    forgetting: float = 1.0
    benchmarks: bool = False


@contextlib.contextmanager
def told_as(path: Path, given: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Within the block the next command names this file, with these overrides that it was given. Where a trial fails or is
    stopped, what the block is given holds its name and the trials until then."""
    told = _Told(path, tuple(given))
    token = _of_command.set(told)
    try:
        yield told.answer
    finally:
        _of_command.reset(token)


def _tuning_name() -> str:
    from prefect.runtime import flow_run

    given = flow_run.parameters or {}
    config = given.get("config")
    name = config.name if isinstance(config, RunConfig) else (config or {}).get("name", "tuning")
    keys = [text.partition("=")[0].strip().rpartition(".")[2] for text in given.get("vary") or ()]
    return current_name() or " · ".join(["tune", str(name), *keys])


@flow(name="tune", flow_run_name=_tuning_name, persist_result=False, log_prints=False)
def tune(
    config: RunConfig,
    vary: Annotated[tuple[str, ...], Field(min_length=1)] = ("training.learning_rate=2e-4,5e-4,1e-3",),
    budgets: tuple[Count, ...] = (),
    keep: Annotated[float, Field(ge=0.01, le=1)] = 0.5,
    forgetting: Annotated[float, Field(ge=0, le=1000)] = 1.0,
    benchmarks: bool = False,
) -> Any:
    """Try values of a configuration in short runs, compare them, and say how to go on with the best.

    Args:
        config: The whole run, as in its YAML file; its own budgets are those of the real run.
        vary: Each line is key=value,value,… such as training.learning_rate=2e-4,5e-4; replay=0.05,0.2 is the share of all
            replay sources together. Every combination is a trial.
        budgets: Tokens of the trials. Several: from each to the next only the better part goes on. Empty: a tenth of the
            first budget.
        keep: The part of the trials that goes on.
        forgetting: What a loss on general text counts beside a gain on the domain.
        benchmarks: Measure the benchmarks of each trial too, not held-out text alone.
    """
    return execute(config, Asked(tuple(vary), tuple(budgets), keep, forgetting, benchmarks), Console())


def planned_trials(config: RunConfig, asked: Asked) -> tuple[list[Trial], list[int], list[str]]:
    """(trials, their budgets, overrides of all). Raises ConfigError if one of them is no configuration."""
    trials, rungs = grid(config, asked.vary), rungs_of(config, asked.budgets)
    common = of_a_trial(benchmarks=asked.benchmarks)
    for trial in trials:  # all of them are read before the first one runs
        with_overrides(config, [*common, *trial.overrides, budgets_override(rungs[:1])])
    return trials, rungs, common


def execute(config: RunConfig, asked: Asked, console: Console) -> dict[str, Any]:
    """One attempt at a tuning, inside a flow run. Returns what `onward tune --json` prints.

    Raises the error of the trial that failed, and ConfigError before anything runs.
    """
    trials, rungs, common = planned_trials(config, asked)
    tuning = _Tuning(config, asked, trials, rungs, common, console)
    with tuning.attempt(), compared_with(config):
        try:
            answer = tuning.all()
        except BaseException:
            if (told := _of_command.get()) is not None:
                told.answer.update(tuning.so_far())
            raise
    keep_end(End(answer))
    return answer


class _Tuning:
    """The trials of a tuning so far."""

    def __init__(
        self,
        config: RunConfig,
        asked: Asked,
        trials: list[Trial],
        rungs: list[int],
        common: list[str],
        console: Console,
    ) -> None:
        self.config, self.asked, self.trials, self.rungs = config, asked, trials, rungs
        self.common, self.console = common, console
        self.rows: dict[str, TrialRow] = {}
        self.in_mlflow: dict[str, float] = {}
        """The score of each trial at each of its budgets, by the run in MLflow."""
        self.flow_run = current_flow_run()
        self.trying = ""
        """The name of the trial that runs."""
        wanted = [[trial.values for trial in trials], rungs, asked.keep, asked.forgetting, asked.benchmarks]
        self.directory = directory_of(config, wanted)
        self._pages = publish.PrefectPages(self.flow_run) if self.flow_run else None

    @contextlib.contextmanager
    def attempt(self) -> Iterator[None]:
        """Set what a killed attempt left running in Prefect to Crashed, and note this one."""
        path, record = self.directory / _ATTEMPTS, RunRecord(self.directory.name, self.config.name, {})
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            before = json.loads(path.read_bytes())
            record = replace(record, attempts=tuple(before), facts={"processes": before})
        crash_lost_attempts(Store(self.config.store_path), record, self.flow_run)
        publish.announce_process(self.flow_run)
        if self.flow_run is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, json.dumps({self.flow_run: ProcessId.current().to_dict()}).encode())
        yield
        path.unlink(missing_ok=True)

    def all(self) -> dict[str, Any]:
        """Every trial at its first budget, and the better ones at each of the next."""
        going = list(self.trials)
        for place, budget in enumerate(self.rungs):
            for number, trial in enumerate(going, 1):
                self.console.line(f"trial {number} of {len(going)}: {trial.name}")
                self._one(trial, place, budget)
                self._show()
            going = self._better(going, last=place == len(self.rungs) - 1)
        facts = self._facts(done=True)
        page = write_page(self.directory, self.config, facts)
        self._show(facts)
        self._tell_mlflow(facts)
        return {"state": "completed", "page": str(page / "tune.html"), **facts.to_json()}

    def so_far(self) -> dict[str, Any]:
        """The trial that runs, and those that have ended, as the answer has them."""
        ended = self._facts(done=False).to_json() if self.rows else {"trials": []}
        return {"trial": self.trying, "trials": ended["trials"]}

    def _one(self, trial: Trial, place: int, budget: int) -> None:
        self.trying = trial.name
        run = with_overrides(
            self.config, [*self.common, *trial.overrides, budgets_override(self.rungs[: place + 1])]
        )
        start: Callable[..., Any] = pretrain
        summary = end_of(lambda: start(run), self.console.line)
        before, standing = self.rows.get(trial.name), standing_in(run, summary["report"])
        self.rows[trial.name] = TrialRow(
            name=trial.name,
            values=trial.values,
            run=f"{run.name}-{run_id(run)}",
            report=summary["report"],
            standings={**(before.standings if before else {}), budget: standing},
        )
        if summary["mlflow_run"]:
            self.in_mlflow[summary["mlflow_run"]] = standing.score(self.asked.forgetting)

    def _better(self, trials: list[Trial], *, last: bool) -> list[Trial]:
        """The trials that go on. Those that do not are marked."""
        if last:
            return trials
        order = [
            row.name for row in ranked([self.rows[trial.name] for trial in trials], self.asked.forgetting)
        ]
        going = set(order[: max(1, math.ceil(self.asked.keep * len(order)))])
        for trial in trials:
            if trial.name not in going:
                self.rows[trial.name] = replace(self.rows[trial.name], kept=False)
        return [trial for trial in trials if trial.name in going]

    def _facts(self, done: bool) -> TuningFacts:
        order = ranked(list(self.rows.values()), self.asked.forgetting)
        command, found, second = "", "Not all trials have ended.", ""
        if done:
            best = next(trial for trial in self.trials if trial.name == order[0].name)
            command, found = self._next(best)
            second = self._against_second(order)
        return TuningFacts(
            trials=tuple(order),
            forgetting=self.asked.forgetting,
            front=tuple(row.name for row in front_of(order)),
            runner_up=second,
            command=command,
            found=found,
        )

    def command_of(self, best: Trial) -> tuple[list[str], str]:
        """(overrides beyond those given, command) of the run that goes on with a trial. Without a command's file, it names
        one that is written here."""
        told = _of_command.get()
        path, given = (told.path, told.given) if told else (write_config(self.directory, self.config), ())
        overrides, command = next_command(path, self.config, given, best, self.rungs)
        return overrides[len(given) :], command

    def _next(self, best: Trial) -> tuple[str, str]:
        """The command that goes on with a trial, and what of its training is in the store."""
        overrides, command = self.command_of(best)
        run = with_overrides(self.config, overrides)
        plan = [row for row in quoted(run).rows if row.stage in ("train", "decay")]
        found = sum(row.state == "cached" for row in plan)
        return command, (
            f"It finds {found} of {len(plan)} training stages in the store: the best trial's "
            f"{rounded_count(self.rungs[-1])} tokens are not trained again."
        )

    def _against_second(self, order: Sequence[TrialRow]) -> str:
        if len(order) < 2 or order[1].tokens != order[0].tokens:
            return ""
        told = compare(Store(self.config.store_path), [order[1].run, order[0].run]).facts.findings
        return f"Against the second ({order[1].name}): {told[-1].partition(': ')[2]}"

    def _show(self, facts: TuningFacts | None = None) -> None:
        """The trials so far, on this flow run's page."""
        if self._pages is None:
            return
        pages, shown = self._pages, facts or self._facts(done=False)
        text = markdown_of(tuning_blocks(shown, self.config.name, []))
        publish.published(lambda: pages.put("tune", "markdown", text, "The trials, the best first"))

    def _tell_mlflow(self, facts: TuningFacts) -> None:
        uri, _ = experiment(self.config.tracking.mlflow_uri, self.config.name)
        problem = tell_tuning(
            uri,
            self.config.name,
            self.directory.name,
            f"tune · {self.config.name} · {len(self.rows)} trials",
            markdown_of(tuning_blocks(facts, self.config.name, [])),
            self.in_mlflow,
            {"best/score": facts.best.last.score(facts.forgetting)},
        )
        if problem:
            self.console.warn(f"MLflow has not got the tuning ({problem}); the same command again adds it")
