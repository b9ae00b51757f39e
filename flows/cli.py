"""The command line. Standard output carries answers alone; what a run tells on the way goes to standard error.

Exit codes: 0 done; 1 failed; 2 wrong usage, a wrong configuration, or, for `plan`, work to do.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from storage.errors import ConfigError, OnwardError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Adapt a small language model to a domain.",
)


_NOTHING: dict[str, Any] = {"flow_run": None, "stages": [], "models": [], "report": None, "mlflow_run": None}
_STOPPED = "stopped; what was finished is kept, the same command goes on from there"


class Stopped(BaseException):
    """SIGINT or SIGTERM while a flow was running."""


Config = Annotated[Path, typer.Argument(help="YAML file of the run", show_default=False)]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="override a key: training.token_budgets='[40M]'")
]


@app.command()
def run(
    config: Config,
    set_: Overrides = None,
    force: Annotated[
        list[str] | None,
        typer.Option(help="make a stage again and compare; all: every one, and fail where a byte differs"),
    ] = None,
    until: Annotated[
        str, typer.Option(help="last stage: ingest … tokenize, pack, data, train, evaluate, report")
    ] = "report",
    slices: Annotated[
        int | None, typer.Option(min=1, help="with a corpus stage as the last: so many slices")
    ] = None,
    seeds: Annotated[
        int,
        typer.Option(min=1, max=100, help="run it with so many training seeds, and say how much they differ"),
    ] = 1,
    json_: Annotated[bool, typer.Option("--json", help="print one line of JSON and nothing else")] = False,
) -> None:
    """Run the flow in this process; what is finished is found, not made again."""
    from flows.environment import prepare

    prepare()
    with _clean_stdout() as out:
        try:
            wanted = (config, set_ or [], tuple(force or ()), until, slices)
            summary, code = _run(*wanted) if seeds == 1 else _run_seeds(*wanted, seeds)
        except (Stopped, KeyboardInterrupt):
            summary, code = {**_NOTHING, "state": "stopped", "error": _STOPPED}, 1
            sys.stderr.write(f"{_STOPPED}\n")
        if json_:
            out.write(json.dumps(summary, ensure_ascii=False) + "\n")
        elif code == 0 and seeds > 1:
            sys.stderr.write(f"seeds: {summary['page']}\n")
        elif code == 0:
            _show_models(summary, config, set_ or [])
    raise typer.Exit(code)


@app.command()
def plan(
    config: Config,
    set_: Overrides = None,
    memory: Annotated[
        str | None, typer.Option(help="foresee training on a GPU of so many bytes, such as 8G")
    ] = None,
    device_name: Annotated[
        str | None, typer.Option(help="with --memory: its name, such as H100, or cpu")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="print the rows as JSON")] = False,
) -> None:
    """Say what a run would do: per stage cached, to build (and what made the difference), or open.

    Training stages say what they would take: micro-batch, checkpointing, tokens per second, hours.
    """
    from flows.checks import advice
    from flows.foresight import foresee
    from flows.plan import make_plan, render

    run = _load(config, set_ or [])
    for line in advice(run):
        sys.stderr.write(f"! {line}\n")
    rows = foresee(run, make_plan(run), _bytes(memory), device_name)
    sys.stdout.write(json.dumps([vars(row) for row in rows]) + "\n" if json_ else render(rows))
    raise typer.Exit(0 if all(row.state == "cached" for row in rows) else 2)


@app.command()
def why(
    stage: Annotated[str, typer.Argument(help="stage, such as filter")],
    config: Config,
    set_: Overrides = None,
) -> None:
    """Say why a stage will run again: the fields and inputs that differ from what is in the store."""
    from flows.plan import make_plan, render

    rows = [row for row in make_plan(_load(config, set_ or [])) if row.stage == stage]
    if not rows:
        raise ConfigError(f"this run has no stage {stage!r}")
    sys.stdout.write(render(rows))


@app.command()
def lineage(
    model: Annotated[
        str,
        typer.Argument(
            help="name@alias or name/version in MLflow, key or stage/key (or its beginning), or path"
        ),
    ],
    store: Annotated[Path, typer.Option(help="the store")] = Path("store"),
    format_: Annotated[str, typer.Option("--format", help="text, mermaid or openlineage")] = "text",
    mlflow: Annotated[
        str | None, typer.Option(help="MLflow's address; MLFLOW_TRACKING_URI, or the local database")
    ] = None,
) -> None:
    """Say what a model, or any artifact, is made of, back to the source files, with the digest of each."""
    from flows.lineage import as_mermaid, as_text, graph_of
    from flows.lineage_events import as_openlineage
    from flows.lineage_names import resolve

    if format_ not in ("text", "mermaid", "openlineage"):
        raise ConfigError(f"--format {format_}: one of text, mermaid, openlineage")
    opened, artifact, registered = resolve(model, store, mlflow)
    graph = graph_of(opened, artifact)
    graph.registered = registered
    if format_ == "openlineage":
        lines = (json.dumps(event, ensure_ascii=False) for event in as_openlineage(graph))
        sys.stdout.write("[\n" + ",\n".join(lines) + "\n]\n")
    else:
        sys.stdout.write((as_text if format_ == "text" else as_mermaid)(graph))


@app.command()
def explain(
    document: Annotated[int, typer.Argument(help="document id")],
    store: Annotated[Path, typer.Option(help="the store")] = Path("store"),
) -> None:
    """Say what became of a document, and why, and which models were trained on it, how many times."""
    from flows.explain import fate

    sys.stdout.write(fate(_catalog(store), document))


@app.command()
def compare(
    runs: Annotated[
        list[str], typer.Argument(help="runs (a name under runs/, or its six digits), two or more")
    ],
    store: Annotated[Path, typer.Option(help="the store")] = Path("store"),
    to: Annotated[
        Path | None, typer.Option(help="write the page and its figures there too; a new directory")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="print one line of JSON")] = False,
) -> None:
    """Set runs side by side: the fields in which they differ, and what that did to the models, with tests."""
    from flows.compare import compare as compared
    from storage.store import Store

    found = compared(Store(_existing(store)), runs)
    if to is not None:
        found.write(to)
        sys.stderr.write(f"page: {to / 'compare.html'}\n")
    sys.stdout.write(json.dumps(found.to_json(), ensure_ascii=False) + "\n" if json_ else found.to_markdown())


@app.command()
def verify(
    store: Annotated[Path, typer.Option(help="the store")] = Path("store"),
) -> None:
    """Read every byte of every artifact; what is damaged is set aside, and made again by the next run."""
    from storage.lock import Lock
    from storage.store import Store, set_aside

    opened = Store(_existing(store))
    problems = {path: ["its manifest cannot be read"] for path in opened.unreadable()}
    count = 0
    for artifact in opened.artifacts():
        count += 1
        if found := opened.verify(artifact):
            problems[artifact.path] = found
    for path, found in problems.items():
        with Lock(opened.root / ".work" / f"{path.parent.name}-{path.name}.lock"):
            aside = set_aside(path)
        for problem in found:
            sys.stdout.write(f"{path.relative_to(opened.root)}: {problem}\n")
        sys.stdout.write(
            f"{path.relative_to(opened.root)}: set aside as {aside.name}; the next run makes it again\n"
        )
    sys.stdout.write(f"{count} artifacts read, {len(problems)} damaged\n")
    raise typer.Exit(1 if problems else 0)


@app.command()
def gc(
    store: Annotated[Path, typer.Option(help="the store")] = Path("store"),
    keep: Annotated[list[str] | None, typer.Option(help="keys to keep, or their beginnings")] = None,
    work: Annotated[
        bool, typer.Option(help="half-made artifacts too (a killed run goes on from them)")
    ] = False,
    forget: Annotated[list[str] | None, typer.Option(help="forget a run (a name under runs/) first")] = None,
    dry_run: Annotated[bool, typer.Option(help="only say what would be freed")] = False,
    mlflow: Annotated[
        list[str] | None,
        typer.Option(help="an MLflow to ask, beside those that the store's runs were told to"),
    ] = None,
    without_mlflow: Annotated[
        bool,
        typer.Option(
            "--without-mlflow", help="go on where an MLflow cannot be asked: what only it knows is freed"
        ),
    ] = False,
) -> None:
    """Free what neither a run that is remembered nor a registered model in MLflow needs."""
    from flows.collect import collect
    from storage.store import Store

    opened = Store(_existing(store))
    for name in forget or ():
        record = opened.root / "runs" / f"{name}.json"
        if record.parent != opened.root / "runs" or record not in opened.root.glob("runs/*.json"):
            raise OnwardError(f"there is no run {name!r} in {opened.root / 'runs'}")
    collected = collect(
        opened,
        keep or (),
        forget=forget or (),
        mlflow=mlflow or (),
        without_mlflow=without_mlflow,
        work=work,
        dry_run=dry_run,
        say=_aside,
    )
    for path in (*collected.artifacts, *collected.work):
        sys.stdout.write(f"{path}\n")
    sys.stdout.write(f"{'would free' if dry_run else 'freed'} {collected.bytes:,} bytes\n")


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="key of a model (base, decay or train), or its beginning")],
    directory: Annotated[Path, typer.Argument(help="where to; must not exist")],
    store: Annotated[Path, typer.Option(help="the store")] = Path("store"),
) -> None:
    """Copy a model's files, what `from_pretrained` loads, with a card: data, training and scores (README.md)."""
    import shutil

    from tasks.model_card import model_card

    catalog = _catalog(store)
    found = catalog.find(model)
    artifact = catalog.store.lookup(found["stage"], found["key"])  # refuses what leads out of the artifact
    if artifact is None or not artifact.has("export"):
        raise OnwardError(f"{found['stage']} {found['key'][:12]} holds no model")
    if directory.exists():
        raise OnwardError(f"{directory} exists already")
    for path in artifact.part("export").paths:
        target = directory / path.relative_to(artifact.path / "export")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    (directory / "README.md").write_text(model_card(catalog, artifact), encoding="utf-8")
    sys.stdout.write(f"{directory}\n")


