"""What all tests share: where the real data lies, an environment in which no service phones home, and their order."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
os.environ.update(
    DO_NOT_TRACK="true",
    PREFECT_SERVER_ANALYTICS_ENABLED="false",
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    GOMP_SPINCOUNT="20000",  # two test processes share the cores: see flows/machine/environment.py
)
LONGEST_FIRST = (
    "integration/test_run.py",
    "flows/test_deploy.py",
    "integration/test_kill.py",
    "docker/test_stack.py",
    "browser/test_ui.py",
    "flows/test_tracking.py",
    "integration/test_stop.py",
    "integration/test_frugal.py",
    "flows/test_outage.py",
    "flows/test_collect.py",
    "tasks/training/test_processes.py",
    "integration/test_processes.py",
    "integration/test_mlflow_away.py",
    "flows/test_evaluation.py",
    "flows/test_hub.py",
    "test_safety.py",
    "integration/test_dask.py",
    "flows/test_services.py",
)
"""Files of a minute and more, by their time in CI: begun last, one would keep one worker busy and leave the other idle."""


def pytest_configure(config: pytest.Config) -> None:
    """With `--dist loadfile` workers take files in the order below, not those with the most tests first."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; the order within a file and of all others stays."""
    place = {ROOT / "tests" / name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real corpora, benchmarks and a small model; skips where they are absent."""
    path = Path(os.environ.get("ONWARD_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"the test data is not at {path}; set ONWARD_TEST_DATA")
    return path.resolve()


@pytest.fixture(scope="session")
def reference_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Home of a whole small run (`write_config`'s own) that nothing disturbed: to be read, or copied, never written.

    Made by the store alone, without Prefect and MLflow; once, for all workers of pytest-xdist.
    """
    sys.path.insert(0, str(ROOT / "tests" / "integration"))
    from small import environment, write_config

    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    home, made = root / "reference", root / "reference-made"
    with (root / "reference.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            home.mkdir(exist_ok=True)
            command = [sys.executable, str(ROOT / "tests/integration/driver.py"), str(write_config(home))]
            answer = subprocess.run(
                command, env=environment(home), cwd=home, capture_output=True, text=True, timeout=800
            )
            assert answer.returncode == 0, answer.stderr[-4000:]
            made.touch()
    return home
