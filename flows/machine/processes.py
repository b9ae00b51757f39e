"""Processes by pid and start time. Together, they identify one process of a boot even if its pid is used again.

Every answer comes from psutil anew. A start is written in the kernel's unit, clock ticks since boot. An adjusted clock
changes psutil's seconds since 1970, but never the ticks.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from storage.provenance import host_name

KILLED_SECONDS = 10.0
"""Time that the kernel gets to end a process after SIGKILL."""
_TICKS = os.sysconf("SC_CLK_TCK")
_FIRST_NAMESPACE = "4026531836"
"""The kernel's own PID namespace. In another one (a container), /etc/machine-id is that of the image."""
_GONE = (psutil.Error, OSError, ValueError)  # ValueError: not a valid pid


def start_ticks(pid: int) -> str:
    """The process's start in clock ticks since boot; empty if it is gone or a zombie."""
    with contextlib.suppress(*_GONE):
        while pid > 0:
            boot, process = psutil.boot_time(), psutil.Process(pid)
            since_boot = process.create_time() - boot
            if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD) or not process.is_running():
                break
            if psutil.boot_time() == boot:  # otherwise the clock was set in between
                return str(round(since_boot * _TICKS))
    return ""


def boot_id() -> str:
    """An id that changes with each start of the machine."""
    return _line(Path("/proc/sys/kernel/random/boot_id"))


def alive(pid: int | None, ticks: str) -> bool:
    """Whether the process with this pid and this start still exists."""
    return bool(pid and ticks) and start_ticks(int(pid or 0)) == ticks


def started_at(pid: int) -> float | None:
    """When the process started, in seconds since 1970; None if it is gone or a zombie."""
    ticks = start_ticks(pid)
    return psutil.boot_time() + int(ticks) / _TICKS if ticks else None


def environment_of(pid: int) -> dict[str, str]:
    """The environment that the process was started with; empty if it is gone or not readable for us."""
    with contextlib.suppress(*_GONE):
        return psutil.Process(pid).environ()
    return {}


def parent_of(pid: int) -> int:
    """The pid of its parent; 0 if it is gone."""
    with contextlib.suppress(*_GONE):
        return psutil.Process(pid).ppid()
    return 0


def command_of(pid: int) -> str:
    """Its command line, for people; empty if it is gone."""
    with contextlib.suppress(*_GONE):
        return " ".join(psutil.Process(pid).cmdline()).strip()
    return ""


def every_pid() -> Iterator[int]:
    """The current pids, without this process."""
    return (pid for pid in psutil.pids() if pid != os.getpid())


def group_alive(group: int) -> bool:
    """Whether any process of the group still runs. A zombie does not count."""
    for pid in every_pid():
        with contextlib.suppress(OSError):
            if os.getpgid(pid) == group and start_ticks(pid):
                return True
    return False


def stop_group(group: int, seconds: float, *, asked: bool = False) -> bool:
    """Stop a process group: SIGTERM, unless it was `asked` before, then SIGKILL after `seconds`.

    Returns True if the group ended before SIGKILL. A group that still exists `KILLED_SECONDS` after SIGKILL is reported on
    standard error and left.
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
    """The message about processes that SIGKILL did not end."""
    return (
        f"{what} is still there {KILLED_SECONDS:.0f} s after SIGKILL, and is left: a device or a file system "
        "does not let go of it (state D in ps)"
    )


def on_hangup(act: Callable[[], object]) -> None:
    """From now on, a closed terminal (SIGHUP) calls `act`. It stays ignored under `nohup`, and outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda number, frame: act())


def send(pids: Iterable[int], number: int) -> None:
    """Send a signal to each process that still exists."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


@dataclass(frozen=True)
class ProcessId:
    """Identifies a process for readers on this or another machine. Unknown values are empty.

    pid and `started` (clock ticks since boot) are valid within one boot of a machine and one PID namespace (a container
    has its own). Version 0.1.0 wrote only the first three fields.
    """

    pid: int
    host: str
    started: str
    boot: str = ""
    namespace: str = ""
    machine: str = ""
    """A digest of /etc/machine-id."""

    @classmethod
    def current(cls) -> ProcessId:
        """This process."""
        pid, namespace = os.getpid(), _namespace()
        return cls(pid, host_name(), start_ticks(pid), boot_id(), namespace, _machine(namespace))

    @classmethod
    def from_dict(cls, known: Mapping[str, Any]) -> ProcessId:
        """Read the form of `to_dict`, written by this version or another."""
        names = ("boot", "namespace", "machine")
        rest = {name: str(known.get(name) or "") for name in names}
        return cls(int(known["pid"]), str(known["host"]), str(known["started"]), **rest)

    def to_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        return asdict(self)

    @classmethod
    def from_text(cls, text: str) -> ProcessId | None:
        """Read the form of `to_text`, which Prefect stores, or `host:pid` of 0.1.0. None for a bare pid (from a worker)."""
        *known, pid = text.split(":")
        if not (known and pid.isdigit()):
            return None
        host, started, boot, namespace, machine = [*known, "", "", "", ""][:5]
        return cls(int(pid), host, started, boot, namespace, machine)

    def to_text(self) -> str:
        """One line that starts with the host's name and ends with the pid."""
        return ":".join([self.host, self.started, self.boot, self.namespace, self.machine, str(self.pid)])

    def state(self) -> Literal["alive", "gone", "elsewhere"]:
        """Whether the process exists; "elsewhere" if this machine cannot tell.

        In the same boot and PID namespace, pid and start decide, even if the host was renamed. After another boot of the
        same machine, the process is gone. A re-created container keeps its host name, so the name tells namespaces apart.
        """
        boot, namespace, same_host = boot_id(), _namespace(), self.host == host_name()
        if self.boot and boot and self.boot != boot:
            machine = _machine(namespace)
            same_machine = self.machine == machine if self.machine and machine else same_host
            return "gone" if same_machine else "elsewhere"
        same_space = bool(self.boot and boot) and self.namespace == namespace
        if not (same_space or same_host):
            return "elsewhere"
        return "alive" if alive(self.pid, self.started) else "gone"


def at_work(processes: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Those of a run record's attempts (→ ProcessId.to_dict) whose process exists or cannot be seen from here."""
    return {
        attempt: process
        for attempt, process in processes.items()
        if ProcessId.from_dict(process).state() != "gone"
    }


def _namespace() -> str:
    with contextlib.suppress(OSError):
        return str(Path("/proc/self/ns/pid").stat().st_ino)
    return ""


def _machine(namespace: str) -> str:
    """An id of the machine. It is a digest, because the machine-id itself must not be published (man machine-id)."""
    found = _line(Path("/etc/machine-id")) if namespace == _FIRST_NAMESPACE else ""
    return hashlib.sha256(f"onward {found}".encode()).hexdigest()[:16] if len(found) == 32 else ""


def _line(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8").strip()
    return ""
