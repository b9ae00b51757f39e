"""The tests' own helpers."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from made import Made, opened
from servers import PrefectServer


@pytest.fixture(scope="module")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """A Prefect server with an empty database, for the tests of a module."""
    with PrefectServer(tmp_path_factory.mktemp("home")) as server:
        yield server


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, reference_run: Path) -> Made:
    """The store of a whole small run, to be read; trackers keep beside it how far they have told."""
    home = tmp_path_factory.mktemp("made")
    shutil.copytree(reference_run, home, symlinks=True, dirs_exist_ok=True)
    return opened(home, home / "store")
