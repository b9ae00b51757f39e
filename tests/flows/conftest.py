"""The tests' own helpers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from made import Made, make
from servers import PrefectServer


@pytest.fixture(scope="module")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """A Prefect server with an empty database, for the tests of a module."""
    with PrefectServer(tmp_path_factory.mktemp("home")) as server:
        yield server


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The store of a whole small run, to be read."""
    return make(tmp_path_factory.mktemp("made"))
