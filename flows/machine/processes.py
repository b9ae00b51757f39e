"""Processes by pid and start time: together they name one process of a boot, also after a pid is used again.

Asked of psutil, each time anew. A start is written as the kernel counts it, in clock ticks since boot: an adjusted clock
changes the seconds since 1970 that psutil tells, and never the ticks.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

KILLED_SECONDS = 10.0
"""What the kernel gets for ending a process after SIGKILL."""
_TICKS = os.sysconf("SC_CLK_TCK")
_FIRST_NAMESPACE = "4026531836"
"""The kernel's own PID namespace. In another one, of a container, /etc/machine-id is that of an image."""
_GONE = (psutil.Error, OSError, ValueError)  # ValueError: no number of a process


def start_ticks(pid: int) -> str:
    """The process's start in clock ticks since boot; empty where it is gone or only waits to be reaped."""
    with contextlib.suppress(*_GONE):
        while pid > 0:
            boot, process = psutil.boot_time(), psutil.Process(pid)
            since_boot = process.create_time() - boot
            if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD) or not process.is_running():
                break
            if psutil.boot_time() == boot:  # else the clock was set in between
                return str(round(since_boot * _TICKS))
    return ""


def boot_id() -> str:
    """Changes with each start of the machine."""
    return _line(Path("/proc/sys/kernel/random/boot_id"))


def alive(pid: int | None, ticks: str) -> bool:
    """Whether the very process that had this start is there."""
    return bool(pid and ticks) and start_ticks(int(pid or 0)) == ticks


def started_at(pid: int) -> float | None:
    """When the process started, in seconds since 1970; None where it is gone or only waits to be reaped."""
    ticks = start_ticks(pid)
    return psutil.boot_time() + int(ticks) / _TICKS if ticks else None


def environment_of(pid: int) -> dict[str, str]:
    """The environment that the process was started with; empty where it is gone or not ours to read."""
    with contextlib.suppress(*_GONE):
        return psutil.Process(pid).environ()
    return {}


def parent_of(pid: int) -> int:
    """Its parent's pid; 0 where it is gone."""
    with contextlib.suppress(*_GONE):
        return psutil.Process(pid).ppid()
    return 0


def command_of(pid: int) -> str:
    """Its command line, for people; empty where it is gone."""
    with contextlib.suppress(*_GONE):
        return " ".join(psutil.Process(pid).cmdline()).strip()
    return ""


def every_pid() -> Iterator[int]:
    """The pids there are now, this process left out."""
    return (pid for pid in psutil.pids() if pid != os.getpid())


def group_alive(group: int) -> bool:
    """Whether any process of the group still runs (one that waits to be reaped does not)."""
    for pid in every_pid():
        with contextlib.suppress(OSError):
            if os.getpgid(pid) == group and start_ticks(pid):
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


@dataclass(frozen=True)
class ProcessId:
    """What names a process, for whoever reads it on this machine or on another one. What is not known is empty.

    pid and `started` (clock ticks since boot) count within a boot of a machine and a PID namespace (a container has its
    own). Version 0.1.0 wrote the first three alone.
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
        return cls(pid, os.uname().nodename, start_ticks(pid), boot_id(), namespace, _machine(namespace))

    @classmethod
    def from_dict(cls, known: Mapping[str, Any]) -> ProcessId:
        """As it was written (`to_dict`), by this version or another."""
        names = ("boot", "namespace", "machine")
        rest = {name: str(known.get(name) or "") for name in names}
        return cls(int(known["pid"]), str(known["host"]), str(known["started"]), **rest)

    def to_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        return asdict(self)

    @classmethod
    def from_text(cls, text: str) -> ProcessId | None:
        """As Prefect has it (`to_text`), or as 0.1.0 wrote it: `host:pid`. None for a pid alone, as a worker tells it."""
        *known, pid = text.split(":")
        if not (known and pid.isdigit()):
            return None
        host, started, boot, namespace, machine = [*known, "", "", "", ""][:5]
        return cls(int(pid), host, started, boot, namespace, machine)

    def to_text(self) -> str:
        """In one line: the host's name first, the pid last."""
        return ":".join([self.host, self.started, self.boot, self.namespace, self.machine, str(self.pid)])

    def state(self) -> Literal["alive", "gone", "elsewhere"]:
        """Whether the process is there; "elsewhere" where it cannot be told from here.

        In the same boot and PID namespace pid and start decide, whatever the host is called by now. After another boot of
        the same machine it is gone. A container that is made anew keeps its host's name, so that name decides between
        namespaces.
        """
        boot, namespace, same_host = boot_id(), _namespace(), self.host == os.uname().nodename
        if self.boot and boot and self.boot != boot:
            machine = _machine(namespace)
            same_machine = self.machine == machine if self.machine and machine else same_host
            return "gone" if same_machine else "elsewhere"
        same_space = bool(self.boot and boot) and self.namespace == namespace
        if not (same_space or same_host):
            return "elsewhere"
        return "alive" if alive(self.pid, self.started) else "gone"


def at_work(processes: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of a run record's attempts (→ ProcessId.to_dict) those whose process is there, or cannot be seen from here."""
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
    """The machine-id itself is not to be published (man machine-id)."""
    found = _line(Path("/etc/machine-id")) if namespace == _FIRST_NAMESPACE else ""
    return hashlib.sha256(f"onward {found}".encode()).hexdigest()[:16] if len(found) == 32 else ""


def _line(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8").strip()
    return ""