@app.command()
def up(
    configs: Annotated[
        list[Path] | None, typer.Argument(help="YAML files to deploy; configs/*.yaml", show_default=False)
    ] = None,
    prefect_port: Annotated[int | None, typer.Option(min=1, max=65535, help="4200, or where it runs")] = None,
    mlflow_port: Annotated[int | None, typer.Option(min=1, max=65535, help="5000, or where it runs")] = None,
) -> None:
    """Start Prefect, MLflow, a worker and the deployments on 127.0.0.1; returns when all of them answer."""
    from flows import services

    services.up(configs or [], prefect_port, mlflow_port, _tell)


@app.command()
def down() -> None:
    """Stop what `up` started: runs leave a checkpoint, the servers write what they hold."""
    from flows import services

    services.down(_tell)


@app.command()
def status(
    store: Annotated[Path | None, typer.Option(help="a store whose runs are listed too")] = None,
    json_: Annotated[bool, typer.Option("--json", help="print one line of JSON")] = False,
) -> None:
    """Say what runs: services, work pools, and the runs under way, waiting and ended."""
    from flows.status import collect, render

    found = collect(_existing(store) if store else None)
    sys.stdout.write(json.dumps(found, ensure_ascii=False) + "\n" if json_ else render(found))


@app.command()
def doctor(
    config: Annotated[Path | None, typer.Argument(help="YAML file of a run", show_default=False)] = None,
) -> None:
    """Check that everything is in place; says for each thing that is not what to do. Exit code 1 where a run would fail."""
    from flows.doctor import run_all

    raise typer.Exit(0 if run_all(config, _write) else 1)


