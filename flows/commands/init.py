"""`init`: a first configuration for a folder of text."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from flows.commands import completion
from storage.errors import ConfigError


def init(
    folder: Annotated[Path, typer.Argument(help="folder of text: txt, md, jsonl, parquet, also compressed")],
    base: Annotated[
        str | None, typer.Option(help="model to train: a directory or a hub name; else a small new one")
    ] = None,
    general: Annotated[
        Path | None, typer.Option(help="folder of general text, so that the model forgets less")
    ] = None,
    to: Annotated[Path | None, typer.Option(help="file to write; else the folder's name, .yaml")] = None,
) -> None:
    """Write a configuration for a folder of text, with the reason beside each value. Nothing is run.

    Sizes follow from the text, the model and this machine. A rule of the filter that takes much of a sample is switched
    off, and the file says so.
    """
    from flows.config import parse_config
    from flows.runs.checks import advice, check
    from flows.runs.first_config import first_config
    from storage.yaml_text import parse_yaml

    first = first_config(folder, base=base, general=general)
    target = to or Path(f"{first.name}.yaml")
    if target.exists():
        raise ConfigError(f"{target} is there already; remove it, or name another file with --to")
    run = parse_config(parse_yaml(first.yaml, str(target)), str(target))
    check(run)
    for note in (*first.notes, *(f"! {line}" for line in advice(run))):
        sys.stderr.write(f"{note}\n")
    try:
        target.write_text(first.yaml, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{target} cannot be written ({error.strerror}); name another file with --to"
        ) from error
    shown = completion.from_here(target)
    onward = "onward" if shutil.which("onward") else completion.from_here(Path(sys.argv[0]))
    sys.stderr.write(f"wrote {shown}; next: {onward} run {shown}\n")
