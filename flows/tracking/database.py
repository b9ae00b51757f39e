"""Whether MLflow's database file is damaged, and the way out. Nothing in it is needed: the store has all of it."""

from __future__ import annotations

import contextlib
import os
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


def damage_told(uri: str, words: str) -> str | None:
    """The sentence about a damaged database at `uri`, if an error with these words comes from one; else None."""
    path = database_of(uri)
    found = damage_of(path) if path is not None else None
    if found is None:
        found = next((one for one in _WORDS if one in words.lower()), None)
    if found is None:
        return None
    name = str(path) if path is not None else "its file .onward/mlflow/mlflow.db"
    first = "" if path is not None else "onward down, then "
    return (
        f"its database is damaged ({found}), which touches neither training nor the store. Set it aside, and "
        f"start the run again, which publishes all of it from the store into a new one: {first}mv {name} {name}.damaged"
    )


def if_it_stays(uri: str) -> str:
    """What to do where a local database gives the same error again, which need not be damage; empty for a server."""
    path = database_of(uri)
    if path is None or not path.is_file():
        return ""
    return f" (where it says so again: mv {path} {path}.damaged, and start the run again, which publishes all anew)"


def damage_of(path: Path) -> str | None:
    """What is wrong with a SQLite file, or None. Nothing is written. It may be in use."""
    if not path.is_file():
        return None
    try:
        with contextlib.closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=5)
        ) as database:
            [(answer,)] = database.execute("PRAGMA integrity_check(1)").fetchall()
            if answer != "ok":
                return " ".join(str(answer).split())[:120]
            database.execute("BEGIN IMMEDIATE")  # fails where the header says that nobody may write
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
