"""docker/compose.yaml as a real compose implementation reads it: interpolated, anchors merged, checked by its schema.

Nothing here starts a container; no engine is needed. `$ONWARD_COMPOSE` names another implementation than those looked for.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import ROOT

FILE = ROOT / "docker" / "compose.yaml"
EXAMPLE = ROOT / "docker" / ".env.example"
SECRETS = {
    # Signs that a URL, a shell or SQL would take for its own: none of them may need quoting by the person who sets it.
    "PREFECT_PASSWORD": "pre:fect@1/2%41'x",
    "MLFLOW_ADMIN_PASSWORD": "ml/flow%40admin-1",
    "POSTGRES_PASSWORD": "post@gres:5/6'y",
    "PREFECT_DATABASE_PASSWORD": "db:pre@fect/7'z",
    "MLFLOW_DATABASE_PASSWORD": "db@ml:flow/8%",
    "MLFLOW_SECRET_KEY": "a-key-of-nothing",
}


def compose() -> list[str]:
    """The command of a compose implementation; skips where there is none."""
    if asked := os.environ.get("ONWARD_COMPOSE"):
        return shlex.split(asked)
    for candidate in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(candidate[0]):
            answer = subprocess.run([*candidate, "version"], capture_output=True, timeout=60)
            if answer.returncode == 0:
                return candidate
    pytest.skip("no compose implementation (Debian: apt-get install --no-install-recommends docker-compose)")


def config(
    variables: dict[str, str], *options: str, env_file: Path = EXAMPLE
) -> subprocess.CompletedProcess[str]:
    """`compose config` with these variables, which go before those of the file, and no others."""
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **variables}
    command = [*compose(), "--env-file", str(env_file), "-f", str(FILE), *options, "config"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def services(variables: dict[str, str] | None = None, *options: str) -> dict[str, Any]:
    """The services, all values resolved. `config` prints a dollar sign doubled; here it stands once."""
    answer = config(SECRETS | (variables or {}), *options)
    assert answer.returncode == 0, answer.stderr
    resolved: dict[str, Any] = _single(yaml.safe_load(answer.stdout))["services"]
    return resolved


def _single(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("$$", "$")
    if isinstance(value, list):
        return [_single(item) for item in value]
    if isinstance(value, dict):
        return {name: _single(item) for name, item in value.items()}
    return value
