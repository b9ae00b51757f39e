"""What came from elsewhere: a store that was unpacked by hand, and files that would run code if they were trusted.

The module is the stage whose artifact it makes.
"""

from __future__ import annotations

import json
import pickle
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from storage.atomic import make_writable
from storage.draft import Draft
from storage.manifest import SEAL, VERIFIED, FileEntry, part_of
from storage.settings import Settings, identity
from storage.store import Request, Store

STAGE, VERSION = "letters", 1


class Letters(Settings):
    """Of the stage that this module is: one file in the part `export`."""

    letter: str = identity("a", description="what is written")


@dataclass(frozen=True)
class Nothing:
    """It has no inputs."""


def run(config: Letters, inputs: Nothing, draft: Draft) -> dict[str, int]:
    """Write the file."""
    (draft.path / "export").mkdir(exist_ok=True)
    (draft.path / "export" / "letters.txt").write_text(config.letter)
    draft.part("export", "export")
    return {"letters": 1}


REQUEST = Request(sys.modules[__name__], Letters(), Nothing())


@pytest.fixture
def foreign(tmp_path):
    """A store with one artifact, writable as if it had been unpacked by hand; beside it, a file that is not its own."""
    (tmp_path / "secret.txt").write_text("s")
    store = Store(tmp_path / "store")
    artifact = store.ensure(REQUEST).artifact
    make_writable(artifact.path)
    return store, artifact


def edited(artifact: Any, **changes: Any) -> None:
    """The artifact's manifest with changes: `entry` for its one file, others for the manifest itself.

    It agrees with itself, as that of somebody who knows how it is made.
    """
    path = artifact.path / "manifest.json"
    raw = json.loads(path.read_bytes())
    part = raw["parts"]["export"]
    part["files"][0] |= changes.pop("entry", {})
    part["digest"] = part_of([FileEntry(**entry) for entry in part["files"]]).digest
    del raw["provenance"][SEAL], raw["provenance"][VERIFIED]
    path.write_text(json.dumps(raw | changes))


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = str(trace)

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.trace, "w")


SCRIPT = "open({trace!r}, 'w').close()\n"


@pytest.fixture
def trace(tmp_path):
    """The file that must not appear; checked at the end, after it was seen that a bomb does go off."""
    path = tmp_path / "it-went-off"
    pickle.loads(pickle.dumps(Bomb(path))).close()
    assert path.exists()
    path.unlink()
    yield path
    assert not path.exists(), "foreign code was run"


def plant(directory: Path, trace: Path, *names: str) -> None:
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".py"):
            (directory / name).write_text(SCRIPT.format(trace=str(trace)))
        else:
            (directory / name).write_bytes(pickle.dumps(Bomb(trace)))
