"""The servers and the worker on this machine: started, stopped, looked at; and whether everything is in place."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from flows.commands.common import existing


def up(
    configs: Annotated[
        list[Path] | None, typer.Argument(help="YAML files to deploy; configs/*.yaml", show_default=False)
    ] = None,
    prefect_port: Annotated[int | None, typer.Option(min=1, max=65535, help="4200, or where it runs")] = None,
    mlflow_port: Annotated[int | None, typer.Option(min=1, max=65535, help="5000, or where it runs")] = None,
) -> None:
    """Start Prefect, MLflow, a worker and the deployments on 127.0.0.1; returns when all of them answer."""
    from flows.services import home

    home.up(configs or [], prefect_port, mlflow_port, _tell)


def down() -> None:
    """Stop what `up` started: runs leave a checkpoint, the servers write what they hold."""
    from flows.services import home

    home.down(_tell)


def status(
    store: Annotated[Path | None, typer.Option(help="a store whose runs are listed too")] = None,
    json_: Annotated[bool, typer.Option("--json", help="print one line of JSON")] = False,
) -> None:
    """Say what runs: services, work pools, and the runs under way, waiting and ended."""
    from flows.services.status import collect, render

    found = collect(existing(store) if store else None)
    sys.stdout.write(json.dumps(found, ensure_ascii=False) + "\n" if json_ else render(found))


def doctor(
    config: Annotated[Path | None, typer.Argument(help="YAML file of a run", show_default=False)] = None,
) -> None:
    """Check that everything is in place; says for each thing that is not what to do. Exit code 1 where a run would fail."""
    from flows.services.doctor import run_all

    raise typer.Exit(0 if run_all(config, _write) else 1)


def _tell(line: str) -> None:
    _write(line + "\n")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