def main() -> None:
    """Entry point: errors of ours are a message and an exit code, never a traceback."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        sys.exit(app(standalone_mode=False) or 0)  # an Exit inside comes back as its code
    except typer.Exit as error:
        sys.exit(error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        sys.stderr.write(f"{_STOPPED}\n")
        sys.exit(1)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
    except OnwardError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(1)
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(
            error, "exit_code"
        ):  # a usage error of the command line
            sys.stderr.write(f"{error.format_message()}\n")
            sys.exit(2)
        raise


def _run(
    path: Path, overrides: list[str], force: tuple[str, ...], until: str, slices: int | None
) -> tuple[dict[str, Any], int]:
    """(summary, exit code) of one attempt; errors are told on standard error."""
    try:
        config = _load(path, overrides)
        _check_options(force, until, slices)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return {**_NOTHING, "state": "failed", "error": str(error)}, 2
    from flows.server import prefect_server

    with prefect_server(Path(os.environ["PREFECT_HOME"])) as ready:
        from prefect.exceptions import ExternalSignal  # while the server starts

        from flows.entrypoints import pretrain
        from flows.run import run_name
        from flows.truth import settle

        threading.Thread(
            target=importlib.import_module, args=("mlflow",), daemon=True
        ).start()  # it takes seconds

        sys.stderr.write(f"{run_name(config)}\n")
        summary: dict[str, Any] = {**_NOTHING, "state": "failed"}
        try:
            ready()
            start: Any = pretrain  # the options were checked above
            summary = start(config, until=until, slices=slices, force=force)
            return summary, 0
        except (KeyboardInterrupt, ExternalSignal) as error:
            raise Stopped from error
        except Exception as error:
            if not isinstance(error, OnwardError | OSError):
                traceback.print_exc()
            sys.stderr.write(f"failed: {error}\n")
            summary = getattr(error, "summary", None) or summary
            return {**summary, "error": str(error) or type(error).__name__}, 2 if isinstance(
                error, ConfigError
            ) else 1
        finally:
            settle()


def _run_seeds(
    path: Path, overrides: list[str], force: tuple[str, ...], until: str, slices: int | None, count: int
) -> tuple[dict[str, Any], int]:
    """(summary of all, exit code): one attempt for each training seed, then the page of what they came to together."""
    from flows.seeds import override_of, seeds_of, summarise

    runs: list[dict[str, Any]] = []
    try:
        config = _load(path, overrides)
        if until != "report":
            raise ConfigError("--seeds goes with whole runs, not with --until")
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return {"state": "failed", "error": str(error), "runs": runs, "page": None}, 2
    from flows.server import prefect_server

    with prefect_server(Path(os.environ["PREFECT_HOME"])):  # one for all: each run finds it configured
        for seed in seeds_of(config, count):
            summary, code = _run(path, [*overrides, *override_of(config, seed)], force, until, slices)
            runs.append({"seed": seed, **summary})
            if code:
                return {
                    "state": summary["state"],
                    "error": summary["error"],
                    "runs": runs,
                    "page": None,
                }, code
    from flows.run import run_id

    page, facts = summarise(config, run_id(config), {run["seed"]: run["report"] for run in runs})
    return {"state": "completed", "runs": runs, "page": str(page / "seeds.html"), **facts}, 0


def _check_options(force: tuple[str, ...], until: str, slices: int | None) -> None:
    from flows.pretrain import ALL_STAGES, STAGES
    from flows.reading import CORPUS_STAGES

    known = ("all", *ALL_STAGES)
    for option, name, allowed in (("--until", until, STAGES), *(("--force", name, known) for name in force)):
        if name not in allowed:
            raise ConfigError(f"{option} {name}: unknown stage; one of {', '.join(allowed)}")
    if slices is not None and until not in CORPUS_STAGES:
        raise ConfigError(f"--slices goes with --until and a corpus stage ({', '.join(CORPUS_STAGES)})")


def _bytes(text: str | None) -> int | None:
    from storage.settings import parse_count

    try:
        return None if text is None else int(parse_count(text))
    except ValueError as error:
        raise ConfigError(f"--memory: {error}") from error


def _load(path: Path, overrides: list[str]) -> Any:
    from flows.checks import check
    from flows.config import load_config

    config = load_config(path, overrides)
    check(config)
    return config


@contextlib.contextmanager
def _clean_stdout() -> Iterator[Any]:
    """Standard output for one line of ours; whatever else writes there, in any library or child, goes to standard error."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    with os.fdopen(kept, "w") as out:
        try:
            yield out
        finally:
            sys.stdout.flush()
            out.flush()
            os.dup2(kept, 1)


