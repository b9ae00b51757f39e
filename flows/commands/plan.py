"""`plan` and `why`: what a run would do, and what makes the difference; nothing is built."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from flows.commands.common import Config, Overrides, load
from storage.errors import ConfigError


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
    from flows.dag.plan import make_plan, render
    from flows.runs.checks import advice
    from flows.runs.estimate import with_estimates

    run = load(config, set_ or [])
    for line in advice(run):
        sys.stderr.write(f"! {line}\n")
    rows = with_estimates(run, make_plan(run), _bytes(memory), device_name)
    sys.stdout.write(json.dumps([vars(row) for row in rows]) + "\n" if json_ else render(rows))
    raise typer.Exit(0 if all(row.state == "cached" for row in rows) else 2)


def why(
    stage: Annotated[str, typer.Argument(help="stage, such as filter")],
    config: Config,
    set_: Overrides = None,
) -> None:
    """Say why a stage will run again: the fields and inputs that differ from what is in the store."""
    from flows.dag.plan import make_plan, render

    rows = [row for row in make_plan(load(config, set_ or [])) if row.stage == stage]
    if not rows:
        raise ConfigError(f"this run has no stage {stage!r}")
    sys.stdout.write(render(rows))


def _bytes(text: str | None) -> int | None:
    from storage.counts import parse_count

    try:
        return None if text is None else int(parse_count(text))
    except ValueError as error:
        raise ConfigError(f"--memory: {error}") from error
