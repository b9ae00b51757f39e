"""The code, versions and machine that made an artifact. They are recorded beside it and never enter its key."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from storage.code import stage_code_digest

_LIBRARIES = (
    "torch",
    "transformers",
    "pyarrow",
    "duckdb",
    "polars",
    "numpy",
    "tokenizers",
    "lm_eval",
    "rensa",
)


def host_name() -> str:
    """The machine's name as one word that every file can hold: without colons, blanks and bytes that are no text."""
    name = os.uname().nodename.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() and letter not in ": " else "-" for letter in name)


def provenance(
    module: Any,
    began: float,
    seconds: float,
    warnings: list[str],
    execution: dict[str, Any],
    facts: dict[str, Any],
) -> dict[str, Any]:
    """Code digest, git commit, library versions, execution, start and end (UTC), host, warnings, given facts.

    `seconds` are those that it took; a clock that was set back meanwhile puts no end before its beginning.
    """
    ended = max(began, time.time())
    return {
        "code": stage_code_digest(module),
        "git": git_commit(),
        "python": platform.python_version(),
        "libraries": _versions(),
        "execution": execution,
        "started": _utc(began),
        "ended": _utc(ended),
        "seconds": round(seconds, 3),
        "host": host_name(),
        "warnings": warnings,
        **facts,
    }


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")


@functools.cache
def _versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def git_commit() -> str | None:
    """The commit of this code, if it is in a git checkout."""
    here = Path(__file__).resolve().parents[1]
    try:
        answer = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "HEAD"],
            capture_output=True,
            encoding="utf-8",
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None if answer.returncode == 0 else None
