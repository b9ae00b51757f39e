"""Processes of this machine by pid and start time: together they name one process, also after a pid is used again.

Linux only (`/proc`), standard library only. Nothing is cached: each question is asked of the kernel anew.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

KILLED_SECONDS = 10.0
"""What the kernel gets for ending a process after SIGKILL."""


def start_ticks(pid: int) -> str:
    """The process's start in clock ticks since boot; empty where it is gone or only waits to be reaped."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def boot_id() -> str:
    """Changes with each start of the machine."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def alive(pid: int | None, ticks: str) -> bool:
    """Whether the very process that had this start is there."""
    return bool(pid and ticks) and start_ticks(int(pid or 0)) == ticks


def started_at(pid: int) -> float:
    """When the process started, in seconds since 1970. Raises OSError where it is gone."""
    ticks = start_ticks(pid)
    if not ticks:
        raise ProcessLookupError(pid)
    for line in Path("/proc/stat").read_text().splitlines():
        if line.startswith("btime "):
            return int(line.split()[1]) + int(ticks) / os.sysconf("SC_CLK_TCK")
    raise OSError("/proc/stat names no time of boot")


def environment_of(pid: int) -> dict[str, str]:
    """The environment that the process was started with; empty where it is gone or not ours to read."""
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    pairs = (entry.partition(b"=") for entry in raw.split(b"\0") if entry)
    return {name.decode(errors="replace"): value.decode(errors="replace") for name, _, value in pairs}


def parent_of(pid: int) -> int:
    """Its parent's pid; 0 where it is gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except (OSError, IndexError, ValueError):
        return 0


def command_of(pid: int) -> str:
    """Its command line, for people."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""


def every_pid() -> Iterator[int]:
    """The pids there are now, this process left out."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            yield int(entry.name)


def group_alive(group: int) -> bool:
    """Whether any process of the group still runs (one that waits to be reaped does not)."""
    for pid in every_pid():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        except (OSError, IndexError):
            continue
        if fields[0] not in "ZX" and int(fields[2]) == group:
            return True
    return False


def stop_group(group: int, seconds: float, *, asked: bool = False) -> bool:
    """SIGTERM to a process group, unless it was `asked` before; SIGKILL after `seconds`. True where it left by itself.

    One that is there `KILLED_SECONDS` after that is told of on standard error, and left.
    """
    if not group_alive(group):
        return True
    if not asked:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGTERM)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not group_alive(group):
            return True
        time.sleep(0.1)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    until = time.monotonic() + KILLED_SECONDS
    while group_alive(group):
        if time.monotonic() > until:
            sys.stderr.write(f"! {still_there(f'process group {group}')}\n")
            break
        time.sleep(0.05)
    return False


def still_there(what: str) -> str:
    """What is told of processes that SIGKILL did not end."""
    return (
        f"{what} is still there {KILLED_SECONDS:.0f} s after SIGKILL, and is left: a device or a file system "
        "does not let go of it (state D in ps)"
    )


def send(pids: Iterable[int], number: int) -> None:
    """A signal to each that is still there."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def at_work(processes: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of a run record's attempts (→ host, pid, start) those whose process is there, or of another machine."""
    here = os.uname().nodename
    return {
        attempt: process
        for attempt, process in processes.items()
        if process["host"] != here or alive(int(process["pid"]), str(process["started"]))
    }
