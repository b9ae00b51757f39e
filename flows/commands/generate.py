"""`generate`: a model of a store continues a text, alone or beside another."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from flows.commands import completion
from flows.commands.common import ConfigOption, StoreOption, catalog_of, model_of
from storage.errors import ConfigError, OnwardError


def generate(
    model: Annotated[
        str,
        typer.Argument(
            help="budget of a run (1B, RUN:1B) or base, name@alias of the registry, or a key or its beginning",
            show_default=False,
            autocompletion=completion.models,
        ),
    ],
    prompt: Annotated[str, typer.Argument(help="the text to continue", show_default=False)],
    against: Annotated[
        str | None,
        typer.Option(
            help="another model beside it; base: that from which MODEL was trained",
            show_default=False,
            autocompletion=completion.models,
        ),
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="tokens at most; a model may end its text before")] = 128,
    temperature: Annotated[
        float, typer.Option(min=0.0, help="how freely tokens are drawn; 0: always the most likely one")
    ] = 0.8,
    seed: Annotated[int, typer.Option(min=0, help="of what is drawn; the same for both models")] = 0,
    store: StoreOption = None,
    config: ConfigOption = None,
    mlflow: Annotated[
        str | None,
        typer.Option(help="address of MLflow; without it, MLFLOW_TRACKING_URI or the local database"),
    ] = None,
) -> None:
    """Continue a text with a model of a store, shown as it is written."""
    from flows.inspect.export import as_model
    from tasks.evaluation.generate import Way, open_model, pieces
    from tasks.models.card import before_training, begun_with

    if not prompt:
        raise ConfigError("the text to continue is empty; give a few words")
    opened, artifact, _ = model_of(model, store, config, mlflow)
    catalog = catalog_of(opened.root)
    chosen = [(model, _with_model(artifact))]
    if against is not None:
        other = before_training(catalog, artifact) if against == "base" else None
        if other is None and against == "base":
            raise ConfigError(f"--against base: {model} is a base itself; name another model")
        chosen.append((against, _with_model(other or model_of(against, opened.root, None, mlflow)[1])))
    way = Way(tokens, temperature, seed=seed)
    begin = begun_with(catalog, artifact)
    texts = []
    for name, one in chosen:
        with as_model(opened, one) as directory:
            texts.append((name, pieces(open_model(directory, begin), prompt, way, _aside)))
    if len(texts) == 1:
        _alone(prompt, texts[0][1])
    elif sys.stdout.isatty():
        _beside(prompt, texts)
    else:
        for name, text in texts:
            sys.stdout.write(f"── {name}\n")
            _alone(prompt, text)


def _aside(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _with_model(artifact: Any) -> Any:
    from flows.inspect.export import is_model

    if not is_model(artifact):
        raise OnwardError(f"{artifact.stage} {artifact.key[:12]} holds no model")
    return artifact


def _alone(prompt: str, text: Iterator[str]) -> None:
    sys.stdout.write(prompt)
    for piece in text:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")


def _beside(prompt: str, texts: list[tuple[str, Iterator[str]]]) -> None:
    """Both in columns of a terminal, each a token further at a time."""
    from rich.console import Console
    from rich.live import Live

    so_far = [prompt] * len(texts)
    names = [name for name, _ in texts]
    console = Console(file=sys.stdout)  # type: ignore[arg-type]
    with Live(_columns(names, so_far), console=console, vertical_overflow="visible") as live:
        for grown in itertools.zip_longest(*(text for _, text in texts), fillvalue=""):
            so_far = [text + piece for text, piece in zip(so_far, grown, strict=True)]
            live.update(_columns(names, so_far))


def _columns(names: list[str], texts: list[str]) -> Any:
    from rich.table import Table
    from rich.text import Text

    table = Table(expand=True, show_edge=False)
    for name in names:
        table.add_column(Text(name), ratio=1)
    table.add_row(*(Text(text) for text in texts))
    return table
