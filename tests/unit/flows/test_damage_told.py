"""Damage is told, with the way out, never passed on: by every command that reads a store, and by MLflow's accounts."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from flows import cli
from flows.commands.store import export
from flows.inspect.gc import collect
from flows.lineage.graph import graph_of, must_hold
from flows.tracking.account import Account, damaged_lines, left_behind, unpublished
from storage.artifact import Artifact
from storage.atomic import make_writable
from storage.errors import OnwardError
from storage.store import Request, Store
from tests.support import letters_stage as letters


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0x10
    path.chmod(0o644)
    path.write_bytes(raw)


def test_a_damaged_model_is_not_exported(foreign: Any, tmp_path: Path) -> None:
    store, artifact = foreign
    flip(artifact.path / "export" / "letters.txt")
    with pytest.raises(
        OnwardError, match=r"nothing was exported: .*letters.txt has other bytes .* makes it anew"
    ):
        export(model=artifact.key[:8], directory=tmp_path / "out", store=store.root, config=None)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))
    assert not artifact.path.exists(), "it is set aside, so that the run makes it again"


@pytest.fixture
def line(tmp_path: Path) -> tuple[Store, list[Artifact]]:
    """A store with three artifacts, each made of the one before."""
    store, made, before = Store(tmp_path / "store"), [], None
    for letter in "abc":
        request = Request(letters, letters.LettersConfig(letter=letter), letters.LettersInputs(before))
        made.append(store.ensure(request).artifact)
        before = made[-1].part("letters")
    return store, made


def test_lineage_tells_a_chain_only_where_it_holds(
    line: tuple[Store, list[Artifact]], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, (_, _, third) = line
    must_hold(graph_of(store, third))
    monkeypatch.setattr(letters, "make_letters", other_letters)
    again = store.ensure(
        Request(letters, letters.LettersConfig(letter="a"), letters.LettersInputs(None)), force=True
    )
    assert again.differs
    with pytest.raises(OnwardError, match=r"letters/.* was made of letters .* of letters/.*, which now is"):
        must_hold(graph_of(Store(store.root), third))


def other_letters(job: tuple[str, int], directory: Path) -> dict[str, Any]:
    (directory / "letters.txt").write_text(job[0].upper())
    return {"rows": job[1]}


def test_lineage_names_an_artifact_whose_manifest_is_damaged(line: tuple[Store, list[Artifact]]) -> None:
    store, (first, _, third) = line
    make_writable(first.path)
    flip(first.path / "manifest.json")
    with pytest.raises(OnwardError, match="not in the store any more as it was: damaged: "):
        must_hold(graph_of(Store(store.root), third))


def test_a_line_of_the_account_that_was_changed_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / ".tracking").mkdir()
    account = Account.begin(tmp_path, {"attempt": "one", "uri": "sqlite:///x.db"})
    account.add("metric", key="loss", value=2.25)
    account.add("artifact", key="a" * 64)
    assert (damaged_lines(account.path), unpublished(tmp_path)) == (0, {"sqlite:///x.db": {"a" * 64}})
    raw = account.path.read_bytes()
    account.path.write_bytes(raw.replace(b"2.25", b"2.75"))
    assert damaged_lines(account.path) == 1
    with pytest.raises(OSError, match="is not what was written: start its run again"):
        unpublished(tmp_path)


def test_an_account_whose_head_was_changed_is_put_aside(tmp_path: Path) -> None:
    (tmp_path / ".tracking").mkdir()
    account = Account.begin(tmp_path, {"attempt": "one", "uri": "sqlite:///x.db"})
    account.add("metric", key="loss", value=2.25)
    account._lock.release()
    account.path.write_bytes(account.path.read_bytes().replace(b"one", b"two", 1))
    assert list(left_behind(tmp_path)) == []
    assert [path.name for path in (tmp_path / ".tracking").glob("one.damaged")] == ["one.damaged"]


@pytest.mark.parametrize("command", ["lineage {key}", "lineage {path}", "export letters/{key} out"])
@pytest.mark.parametrize("harm", ["flipped", "cut", "gone"])
def test_an_artifact_without_a_readable_manifest_is_not_called_unknown(
    line: tuple[Store, list[Artifact]],
    command: str,
    harm: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    store, (first, _, third) = line
    manifest = third.path / "manifest.json"
    make_writable(third.path)
    if harm == "flipped":
        flip(manifest)
    elif harm == "cut":
        manifest.write_bytes(b"")
    else:
        manifest.unlink()
    words = command.format(key=third.key[:10], path=third.path).split()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["onward", *words, "--store", str(store.root)])
    assert cli._main() == 1
    said = capsys.readouterr()
    assert said.out == "" and str(manifest) in said.err and "no artifact" not in said.err
    assert said.err.endswith("; start the run that made it again, which makes it anew\n")
    monkeypatch.setattr("sys.argv", ["onward", "lineage", first.key[:10], "--store", str(store.root)])
    assert cli._main() == 0, "others are found"


def test_no_damaged_database_is_asked_what_may_be_freed(foreign: Any, tmp_path: Path) -> None:
    """SQLite may answer from a damaged file, without all that was in it."""
    store, artifact = foreign
    database = tmp_path / "mlflow.db"
    with contextlib.closing(sqlite3.connect(database)) as made:
        made.execute("CREATE TABLE model_versions (name)")
        made.executemany("INSERT INTO model_versions VALUES (?)", ((f"model-{n}",) for n in range(2000)))
        made.commit()
    raw = bytearray(database.read_bytes())
    raw[5 * 4096] ^= 0x10
    database.write_bytes(raw)
    said: list[str] = []
    with pytest.raises(OnwardError, match=rf"^nothing was collected, .* is damaged .*mv {database} \S+$"):
        collect(store, mlflow=[f"sqlite:///{database}"], say=said.append)
    assert artifact.path.exists() and not said
    collect(store, mlflow=[f"sqlite:///{database}"], without_mlflow=True, dry_run=True, say=said.append)
    assert said == [
        f"not asked: MLflow at sqlite:///{database} (its database is damaged); models that are registered there "
        "alone are not kept"
    ]


def test_nothing_is_collected_where_an_artifact_has_lost_its_manifest(foreign: Any) -> None:
    store, artifact = foreign
    bare = store.root / "decay" / "0123456789abcdef"
    bare.mkdir(parents=True)
    (bare / "weights").touch()
    with pytest.raises(OnwardError, match="is gone, so it is not known .*: nothing was collected.*--repair"):
        collect(store, without_mlflow=True, say=lambda line: None)
    assert artifact.path.exists()
    bare.rename(store.root / "decay" / ".damaged-0123456789abcdef-1")
    assert collect(store, without_mlflow=True, say=lambda line: None).artifacts
