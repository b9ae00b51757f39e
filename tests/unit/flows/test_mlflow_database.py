"""Whether MLflow's database is damaged is told of real SQLite files, with the command that sets it aside."""

from __future__ import annotations

import contextlib
import os
import shlex
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.tracking.database import damage_of, damage_told, if_it_stays

PAGE = 4096


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A healthy database of some pages, with an index."""
    path = tmp_path / "mlflow.db"
    with contextlib.closing(sqlite3.connect(path)) as made:
        made.execute("CREATE TABLE runs (number, name)")
        made.execute("CREATE INDEX numbers ON runs (number)")
        made.executemany("INSERT INTO runs VALUES (?, ?)", ((n, "x" * 100) for n in range(1000)))
        made.commit()
    assert path.stat().st_size > 10 * PAGE
    return path


def other(at: int, value: int) -> Callable[[bytes], bytes]:
    """The same bytes, but for one."""
    return lambda raw: raw[:at] + bytes([value]) + raw[at + 1 :]


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "the header": (other(0, 0), "file is not a database"),
    "the header's size of a page": (other(16, 0xFF), "file is not a database"),
    "the header's right to write": (other(18, 9), "attempt to write a readonly database"),
    "a page": (other(PAGE, 0xFF), "Page 2"),
    "cut in the middle": (lambda raw: raw[: len(raw) // 2], "database disk image is malformed"),
    "cut within a page": (lambda raw: raw[: 5 * PAGE + 100], "database disk image is malformed"),
    "zeros": (lambda raw: bytes(len(raw)), "file is not a database"),
    "no database": (lambda raw: b"a text of some length\n" * 99, "file is not a database"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_found_and_told_with_the_way_out(database: Path, kind: str) -> None:
    change, why = DAMAGE[kind]
    database.write_bytes(change(database.read_bytes()))
    assert why in str(damage_of(database))
    said = damage_told(f"sqlite:///{database}", "whatever an error said")
    assert said is not None and why in said and "touches neither training nor the store" in said
    assert said.endswith(f": mv {database} {database}.damaged")


def test_a_healthy_database_is_not_called_damaged_and_not_written(database: Path) -> None:
    before = database.read_bytes(), database.stat().st_mtime_ns
    assert damage_of(database) is None
    assert damage_told(f"sqlite:///{database}", "the disk is busy") is None
    assert (database.read_bytes(), database.stat().st_mtime_ns) == before
    assert [path.name for path in database.parent.iterdir()] == ["mlflow.db"]


def test_what_is_not_there_or_empty_is_no_damage(tmp_path: Path) -> None:
    """MLflow makes its tables in an empty file, as it does where there is none."""
    empty = tmp_path / "empty.db"
    empty.touch()
    assert damage_of(empty) is None
    assert damage_of(tmp_path / "absent.db") is None and not (tmp_path / "absent.db").exists()
    assert damage_of(tmp_path) is None


def test_a_database_that_another_process_writes_or_nobody_may_write_is_no_damage(database: Path) -> None:
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as busy:
        busy.execute("BEGIN IMMEDIATE")
        assert damage_of(database, wait_seconds=0) is None
        busy.execute("ROLLBACK")
    database.chmod(0o444)
    if not os.access(database, os.W_OK):  # root may write anyway
        assert damage_of(database) is None


def test_what_mlflow_says_of_a_table_that_is_gone_is_damage_also_where_sqlite_finds_none(
    database: Path,
) -> None:
    assert damage_of(database) is None
    said = damage_told(f"sqlite:///{database}", "(sqlite3.OperationalError) no such table: experiments")
    assert (
        said is not None and "(no such table)" in said and said.endswith(f"mv {database} {database}.damaged")
    )


def test_behind_a_server_the_server_is_stopped_first(database: Path) -> None:
    said = damage_told("http://127.0.0.1:5000", "500 error: database disk image is malformed")
    assert said is not None and said.count("its database") == 1
    steps = ["onward down", "mv .onward/mlflow/mlflow.db .onward/mlflow/mlflow.db.damaged", "onward up"]
    assert [step in said for step in steps] == [True] * 3 and sorted(steps, key=said.index) == steps
    assert damage_told("http://127.0.0.1:5000", "500 error: the server is busy") is None
    assert if_it_stays("http://127.0.0.1:5000") == ""


def test_the_command_can_be_pasted_whatever_the_path_holds(tmp_path: Path) -> None:
    place = tmp_path / "it's a %20 & ü"
    place.mkdir()
    (place / "mlflow.db").write_bytes(b"no database" * 100)
    told = damage_told(f"sqlite:///{place / 'mlflow.db'}", "") or ""
    assert if_it_stays(f"sqlite:///{place / 'mlflow.db'}").startswith(" (where it says so again: mv ")
    command = told.rpartition(": mv ")[2]
    assert shlex.split(command) == [str(place / "mlflow.db"), str(place / "mlflow.db.damaged")]
