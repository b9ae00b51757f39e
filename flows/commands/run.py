"""`run`: the flow in this process, once or with several training seeds. Standard output carries only the answer."""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.commands import completion
from flows.commands.common import Config, Overrides, load, nearest
from flows.commands.frame import Outcome, answer, refused, stopped
from storage.errors import ConfigError, OnwardError
from tasks import stages

if TYPE_CHECKING:
    from rich.table import Table

_NOTHING: dict[str, Any] = {"flow_run": None, "stages": [], "models": [], "report": None, "mlflow_run": None}
_NO_SEEDS: dict[str, Any] = {"runs": [], "page": None}


def run(
    config: Config,
    set_: Overrides = None,
    force: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STAGE",
            help=f"make a stage again and compare the bytes; all: every stage, and the run fails where a byte "
            f"differs. One of all, {', '.join(stages.NAMES)}; may be repeated",
            autocompletion=completion.forced_stages,
        ),
    ] = None,
    until: Annotated[
        str,
        typer.Option(
            metavar="STAGE",
            help=f"end the run after this stage: {', '.join(stages.ENDS)}",
            autocompletion=completion.last_stages,
        ),
    ] = "report",
    slices: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=f"read this many slices at most; goes with --until and one of {', '.join(stages.CORPUS)}",
        ),
    ] = None,
    seeds: Annotated[
        int,
        typer.Option(
            min=1, max=100, help="repeat the run with this many training seeds, and report their spread"
        ),
    ] = 1,
    json_: Annotated[
        bool, typer.Option("--json", help="print the summary as one line of JSON, and nothing else")
    ] = False,
) -> None:
    """Run the flow in this process. What is finished is found in the store, not made again."""
    wanted = (config, set_ or [], tuple(force or ()), until, slices)
    if seeds > 1:
        answer(lambda: _run_seeds(*wanted, seeds), _NO_SEEDS, as_json=json_, show=_show_page)
    answer(
        lambda: one_run(*wanted),
        _NOTHING,
        as_json=json_,
        show=lambda summary: _show_models(summary, *wanted[:2]),
    )


def one_run(
    path: Path, overrides: list[str], force: tuple[str, ...], until: str, slices: int | None
) -> Outcome:
    """One attempt. Errors are printed on standard error, and told by the outcome."""
    try:
        _check_options(force, until, slices)
    except ConfigError as error:
        return refused(error, _NOTHING)
    from flows.services.server import prefect_server

    with prefect_server(Path(os.environ["PREFECT_HOME"]), held=True) as ready:  # it loads while we read
        try:
            config = load(path, overrides, elsewhere=until in stages.CORPUS)
            of_file = _of_file(path) if overrides else None
        except ConfigError as error:
            return refused(error, _NOTHING)
        from prefect.exceptions import ExternalSignal

        from flows.entrypoints import pretrain
        from flows.runs.differs import compared_with, full_name
        from flows.runs.failure import RunFailed
        from flows.runs.prefect_away import end_of, no_server
        from flows.runs.prefect_states import settle

        threading.Thread(
            target=importlib.import_module, args=("mlflow",), daemon=True
        ).start()  # it takes seconds

        sys.stderr.write(f"{full_name(config, of_file)}\n")
        summary: dict[str, Any] = {**_NOTHING, "state": "failed"}
        try:
            ready()
            start: Any = pretrain  # the options were checked above
            with compared_with(of_file):
                summary = end_of(
                    lambda: start(config, until=until, slices=slices, force=force), sys.stderr.write
                )
            code = 0
        except (KeyboardInterrupt, ExternalSignal):
            outcome = stopped(_NOTHING)
            return Outcome(outcome.answer, outcome.code, settle())
        except Exception as error:
            error = no_server(error) or error
            if not isinstance(error, OnwardError | OSError):
                traceback.print_exc()
            sys.stderr.write(f"failed: {error}\n")
            if isinstance(error, RunFailed) and error.summary is not None:
                summary = error.summary.as_json()
            summary["error"] = str(error) or type(error).__name__
            code = 2 if isinstance(error, ConfigError) else 1
        return Outcome(summary, code, settle())


