"""Whether MLflow's database file is damaged, and the way out. Nothing in it is needed: the store has all of it."""

from __future__ import annotations

import contextlib
import os
import shlex
import sqlite3
from pathlib import Path

from flows.tracking.addresses import database_of

_WORDS = (
    "database disk image is malformed",
    "file is not a database",
    "malformed database schema",
    "unsupported file format",
    "can't locate revision",
    "out-of-date database schema",
    "no such table",
    "no such column",
    "has no column named",
    "could not decode to utf-8",
    "constraint failed",
)
"""What SQLite, or MLflow that reads its own tables, says of such a file. A server passes it on."""
_MOVED = "mv {0} {0}.damaged"
_BEHIND_A_SERVER = (
    "stop the server (onward down), in its directory mv .onward/mlflow/mlflow.db .onward/mlflow/mlflow.db.damaged, "
    "and start it (onward up)"
)


def damage_told(uri: str, words: str) -> str | None:
    """The sentence about a damaged database at `uri`, if an error with these words comes from one; else None."""
    path = database_of(uri)
    found = damage_of(path) if path is not None else None
    if found is None:
        found = next((one for one in _WORDS if one in words.lower()), None)
    if found is None:
        return None
    way = _MOVED.format(_quoted(path)) if path is not None else _BEHIND_A_SERVER
    return (
        f"its database is damaged ({found}), which touches neither training nor the store. Set it aside, and "
        f"start the run again, which publishes all of it from the store into a new one (so does each other run that "
        f"it held): {way}"
    )


def if_it_stays(uri: str) -> str:
    """What to do where a local database gives the same error again, which need not be damage; empty for a server."""
    path = database_of(uri)
    if path is None or not path.is_file():
        return ""
    way = _MOVED.format(_quoted(path))
    return f" (where it says so again: {way}, and start the run again, which publishes all anew)"


def _quoted(path: Path) -> str:
    """A path as a shell reads it."""
    return shlex.quote(str(path))


def damage_of(path: Path, wait_seconds: float = 5) -> str | None:
    """What is wrong with a SQLite file, or None. Nothing is written. It may be in use."""
    if not path.is_file():
        return None
    try:
        with contextlib.closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=wait_seconds)
        ) as database:
            [(answer,)] = database.execute("PRAGMA integrity_check(1)").fetchall()
            if answer != "ok":
                return " ".join(str(answer).split())[:120]
            [(version,)] = database.execute("PRAGMA user_version").fetchall()
            database.execute("BEGIN IMMEDIATE")
            database.execute(
                f"PRAGMA user_version = {int(version)}"
            )  # fails where the header forbids writing
            database.execute("ROLLBACK")
    except sqlite3.DatabaseError as error:
        words = str(error)
        if (
            "locked" in words
            or "unable to open" in words
            or "disk" in words.replace("database disk image", "")
        ):
            return None
        if "readonly" in words and not os.access(path, os.W_OK):
            return None
        return words
    except ValueError:  # more than one line, or none
        return "its check cannot be read"
    return None
