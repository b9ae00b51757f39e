"""What is in a store: where a model comes from, what became of a document, runs side by side; verify, free, export."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from flows.commands.common import catalog_of, existing
from storage.errors import ConfigError, OnwardError


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
    from flows.lineage.events import as_openlineage
    from flows.lineage.graph import as_mermaid, as_text, graph_of
    from flows.lineage.names import resolve

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


def explain(
    document: Annotated[int, typer.Argument(help="document id")],
    store: Annotated[Path, typer.Option(help="the store")] = Path("store"),
) -> None:
    """Say what became of a document, and why, and which models were trained on it, how many times."""
    from flows.lineage.explain import fate

    sys.stdout.write(fate(catalog_of(store), document))


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
    from flows.inspect.compare import compare as compared
    from storage.store import Store

    found = compared(Store(existing(store)), runs)
    if to is not None:
        found.write(to)
        sys.stderr.write(f"page: {to / 'compare.html'}\n")
    sys.stdout.write(json.dumps(found.to_json(), ensure_ascii=False) + "\n" if json_ else found.to_markdown())


def verify(
    store: Annotated[Path, typer.Option(help="the store")] = Path("store"),
) -> None:
    """Read every byte of every artifact; what is damaged is set aside, and made again by the next run."""
    from storage.lock import Lock
    from storage.store import Store, set_aside

    opened = Store(existing(store))
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
    from flows.inspect.gc import collect
    from storage.store import Store

    opened = Store(existing(store))
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


def _aside(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def export(
    model: Annotated[str, typer.Argument(help="key of a model (base, decay or train), or its beginning")],
    directory: Annotated[Path, typer.Argument(help="where to; must not exist")],
    store: Annotated[Path, typer.Option(help="the store")] = Path("store"),
) -> None:
    """Copy a model's files, what `from_pretrained` loads, with a card: data, training and scores (README.md)."""
    import shutil

    from tasks.models.card import model_card

    catalog = catalog_of(store)
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
