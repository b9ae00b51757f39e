"""`tune`: a grid of short trials of one configuration, and the next command. Standard output carries only the answer."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.commands.common import Config, Overrides, load
from flows.commands.frame import Outcome, answer, stopped
from storage.errors import ConfigError, OnwardError


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
    tried, trials = _counts(asked), grid(config, vary)
    rungs = rungs_of(config, tried)
    common = [*given, *of_a_trial(benchmarks=benchmarks)]
    for trial in trials:  # all of them are read before the first one runs
        load(path, [*common, *trial.overrides, budgets_override(rungs[:1])])
    from flows.services.server import prefect_server

    with prefect_server(Path(os.environ["PREFECT_HOME"])) as ready:
        from prefect.exceptions import ExternalSignal

        from flows.runs.prefect_away import end_of, no_server
        from flows.runs.prefect_states import settle
        from flows.tuning import told_as, tune

        start: Any = tune
        told: dict[str, Any] = {"state": "failed", "trials": []}
        ended: dict[str, Any] = {}
        try:
            ready()
            with told_as(path, given) as ended:
                told = end_of(
                    lambda: start(config, tuple(vary), tuple(tried), keep, forgetting, benchmarks),
                    sys.stderr.write,
                )
            code = 0
        except (KeyboardInterrupt, ExternalSignal):
            end = stopped({"trials": [], **ended})
            return Outcome(end.answer, end.code, settle())
        except Exception as error:
            error = no_server(error) or error
            if not isinstance(error, OnwardError | OSError):
                traceback.print_exc()
            which = f"trial {ended['trial']}: " if ended.get("trial") else ""
            sys.stderr.write(f"failed: {which}{error}\n")
            told |= {**ended, "error": str(error) or type(error).__name__}
            code = 2 if isinstance(error, ConfigError) else 1
        return Outcome(told, code, settle())


def _counts(text: str | None) -> list[int]:
    from storage.counts import parse_count

    try:
        return [int(parse_count(part.strip())) for part in text.split(",")] if text else []
    except ValueError as error:
        raise ConfigError(f"--budgets: {error}") from error


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
