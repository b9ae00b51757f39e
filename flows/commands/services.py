"""`up`, `down`, `status` and `doctor`: the servers and the worker of this directory, and checks of the whole setup."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from flows.commands import completion
from flows.commands.common import ConfigOption, StoreOption, chosen_store, only_store


def up(
    configs: Annotated[
        list[Path] | None,
        typer.Argument(
            help="YAML files to deploy; without one, all of configs/",
            show_default=False,
            autocompletion=completion.configurations,
        ),
    ] = None,
    prefect_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="port of Prefect; 4200, or where it runs already")
    ] = None,
    mlflow_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="port of MLflow; 5000, or where it runs already")
    ] = None,
) -> None:
    """Start Prefect, MLflow, a worker and the deployments on 127.0.0.1. Returns when all of them answer."""
    from flows.services import home

    home.up(configs or [], prefect_port, mlflow_port, _tell)


def down() -> None:
    """Stop what `up` started. Runs write a checkpoint first, and the servers write what they hold."""
    from flows.services import home

    home.down(_tell)


def status(
    store: StoreOption = None,
    config: ConfigOption = None,
    json_: Annotated[bool, typer.Option("--json", help="print one line of JSON")] = False,
) -> None:
    """Show what runs: services, work pools, runs under way, waiting and ended, and the runs of the store."""
    from flows.services.status import collect, render

    found = collect(chosen_store(store, config) if store or config else only_store())
    shown = render(found, secret=not sys.stdout.isatty())
    sys.stdout.write(json.dumps(found, ensure_ascii=False) + "\n" if json_ else shown)


def doctor(
    config: Annotated[
        Path | None,
        typer.Argument(
            help="YAML file of a run, which is checked too",
            show_default=False,
            autocompletion=completion.configurations,
        ),
    ] = None,
) -> None:
    """Check that everything is in place, and say what to do about what is not. Exit code 1: a run would fail."""
    from flows.services.doctor import run_all

    raise typer.Exit(0 if run_all(config, _write) else 1)


def _tell(line: str) -> None:
    _write(line + "\n")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
