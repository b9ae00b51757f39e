"""Where a project's own files lie. Everything that servers write is below one directory, `<home>/.onward`.

Light to import: the command line asks here before anything else is loaded.
"""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """The project directory that relative paths start from: `ONWARD_HOME`, or the working directory."""
    return Path(os.environ.get("ONWARD_HOME") or Path.cwd()).resolve()


def from_home(path: str) -> str:
    """A path or pattern as it reads from the project directory, so that absolute and relative ones compare equal."""
    plain = Path(os.path.normpath(path))
    return str(plain.relative_to(home())) if plain.is_relative_to(home()) else str(plain)


def state_directory() -> Path:
    """What the servers keep: databases, logs, and which processes run."""
    return home() / ".onward"


def prefect_home() -> Path:
    """Prefect's home: its database and its settings."""
    return Path(os.environ.get("PREFECT_HOME") or state_directory() / "prefect")


def mlflow_database() -> str:
    """The address of MLflow's database where no server is configured; `onward up` serves the same."""
    return f"sqlite:///{state_directory() / 'mlflow' / 'mlflow.db'}"


def mlflow_files(experiment: str) -> Path:
    """Where the files of an experiment in that database lie."""
    return state_directory() / "mlflow" / "files" / experiment
