"""The locations of a project's own files. The servers write only below one directory, `<home>/.onward`.

This module is light to import, because the command line uses it before it loads anything else.
"""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """The project directory, which relative paths start from: `ONWARD_HOME`, or the working directory."""
    return Path(os.environ.get("ONWARD_HOME") or Path.cwd()).resolve()


def from_home(path: str) -> str:
    """A path or pattern relative to the project directory if it lies inside, so that both written forms compare equal."""
    plain = Path(os.path.normpath(path))
    return str(plain.relative_to(home())) if plain.is_relative_to(home()) else str(plain)


def state_directory() -> Path:
    """The directory of the servers' files: databases, logs, and the record of running processes."""
    return home() / ".onward"


def prefect_home() -> Path:
    """Prefect's home: its database and its settings."""
    return Path(os.environ.get("PREFECT_HOME") or state_directory() / "prefect")


def mlflow_database() -> str:
    """The address of MLflow's database, used if no server is configured; `onward up` serves the same database."""
    return f"sqlite:///{state_directory() / 'mlflow' / 'mlflow.db'}"


def mlflow_files(experiment: str) -> Path:
    """The directory of an experiment's files, for experiments in that database."""
    return state_directory() / "mlflow" / "files" / experiment
