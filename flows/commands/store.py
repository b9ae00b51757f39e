"""Commands for a store: `lineage`, `explain` and `compare` read it; `verify`, `gc` and `export` work on it."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.commands import completion
from flows.commands.common import ConfigOption, StoreOption, catalog_of, chosen_store, model_of
from storage.errors import ConfigError, OnwardError


def lineage(
    model: Annotated[
        str,
        typer.Argument(
            help="budget of a run (1B, RUN:1B) or base; name@alias or name/version in MLflow; key or its beginning; path",
            show_default=False,
            autocompletion=completion.models,
        ),
    ],
    store: StoreOption = None,
    config: ConfigOption = None,
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="text, with whole digests, mermaid or openlineage; without it, a table in a terminal, and text elsewhere",
            show_default=False,
            autocompletion=completion.formats,
        ),
    ] = None,
    mlflow: Annotated[
        str | None,
        typer.Option(help="address of MLflow; without it, MLFLOW_TRACKING_URI or the local database"),
    ] = None,
) -> None:
    """Show what a model, or any artifact, is made of, back to the source files, with the digest of each."""
    from flows.lineage.events import as_openlineage
    from flows.lineage.graph import as_mermaid, as_text, blocks_of, graph_of, must_hold

    if format_ is not None and format_ not in completion.FORMATS:
        raise ConfigError(f"--format {format_}: unknown format; one of {', '.join(completion.FORMATS)}")
    opened, artifact, registered = model_of(model, store, config, mlflow)
    graph = graph_of(opened, artifact)
    must_hold(graph)
    graph.registered = registered
    if format_ == "openlineage":
        lines = (json.dumps(event, ensure_ascii=False) for event in as_openlineage(graph))
        sys.stdout.write("[\n" + ",\n".join(lines) + "\n]\n")
    elif format_ is None and sys.stdout.isatty():
        _in_terminal(blocks_of(graph))
        sys.stderr.write("whole digests: --format text\n")
    else:
        sys.stdout.write((as_mermaid if format_ == "mermaid" else as_text)(graph))


def _in_terminal(blocks: Any, sections: Any = None) -> None:
    from rich.console import Console

    from flows.ui.terminal import shown

    shown(blocks, Console(), sections)


def explain(
    document: Annotated[
        str,
        typer.Argument(
            help="id of the document; file or FILE#page; or words of its title, address or text",
            show_default=False,
        ),
    ],
    store: StoreOption = None,
    config: ConfigOption = None,
) -> None:
    """Show what became of a document, and why, and which models were trained on it, how many times."""
    from flows.lineage.explain import fate
    from flows.lineage.files import of_file
    from flows.lineage.find import MOST, find, shown

    catalog = catalog_of(chosen_store(store, config))
    told = None if re.fullmatch(r"\s*-?[0-9]+\s*", document) else of_file(catalog, document)
    if told is not None:
        words, ids = told
        sys.stdout.write(words)
        for one in ids[:1]:
            sys.stdout.write(fate(catalog, one))
        if len(ids) > 1:
            more = ", …" if len(ids) > MOST else ""
            sys.stdout.write(
                f"its documents: {', '.join(map(str, ids[:MOST]))}{more}; `onward explain ID` follows one\n"
            )
        return
    if re.fullmatch(r"\s*-?[0-9]+\s*", document):
        sys.stdout.write(fate(catalog, int(document)))
        return
    found = find(catalog, document)
    if not found:
        raise OnwardError(f"no document that was read holds {document!r} in its text or its other fields")
    sys.stdout.write(shown(found, document))
    if len(found) == 1:
        sys.stdout.write(fate(catalog, found[0].id))


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="two runs or more: names under runs/ of the store, or their six digits",
            show_default=False,
            autocompletion=completion.runs,
        ),
    ],
    store: StoreOption = None,
    config: ConfigOption = None,
    to: Annotated[
        Path | None, typer.Option(help="also write the page and its figures to this new directory")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="print one line of JSON")] = False,
    markdown: Annotated[
        bool,
        typer.Option(
            "--markdown", help="print the whole page as Markdown, as it is printed into a pipe or a file"
        ),
    ] = False,
) -> None:
    """Set runs side by side: the fields in which they differ, and the scores of their models, with significance tests."""
    from flows.inspect.compare import TERMINAL
    from flows.inspect.compare import compare as compared
    from storage.store import Store

    found = compared(Store(chosen_store(store, config)), runs)
    if to is not None:
        found.write(to)
        sys.stderr.write(f"page: {to / 'compare.html'}\n")
    if json_:
        sys.stdout.write(json.dumps(found.to_json(), ensure_ascii=False) + "\n")
    elif markdown or not sys.stdout.isatty():
        sys.stdout.write(found.to_markdown())
    else:
        _in_terminal(found.blocks(), TERMINAL)
        sys.stderr.write(
            "how sure, every metric, what was forgotten: --markdown, or --to DIR for a page with figures\n"
        )


def verify(
    store: StoreOption = None,
    config: ConfigOption = None,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="set what is damaged aside, so that the next run makes it again"),
    ] = False,
) -> None:
    """Read every byte of every artifact, and say what is damaged. Nothing is moved without --repair."""
    from flows.inspect.verify import verify as verified
    from storage.store import Store

    opened = Store(chosen_store(store, config))
    found = verified(opened, repair=repair)
    for name, problems in found.damaged.items():
        for problem in problems:
            sys.stdout.write(f"{name}: {problem}\n")
        if name in found.aside:
            sys.stdout.write(
                f"{name}: set aside as {', '.join(found.aside[name])}; the next run makes it again\n"
            )
    sys.stdout.write(f"{found.read} artifacts read, {len(found.damaged)} damaged\n")
    if repair and len(found.damaged) > len(found.aside):
        sys.stdout.write("Not moved: what another process is making now; once it has ended, repair again\n")
    elif found.damaged and not repair:
        sys.stdout.write(
            "Nothing was moved. To set aside what is damaged, so that the next run makes it again: "
            f"onward verify --store {shlex.quote(completion.from_here(opened.root))} --repair\n"
        )
    raise typer.Exit(1 if found.damaged else 0)


def gc(
    store: StoreOption = None,
    config: ConfigOption = None,
    keep: Annotated[
        list[str] | None, typer.Option(help="key to keep, or its beginning; may be repeated")
    ] = None,
    work: Annotated[
        bool, typer.Option("--work", help="free half-made artifacts too, from which a killed run would go on")
    ] = False,
    forget: Annotated[
        list[str] | None,
        typer.Option(
            help="forget this run first: a name under runs/ of the store; may be repeated",
            autocompletion=completion.runs,
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would be freed")] = False,
    mlflow: Annotated[
        list[str] | None,
        typer.Option(help="address of an MLflow to ask, beside those that the runs of the store reported to"),
    ] = None,
    without_mlflow: Annotated[
        bool,
        typer.Option(
            "--without-mlflow",
            help="go on where an MLflow does not answer; models that only it knows are freed",
        ),
    ] = False,
) -> None:
    """Free what no remembered run and no registered model in MLflow needs."""
    from flows.inspect.gc import collect
    from storage.runs import damaged_names
    from storage.store import Store

    opened = Store(chosen_store(store, config))
    for name in forget or ():
        record = opened.root / "runs" / f"{name}.json"
        known = {path.stem for path in opened.root.glob("runs/[!.]*.json")} | damaged_names(opened)
        if record.parent != opened.root / "runs" or name not in known:
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


def sound_model(catalog: Any, artifact: Any) -> Any:
    """The artifact of a model, every byte of which is verified, and so is the chain that its card tells."""
    from flows.lineage.graph import graph_of, must_hold
    from storage.errors import DamagedInput

    try:
        found = catalog.store.verified(artifact)
        must_hold(graph_of(catalog.store, found))
    except DamagedInput as error:
        raise OnwardError(
            f"nothing was exported: {error}. Start the run that made it again: it makes it anew; then export it"
        ) from error
    return found


def export(
    model: Annotated[
        str,
        typer.Argument(
            help="budget of a run (1B, RUN:1B) or base, name@alias of the registry, or a key or its beginning",
            show_default=False,
            autocompletion=completion.models,
        ),
    ],
    directory: Annotated[
        Path, typer.Argument(help="directory to write to; it must not exist", show_default=False)
    ],
    store: StoreOption = None,
    config: ConfigOption = None,
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help="safetensors (transformers, vLLM) or gguf (llama.cpp, Ollama)",
            autocompletion=completion.model_formats,
        ),
    ] = "safetensors",
    dtype: Annotated[
        str | None,
        typer.Option(
            help="type of the weights: bf16, fp16, fp32, or (gguf) q8_0, q5_1, q5_0, q4_1, q4_0; without it, bf16 "
            "for a model that was trained in bf16, else as in the store",
            show_default=False,
            autocompletion=completion.dtypes,
        ),
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="measure the perplexity of rounded weights for the card")
    ] = False,
    mlflow: Annotated[
        str | None,
        typer.Option(help="address of MLflow; without it, MLFLOW_TRACKING_URI or the local database"),
    ] = None,
) -> None:
    """Write the files of a model, as other programs load them, with a model card: data, training and scores."""
    from flows.inspect.export import export_model, is_model
    from tasks.models.card import training_of
    from tasks.models.form import form_of

    form_of(format_, dtype, {})  # what does not exist is said before anything is looked for

    opened, artifact, _ = model_of(model, store, config, mlflow)
    catalog = catalog_of(opened.root)
    if not is_model(artifact):
        raise OnwardError(f"{artifact.stage} {artifact.key[:12]} holds no model")
    if not directory.exists():
        artifact = sound_model(catalog, artifact)
    export_model(
        catalog, artifact, directory, form_of(format_, dtype, training_of(catalog, artifact)), measure=measure
    )
    sys.stdout.write(f"{directory}\n")