def _of_file(path: Path) -> Any:
    """The configuration without what the command line changes in it; None where it is none without that."""
    from flows.config import load_config

    try:
        return load_config(path)
    except ConfigError:
        return None


def _run_seeds(
    path: Path, overrides: list[str], force: tuple[str, ...], until: str, slices: int | None, count: int
) -> Outcome:
    """One attempt for each seed, then a common page. Raises ConfigError."""
    from flows.runs.seeds import override_of, seeds_of, summarise

    _check_options(force, until, slices)
    if until != "report":
        raise ConfigError("--seeds goes with whole runs, not with --until")
    config = load(path, overrides)
    from flows.services.server import prefect_server

    runs: list[dict[str, Any]] = []
    settled = True
    with prefect_server(Path(os.environ["PREFECT_HOME"])):  # one server for all: each run finds it configured
        for seed in seeds_of(config, count):
            one = one_run(path, [*overrides, *override_of(config, seed)], force, until, slices)
            runs.append({"seed": seed, **one.answer})
            settled = one.settled
            if one.code:
                failed = {name: one.answer[name] for name in ("state", "error")}
                return Outcome({**failed, "runs": runs, "page": None}, one.code, settled)
    from flows.runs.names import run_id

    page, facts = summarise(config, run_id(config), {run["seed"]: run["report"] for run in runs})
    told = {"state": "completed", "runs": runs, "page": str(page / "seeds.html"), **facts.to_json()}
    return Outcome(told, 0, settled)


def _check_options(force: tuple[str, ...], until: str, slices: int | None) -> None:
    if until not in stages.ENDS:
        raise nearest("--until", until, stages.ENDS)
    known = ("all", *stages.NAMES)
    for name in force:
        if name not in known:
            raise nearest("--force", name, known)
    if slices is not None and until not in stages.CORPUS:
        raise ConfigError(f"--slices goes with --until and a corpus stage ({', '.join(stages.CORPUS)})")


def _show_page(summary: dict[str, Any]) -> None:
    sys.stderr.write(f"seeds: {summary['page']}\n")


def _show_models(summary: dict[str, Any], config: Path, overrides: list[str]) -> None:
    from rich.console import Console

    from flows.config import load_config
    from flows.ui.terminal import report_tables, shown

    console = Console(stderr=True)
    store = load_config(config, overrides).store_path if summary["report"] else None
    try:
        facts = json.loads((store / summary["report"] / "report.json").read_bytes()) if store else None
    except (OSError, ValueError):
        facts = None
    if facts is not None:
        shown(report_tables(facts), console)
    elif (table := scores_table(summary["models"])) is not None:
        console.print(table)
    if store is not None:
        key = Path(summary["report"]).name
        page = store / "runs" / f"report-{key}" / "report.html"  # this page includes the cost
        console.print(f"report: {page}", highlight=False, soft_wrap=True)


def scores_table(models: list[dict[str, Any]]) -> Table | None:
    """Every score and perplexity of the models, side by side; None where nothing was measured."""
    from rich.table import Table

    rows: dict[str, dict[str, str]] = {}
    for model in models:
        for source, value in model["perplexity"].items():
            rows.setdefault(f"perplexity · {source}", {})[model["name"]] = f"{value:.2f}"
        for benchmark, scores in model["scores"].items():
            for metric, value in scores.items():
                rows.setdefault(f"{benchmark} · {metric}", {})[model["name"]] = f"{value:.4f}"
    if not rows:
        return None
    table = Table(title="scores")
    table.add_column("", justify="left")
    for model in models:
        table.add_column(model["name"], justify="right")
    for name, values in rows.items():
        table.add_row(name, *(values.get(model["name"], "") for model in models))
    return table
