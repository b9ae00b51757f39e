"""The servers of `onward up` in this home: where they are, and the password that they ask for. Light to import.

The password is in `<home>/.onward/password`, which only its owner can read. Whoever has it can run code as that user, so it
is never on a command line, in a log, or in an address, and it is sent to this home's running servers alone.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import stat
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from flows.machine.processes import alive, boot_id
from storage.errors import OnwardError
from storage.lock import Lock
from storage.paths import state_directory

USER = "onward"
SERVERS = ("prefect", "mlflow")


def password_file() -> Path:
    """The file with this home's password."""
    return state_directory() / "password"


def make_private(directory: Path) -> None:
    """Make a directory that only its owner can enter. One that exists is closed to others if it is ours."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    _close_to_others(directory, 0o700)


def make_credentials(*, renew: bool = False) -> str:
    """`user:password` of this home's servers; the password is made if there is none.

    With `renew`, a password that other users could read is replaced: give it only while no server runs. Raises OnwardError
    if the password cannot be read or written.
    """
    path = password_file()
    try:
        make_private(path.parent)
        with Lock(path.with_name("password.lock")):
            if path.exists() and _close_to_others(path, 0o600) and renew:
                path.unlink()
            if (known := credentials()) is not None:
                return known
            if not path.exists():
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                with os.fdopen(descriptor, "w", encoding="ascii") as file:
                    file.write(secrets.token_urlsafe(24) + "\n")
    except OSError as error:
        raise OnwardError(f"the servers' password cannot be kept in {path}: {error.strerror}") from error
    if (known := credentials()) is None:
        raise OnwardError(
            f"{path} cannot be used as the servers' password: it is empty or another user's. Remove it while nothing "
            "runs, and a new one is made"
        )
    return known


def _close_to_others(path: Path, mode: int) -> bool:
    """Take all rights on our own file from others. Returns True if others had some."""
    found = path.stat()
    if found.st_uid != os.geteuid() or not found.st_mode & 0o077:
        return False
    with contextlib.suppress(OSError):  # a file system without rights
        path.chmod(mode)
    return not path.stat().st_mode & 0o077


def credentials() -> str | None:
    """`user:password` of this home's servers; None if there is none, or this user may not read it."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if stat.S_ISREG(password_file().lstat().st_mode):
            password = password_file().read_text(encoding="ascii").strip()
            return f"{USER}:{password}" if password else None
    return None


def running_servers() -> dict[str, Any] | None:
    """The record of `onward up` in this home if its Prefect server runs; None otherwise."""
    record = _record()
    return record if record is not None and _runs(record, "prefect") else None


def credentials_for(address: str | None) -> str | None:
    """`user:password` for an address of this home's running servers; None for every other address.

    The process of the server must exist: its port may be another's by now.
    """
    if not address or (record := _record()) is None:
        return None
    with contextlib.suppress(ValueError, KeyError):
        parts = urlsplit(address)
        here = parts.scheme == "http" and parts.hostname in ("127.0.0.1", "localhost")
        if here and any(parts.port == record[f"{name}_port"] and _runs(record, name) for name in SERVERS):
            return credentials()
    return None


def ask_directly(environment: MutableMapping[str, str]) -> None:
    """Let no request to this machine's own addresses go through a proxy, which could read the password."""
    for name in ("no_proxy", "NO_PROXY"):
        known = [part.strip() for part in environment.get(name, "").split(",") if part.strip()]
        environment[name] = ",".join(dict.fromkeys([*known, "127.0.0.1", "localhost"]))


def basic(known: str) -> str:
    """The value of the header `Authorization` for `user:password`."""
    return "Basic " + base64.b64encode(known.encode()).decode()


def _record() -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError):
        record = json.loads((state_directory() / "services.json").read_bytes())
        return record if isinstance(record, dict) else None
    return None


def _runs(record: dict[str, Any], name: str) -> bool:
    with contextlib.suppress(KeyError, TypeError):
        service = record["services"][name]
        return bool(record["boot"] == boot_id() and alive(service["pid"], service["started"]))
    return False
