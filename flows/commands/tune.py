"""`tune`: a grid of short trials of one configuration, and the next command. Standard output carries only the answer."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.commands.common import Config, Overrides, load
from flows.commands.frame import Outcome, answer
from flows.commands.run import one_run
from storage.errors import ConfigError

if TYPE_CHECKING:
    from flows.config import RunConfig
    from flows.runs.trials import Trial
    from tasks.pages.report.tuning import TrialRow, TuningFacts


def tune(
    config: Config,
    vary: Annotated[
        list[str],
        typer.Option(
            metavar="KEY=A,B,…",
            help="values of a key to try, such as training.learning_rate=1e-3,2e-3; replay=0.05,0.2 is the share of all "
            "replay sources; may be repeated: every combination is tried",
        ),
    ],
    set_: Overrides = None,
    budgets: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,…",
            help="tokens of the trials, such as 4M, or 1M,4M,16M: then only the better part goes on from one to the next; "
            "else a tenth of the first budget",
        ),
    ] = None,
    keep: Annotated[
        float,
        typer.Option(min=0.01, max=1.0, help="with several budgets: the part of the trials that goes on"),
    ] = 0.5,
    forgetting: Annotated[
        float,
        typer.Option(
            min=0.0, max=1000.0, help="what a loss on general text counts beside a gain on the domain"
        ),
    ] = 1.0,
    benchmarks: Annotated[
        bool,
        typer.Option(
            "--benchmarks", help="measure the benchmarks of each trial too, not held-out text alone"
        ),
    ] = False,
    json_: Annotated[
        bool, typer.Option("--json", help="print all trials as one line of JSON, and nothing else")
    ] = False,
) -> None:
    """Try values of a configuration in short runs, compare them, and print the command that goes on with the best.

    Each trial is an ordinary run that stops at a small budget: text is read and cleaned once for all, a killed tuning goes
    on where it was, and the real run trains nothing of the winner again.
    """
    answer(
        lambda: _tune(config, vary, set_ or [], budgets, keep, forgetting, benchmarks=benchmarks),
        {"trials": []},
        as_json=json_,
        show=_show,
    )


def _tune(
    path: Path,
    vary: list[str],
    given: list[str],
    asked: str | None,
    keep: float,
    forgetting: float,
    *,
    benchmarks: bool,
) -> Outcome:
    """All trials. Raises ConfigError before the first one."""
    from flows.runs.trials import budgets_override, grid, of_a_trial, rungs_of

    config = load(path, given)
    trials = grid(config, vary)
    rungs = rungs_of(config, _counts(asked))
    common = [*given, *of_a_trial(benchmarks=benchmarks)]
    for trial in trials:  # all of them are read before the first one runs
        load(path, [*common, *trial.overrides, budgets_override(rungs[:1])])
    from flows.services.server import prefect_server

    rows: dict[str, TrialRow] = {}
    settled = True
    with prefect_server(Path(os.environ["PREFECT_HOME"])):  # one server for all: each run finds it configured
        going = list(trials)
        for place in range(len(rungs)):
            for number, trial in enumerate(going, 1):
                sys.stderr.write(f"trial {number} of {len(going)}: {trial.name}\n")
                one = [*common, *trial.overrides, budgets_override(rungs[: place + 1])]
                made = one_run(path, one, (), "report", None)
                settled = made.settled
                if made.code:
                    failed = {name: made.answer[name] for name in ("state", "error")}
                    done = [dataclasses.asdict(row) for row in rows.values()]
                    return Outcome({**failed, "trial": trial.name, "trials": done}, made.code, settled)
                rows[trial.name] = _row(path, one, trial, rungs[place], made.answer, rows.get(trial.name))
            going = _better(going, rows, forgetting, keep, last=place == len(rungs) - 1)
    facts = _facts(path, config, given, common, trials, rows, rungs, forgetting)
    from flows.runs.names import run_id
    from flows.runs.trials import write_page

    page = write_page(config, run_id(config), facts)
    told = {"state": "completed", "page": str(page / "tune.html"), **facts.to_json()}
    return Outcome(told, 0, settled)


def _counts(text: str | None) -> list[int]:
    from storage.counts import parse_count

    try:
        return [int(parse_count(part.strip())) for part in text.split(",")] if text else []
    except ValueError as error:
        raise ConfigError(f"--budgets: {error}") from error


def _row(
    path: Path,
    overrides: list[str],
    trial: Trial,
    budget: int,
    summary: dict[str, Any],
    before: TrialRow | None,
) -> TrialRow:
    from flows.runs.names import run_id
    from flows.runs.trials import standing_in
    from tasks.pages.report.tuning import TrialRow

    run = load(path, overrides)
    standing = standing_in(run, summary["report"])
    return TrialRow(
        name=trial.name,
        values=trial.values,
        run=f"{run.name}-{run_id(run)}",
        report=summary["report"],
        standings={**(before.standings if before else {}), budget: standing},
    )


def _better(
    trials: list[Trial], rows: dict[str, TrialRow], forgetting: float, keep: float, *, last: bool
) -> list[Trial]:
    """The trials that go on. Those that do not are marked."""
    from tasks.pages.report.tuning import ranked

    if last:
        return trials
    order = [row.name for row in ranked([rows[trial.name] for trial in trials], forgetting)]
    going = set(order[: max(1, math.ceil(keep * len(order)))])
    for trial in trials:
        if trial.name not in going:
            rows[trial.name] = dataclasses.replace(rows[trial.name], kept=False)
    return [trial for trial in trials if trial.name in going]


def _facts(
    path: Path,
    config: RunConfig,
    given: list[str],
    common: list[str],
    trials: list[Trial],
    rows: dict[str, TrialRow],
    rungs: list[int],
    forgetting: float,
) -> TuningFacts:
    from flows.inspect.compare import compare
    from flows.quote.planned import quoted
    from flows.runs.trials import next_command
    from storage.counts import rounded_count
    from storage.store import Store
    from tasks.pages.report.tuning import TuningFacts, front_of, ranked

    order = ranked(list(rows.values()), forgetting)
    best = next(trial for trial in trials if trial.name == order[0].name)
    overrides, command = next_command(path, config, given, best, rungs)
    plan = [row for row in quoted(load(path, overrides)).rows if row.stage in ("train", "decay")]
    found = sum(row.state == "cached" for row in plan)
    second = ""
    if len(order) > 1 and order[1].tokens == order[0].tokens:
        told = compare(Store(config.store_path), [order[1].run, order[0].run]).facts.findings
        second = f"Against the second ({order[1].name}): {told[-1].partition(': ')[2]}"
    return TuningFacts(
        trials=tuple(order),
        forgetting=forgetting,
        front=tuple(row.name for row in front_of(order)),
        runner_up=second,
        command=command,
        found=f"It finds {found} of {len(plan)} training stages in the store: the best trial's "
        f"{rounded_count(rungs[-1])} tokens are not trained again.",
    )


def _show(answer: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(stderr=True)
    table = Table(title="trials, the best first", caption="nats per token against the base; lower is better")
    table.add_column("trial")
    for name in ("tokens", "domain", "general"):
        table.add_column(name, justify="right")
    table.add_column("front")
    for trial in answer["trials"]:
        tokens = max(trial["standings"], key=int)
        last = trial["standings"][tokens]
        cells = [f"{last[role]['value']:+.3f}" if last[role] else "" for role in ("domain", "general")]
        table.add_row(
            trial["name"], f"{int(tokens):,}", *cells, "yes" if trial["name"] in answer["front"] else ""
        )
    console.print(table)
    for line in (answer["runner_up"], answer["found"], f"page: {answer['page']}"):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(answer["command"], highlight=False, soft_wrap=True, markup=False)
