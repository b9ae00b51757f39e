"""`plan` and `why`: show what a run would do, and why. They build nothing."""

from __future__ import annotations

import json
import shutil
import sys
from typing import Annotated

import typer

from flows.commands import completion
from flows.commands.common import Config, Overrides, load, nearest
from storage.errors import ConfigError
from tasks import stages


def plan(
    config: Config,
    set_: Overrides = None,
    memory: Annotated[
        str | None, typer.Option(help="estimate training on a GPU with this much memory in bytes, such as 8G")
    ] = None,
    device_name: Annotated[
        str | None, typer.Option(help="with --memory: the GPU's name, such as H100; or cpu")
    ] = None,
    all_: Annotated[
        bool, typer.Option("--all", help="show each artifact, and why it would be made, instead of the table")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="print the rows as JSON")] = False,
) -> None:
    """Show what a run would do and what it costs: stages done and to do, hours, disk, price. Nothing is built.

    Training shows what it would need: micro-batch, checkpointing, tokens per second. The exit code is 0 where everything
    is cached, and 2 where there is work to do.
    """
    from flows.dag.plan import planned, render
    from flows.quote.files import files_text
    from flows.quote.planned import quoted
    from flows.quote.training import with_estimates
    from flows.runs.checks import advice
    from flows.runs.trainable import check_base

    run = load(config, set_ or [], elsewhere=memory is not None)
    warnings = [*check_base(run), *advice(run)]
    machine = _bytes(memory), device_name
    if json_ or all_:
        plan = planned(run, warnings.append)
        rows = with_estimates(run, plan.rows, *machine)
        files = "".join(f"{line}\n" for line in files_text(plan.shelves))
        text = json.dumps([vars(row) for row in rows]) + "\n" if json_ else files + render(rows)
    else:
        found = quoted(run, warnings.append, *machine)
        rows, text = found.rows, found.text(shutil.get_terminal_size((100, 24)).columns)
    for line in dict.fromkeys(warnings):
        sys.stderr.write(f"! {line}\n")
    sys.stderr.flush()
    sys.stdout.write(text)
    raise typer.Exit(0 if all(row.state == "cached" for row in rows) else 2)


def why(
    stage: Annotated[
        str,
        typer.Argument(
            help=f"stage of the run: {', '.join(stages.NAMES)}",
            show_default=False,
            autocompletion=completion.any_stage,
        ),
    ],
    config: Config,
    set_: Overrides = None,
) -> None:
    """Show why a stage would be built: the fields and inputs that differ from the nearest artifact in the store."""
    if stage not in stages.NAMES:
        raise nearest("STAGE", stage, stages.NAMES)
    from flows.dag.plan import make_plan, render

    rows = [row for row in make_plan(load(config, set_ or [])) if row.stage == stage]
    if not rows:
        raise ConfigError(f"the run of {config} has no stage {stage}")
    sys.stdout.write(render(rows))


def _bytes(text: str | None) -> int | None:
    from storage.counts import parse_count

    try:
        return None if text is None else int(parse_count(text))
    except ValueError as error:
        raise ConfigError(f"--memory: {error}") from error
