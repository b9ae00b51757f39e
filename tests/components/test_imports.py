"""What is imported, and when: neither the help, completion, refusals nor a shard worker load what only a run needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks import stages

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"prefect", "mlflow", "torch", "transformers", "datasets", "lm_eval", "duckdb", "polars", "pyarrow"}
"""Packages that take from a tenth of a second to seconds."""
ORCHESTRA = {"prefect", "mlflow", "torch", "transformers", "lm_eval", "datasets"}

_COMMAND = """
import atexit, json, os, sys
from flows.cli import main
answer = os.dup(1)  # a command that fails leaves standard output closed
sys.argv[0] = "onward"
def tell():
    names = sorted({name.partition(".")[0] for name in sys.modules})
    sys.stdout.flush()
    os.write(answer, ("\\n" + json.dumps(names) + "\\n").encode())
atexit.register(tell)
main()
"""

_SHARDS = """
import importlib, sys

def loaded(module):
    importlib.import_module(module)  # as a worker does that is given a shard of the stage
    return sorted({name.partition(".")[0] for name in sys.modules})
"""

_PROGRAM = """
import json, sys
import prefect, mlflow  # the flow run's own process has them
from shards import loaded
from storage.workers import Workers

if __name__ == "__main__":
    with Workers(2) as workers:
        found = dict(workers.run([(name, loaded, (name,)) for name in sys.argv[1:]]))
    print(json.dumps(found))
"""


def command(tmp_path: Path, *arguments: str, **environment: str) -> tuple[int, set[str]]:
    """(exit code, top-level packages imported) of a command of the command line."""
    answer = subprocess.run(
        [sys.executable, "-c", _COMMAND, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "ONWARD_HOME": str(tmp_path), **environment},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return answer.returncode, set(json.loads(answer.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["run", "--help"], 0),
        (["lineage", "--help"], 0),
        (["baking"], 2),
        (["run"], 2),
        (["run", "run.yaml", "--until", "baking"], 2),
        (["why", "baking", "run.yaml"], 2),
        (["verify"], 1),
        (["verify", "--store", "nowhere"], 1),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else str(given),
)
def test_what_only_talks_loads_nothing_heavy(tmp_path, arguments, code):
    found, names = command(tmp_path, *arguments)
    assert found == code
    assert not names & HEAVY


def test_completion_loads_nothing_heavy(tmp_path):
    code, names = command(
        tmp_path,
        _ONWARD_COMPLETE="complete_bash",
        _TYPER_COMPLETE_ARGS="onward run --until ",
        COMP_WORDS="onward run --until ",
        COMP_CWORD="3",
    )
    assert code == 0
    assert not names & HEAVY


def test_a_shard_worker_loads_its_stage_and_not_the_program(tmp_path):
    (tmp_path / "shards.py").write_text(_SHARDS)
    (tmp_path / "program.py").write_text(_PROGRAM)
    modules = [stage.module for stage in stages.TABLE if stage.per_slice]
    answer = subprocess.run(
        [sys.executable, "program.py", *modules],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout)
    assert set(found) == set(modules)
    for module, names in found.items():
        assert "tasks" in names
        assert not ORCHESTRA & set(names), module
