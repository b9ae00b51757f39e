"""`onward verify`: it reads all, moves nothing unasked, and touches only what lies where artifacts of known stages lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.inspect.verify import verify
from storage.atomic import make_writable
from storage.errors import OnwardError
from storage.lock import Lock
from storage.runs import collect_garbage
from storage.store import Request, Store, set_aside
from tests.support import letters_stage as letters

KNOWN = ("letters",)


def request_of(**config) -> Request:
    return Request(letters, letters.LettersConfig(**config), letters.LettersInputs())


def flip(path: Path) -> None:
    """Change one byte and leave the size and the time of the last change."""
    before = path.stat()
    make_writable(path.parent)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0x10
    path.write_bytes(raw)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def names(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "store")
    made.ensure(request_of())
    return made


STRANGERS = (
    "photos/2024/a.jpg",
    "backup/0123456789abcdef/file",
    "letters/notes/a.txt",
    "letters/0123456789abcdef.bak/a.txt",
    ".hidden/0123456789abcdef/a.txt",
    "runs/0123456789abcdef/a.txt",
    ".trash/mine/a.txt",
    ".work/mine/a.txt",
)


def test_what_is_not_the_stores_is_never_moved_or_removed(store):
    for name in STRANGERS:
        (store.root / name).parent.mkdir(parents=True, exist_ok=True)
        (store.root / name).write_text("mine")
    (store.root / ".lock").touch()
    before = names(store.root)
    assert verify(store, repair=True, known=KNOWN).damaged == {}
    assert names(store.root) == before
    collect_garbage(store, work=True)
    assert all((store.root / name).read_text() == "mine" for name in STRANGERS)


def test_nothing_is_moved_unless_it_is_asked_for(store):
    artifact = next(store.artifacts())
    flip(artifact.part("letters").paths[2])
    (store.root / ".lock").touch()
    before = names(store.root)
    name = f"letters/{artifact.path.name}"
    found = verify(store, known=KNOWN)
    assert list(found.damaged) == [name] and not found.aside
    assert names(store.root) == before
    found = verify(store, repair=True, known=KNOWN)
    assert found.aside == {name: [f"letters/.damaged-{artifact.path.name}-1"]}
    assert not artifact.path.exists()
    assert store.ensure(request_of()).state == "built"


def test_the_command_says_how_to_repair(store, monkeypatch):
    monkeypatch.setattr(verify, "__kwdefaults__", {"repair": False, "known": KNOWN})
    flip(next(store.artifacts()).part("letters").paths[2])
    answer = CliRunner().invoke(app, ["verify", "--store", str(store.root)])
    assert answer.exit_code == 1
    assert "1 artifacts read, 1 damaged" in answer.stdout
    assert f"onward verify --store {store.root} --repair" in answer.stdout
    answer = CliRunner().invoke(app, ["verify", "--store", str(store.root), "--repair"])
    assert answer.exit_code == 1 and "set aside as letters/.damaged-" in answer.stdout
    answer = CliRunner().invoke(app, ["verify", "--store", str(store.root)])
    assert answer.exit_code == 0 and "0 damaged" in answer.stdout


def test_an_artifact_that_is_made_or_gone_meanwhile_is_no_damage(store, monkeypatch):
    artifact = next(store.artifacts())
    seen = []

    def interfering(one):
        seen.append(one)
        if len(seen) == 1:  # a forced stage has other bytes: the old one is set aside, the new one committed
            set_aside(one.path)
            store.ensure(request_of())
        return ["letters.txt has other bytes than were committed"] if len(seen) < 3 else []

    monkeypatch.setattr(store, "verify", interfering)
    assert verify(store, repair=True, known=KNOWN).damaged == {}
    assert artifact.path.exists()


def test_what_another_process_is_making_is_not_moved(store):
    artifact = next(store.artifacts())
    flip(artifact.part("letters").paths[2])
    with Lock(store.work_of("letters", artifact.key).with_suffix(".lock")):
        found = verify(store, repair=True, known=KNOWN)
    assert found.damaged and not found.aside
    assert artifact.path.exists()


def test_links_are_neither_followed_nor_emptied(tmp_path, store):
    """Two stores may share the artifacts of a stage by a link: what this one does not need may be the other's."""
    other = Store(tmp_path / "other")
    other.root.mkdir()
    (other.root / "letters").symlink_to(store.root / "letters")
    artifact = next(store.artifacts())
    before = names(store.root)
    assert not collect_garbage(other).artifacts
    flip(artifact.part("letters").paths[2])
    verify(other, repair=True, known=KNOWN)
    assert names(store.root) == before
    with pytest.raises(OnwardError, match="is a link"):
        other.set_aside("letters", artifact.key)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letters-0123456789abcdef").mkdir()
    (store.root / ".trash").symlink_to(tmp_path / "mine")
    with pytest.raises(OnwardError, match="is a link"):
        collect_garbage(store)
    assert names(tmp_path / "mine") == ["letters-0123456789abcdef"]
