"""`rehearse`: the whole run, small, and what the real one will cost."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.common import Config, Overrides, load
from flows.commands.frame import Outcome, answer

if TYPE_CHECKING:
    from flows.runs.rehearsal import Rehearsal


def rehearse(
    config: Config,
    set_: Overrides = None,
    keep: Annotated[
        Path | None,
        typer.Option(help="keep the rehearsal's store, in this new directory; else it is removed"),
    ] = None,
    json_: Annotated[
        bool, typer.Option("--json", help="print what was measured, and the quote, as one line of JSON")
    ] = False,
) -> None:
    """Run everything of a configuration small, in a store of its own, and quote the real run: hours, memory, disk, price.

    It takes minutes, proves that base, text, benchmarks, memory and disk work, and measures the rates of every stage. The
    store keeps them, and `onward plan` uses them from then on.
    """
    answer(lambda: _rehearsal(config, set_ or [], keep), {}, as_json=json_, keeps=False)


def _rehearsal(config: Path, overrides: list[str], keep: Path | None) -> Outcome:
    found = _rehearsed(config, overrides, keep)
    told = {"state": "completed", "path": str(found.path), **found.rehearsed.to_json()}
    return Outcome(told, text=found.quoted.text(shutil.get_terminal_size((100, 24)).columns))


def _rehearsed(config: Path, overrides: list[str], keep: Path | None) -> Rehearsal:
    from flows.runs.checks import check_hub
    from flows.runs.rehearsal import rehearse as begin
    from flows.runs.trainable import check_base
    from flows.ui.console import Console

    run = load(config, overrides)
    console = Console()
    check_hub(run)
    for line in check_base(run):
        console.warn(line)
    try:
        return begin(run, console, keep.absolute() if keep else None)
    finally:
        console.flush()
