"""What all tests share: an environment in which no service phones home, the real data, and whole runs to be read."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import ROOT
from tests.support.order import LONGEST

if TYPE_CHECKING:
    from tests.support.made import Made
    from tests.support.servers import PrefectServer

os.environ.update(
    DO_NOT_TRACK="true",
    PREFECT_SERVER_ANALYTICS_ENABLED="false",
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    GOMP_SPINCOUNT="20000",  # two test processes share the cores: see flows/machine/environment.py
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files; within a file, tests stay as they are written."""
    place = {ROOT / "tests" / name: number for number, name in enumerate(LONGEST)}
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
    from tests.support.small import environment, write_config

    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    home, made = root / "reference", root / "reference-made"
    with (root / "reference.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            home.mkdir(exist_ok=True)
            command = [sys.executable, "-m", "tests.support.driver", str(write_config(home))]
            answer = subprocess.run(
                command, env=environment(home), cwd=home, capture_output=True, text=True, timeout=800
            )
            assert answer.returncode == 0, answer.stderr[-4000:]
            made.touch()
    return home


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, reference_run: Path) -> Made:
    """The store of a whole small run, to be read; trackers keep beside it how far they have told."""
    from tests.support.made import opened

    home = tmp_path_factory.mktemp("made")
    shutil.copytree(reference_run, home, symlinks=True, dirs_exist_ok=True)
    return opened(home, home / "store")


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """A Prefect server for all tests of a worker that ask for flow runs by their ids, and for none that want it empty."""
    from tests.support.servers import PrefectServer

    with PrefectServer(tmp_path_factory.mktemp("prefect")) as server:
        yield server


@pytest.fixture(scope="module")
def runs_share_a_server(prefect_server: PrefectServer) -> Iterator[PrefectServer]:
    """`onward run`, as the tests of a module start it, uses that server: it starts none of its own, which takes seconds."""
    from tests.support.small import SERVER

    os.environ[SERVER] = prefect_server.api_url
    yield prefect_server
    del os.environ[SERVER]