def _show_models(summary: dict[str, Any], config: Path, overrides: list[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    from flows.config import load_config

    if not summary["models"]:
        return
    table = Table(title="scores")
    table.add_column("", justify="left")
    for model in summary["models"]:
        table.add_column(model["name"], justify="right")
    rows: dict[str, dict[str, str]] = {}
    for model in summary["models"]:
        for source, value in model["perplexity"].items():
            rows.setdefault(f"perplexity · {source}", {})[model["name"]] = f"{value:.2f}"
        for benchmark, scores in model["scores"].items():
            for metric, value in scores.items():
                rows.setdefault(f"{benchmark} · {metric}", {})[model["name"]] = f"{value:.4f}"
    for name, values in rows.items():
        table.add_row(name, *(values.get(model["name"], "") for model in summary["models"]))
    console = Console(stderr=True)
    store = load_config(config, overrides).store_path
    console.print(table)
    if summary["report"]:
        key = Path(summary["report"]).name
        page = store / "runs" / f"report-{key}" / "report.html"  # with what it cost
        console.print(f"report: {page}", highlight=False, soft_wrap=True)


def _catalog(store: Path) -> Any:
    from storage.catalog import Catalog
    from storage.store import Store

    return Catalog(Store(_existing(store)))


def _existing(store: Path) -> Path:
    if not store.is_dir():
        raise OnwardError(f"there is no store at {store}; name it with --store")
    return store


def _tell(line: str) -> None:
    _write(line + "\n")


def _aside(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
