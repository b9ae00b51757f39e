"""`push`: a model of a store becomes a repository of the hub."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from flows.commands import completion
from flows.commands.common import ConfigOption, StoreOption, catalog_of, model_of
from storage.errors import OnwardError


def push(
    model: Annotated[
        str,
        typer.Argument(
            help="budget of a run (1B, RUN:1B), 1B-trunk, a merged model, base, name@alias of the registry, or a key",
            show_default=False,
            autocompletion=completion.models,
        ),
    ],
    name: Annotated[str, typer.Argument(help="owner/name on the hub", show_default=False)],
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
            help="type of the weights, as for export",
            show_default=False,
            autocompletion=completion.dtypes,
        ),
    ] = None,
    public: Annotated[
        bool,
        typer.Option(
            "--public",
            help="write to a repository that is open to all; a new one is made so, and else private",
        ),
    ] = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="measure the perplexity of rounded weights for the card")
    ] = False,
    dry_run: Annotated[
        Path | None,
        typer.Option(
            "--dry-run", help="write the folder to this new directory, and send nothing", show_default=False
        ),
    ] = None,
    mlflow: Annotated[
        str | None,
        typer.Option(help="address of MLflow; without it, MLFLOW_TRACKING_URI or the local database"),
    ] = None,
) -> None:
    """Send a model to the hub: weights, tokenizer and model card. The token is HF_TOKEN's or that of `hf auth login`."""
    from flows.commands.store import sound_model
    from flows.inspect.about import about_of
    from flows.inspect.export import export_model, is_model
    from flows.inspect.push import check_name, staged, token_there, unstated
    from flows.inspect.push import push as pushed
    from tasks.models.card import training_of
    from tasks.models.form import form_of

    check_name(name)
    form_of(format_, dtype, {})
    if dry_run is None:
        token_there()
    opened, artifact, _ = model_of(model, store, config, mlflow)
    catalog = catalog_of(opened.root)
    if not is_model(artifact):
        raise OnwardError(f"{artifact.stage} {artifact.key[:12]} holds no model")
    artifact = sound_model(catalog, artifact)
    form = form_of(format_, dtype, training_of(catalog, artifact))
    made = [opened.lookup(row["stage"], row["key"]) for row in catalog.upstream(artifact.key)]
    there = [one for one in made if one is not None]
    if (line := unstated(about_of(opened, artifact), there)) is not None:
        _aside(line)
    if dry_run is not None:
        export_model(catalog, artifact, dry_run, form, measure=measure)
        sys.stdout.write(f"{dry_run}\n")
        return
    folder = staged(catalog, artifact, name, form, measure=measure, say=_aside)
    what = f"{artifact.stage} {artifact.key[:16]}, {form.format} {form.said}"
    sys.stdout.write(f"{pushed(folder, name, form, private=not public, what=what)}\n")


def _aside(line: str) -> None:
    sys.stderr.write(f"{line}\n")
