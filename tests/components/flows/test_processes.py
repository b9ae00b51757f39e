"""Processes by pid and start time, and the attempts of a run record that are at work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from flows.machine import processes
from flows.machine.processes import (
    ProcessId,
    alive,
    at_work,
    command_of,
    environment_of,
    start_ticks,
    stop_group,
)
from flows.services import supervisor

ANOTHER_BOOT = "00000000-0000-0000-0000-000000000000"


def process(pid: int, **changed: str) -> dict[str, object]:
    """As this version writes it, with what was another on another machine, or at another time."""
    return {**ProcessId.current().to_dict(), "pid": pid, "started": start_ticks(pid), **changed}


def of_old(pid: int, host: str | None = None) -> dict[str, object]:
    """As 0.1.0 wrote it."""
    return {"pid": pid, "host": host or os.uname().nodename, "started": start_ticks(pid)}


@pytest.fixture
def child():
    started = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield started
    started.kill()
    started.wait()


@pytest.mark.parametrize("write", [process, of_old])
def test_only_attempts_whose_process_is_gone_are_not_at_work(child, write):
    attempts = {"here": write(os.getpid()), "child": write(child.pid)}
    assert at_work(attempts) == attempts
    child.kill()
    child.wait()
    assert set(at_work(attempts)) == {"here"}


def test_what_0_1_0_wrote_on_another_machine_cannot_be_judged():
    attempts = {"there": of_old(1, "elsewhere"), "gone": {**of_old(1, "elsewhere"), "started": "1"}}
    assert at_work(attempts) == attempts


def test_the_start_is_the_kernels_own_count():
    """What 0.1.0 wrote down: field 22 of /proc/PID/stat (man 5 proc)."""
    for pid in (1, os.getpid()):
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            assert start_ticks(pid) == file.read().rsplit(")", 1)[1].split()[19]


def test_an_adjusted_clock_changes_no_start(monkeypatch):
    before, boot, created = start_ticks(os.getpid()), psutil.boot_time(), psutil.Process().create_time()
    for name in ("boot_time", "_psplatform.boot_time"):
        monkeypatch.setattr(f"psutil.{name}", lambda: boot + 3600)
    assert psutil.Process().create_time() > created + 1800, "the hour shows in what psutil tells"
    assert start_ticks(os.getpid()) == before
    told = iter([boot])  # and the next one is a second later
    monkeypatch.setattr("psutil.boot_time", lambda: next(told, boot + 1))
    monkeypatch.setattr("psutil._psplatform.boot_time", lambda: boot + 1)
    assert start_ticks(os.getpid()) == before, "it is set while it is read"


def test_a_process_of_a_host_that_has_another_name_now_is_judged_by_its_boot(child):
    attempts = {"gone": process(child.pid, host="before"), "here": process(os.getpid(), host="before")}
    assert set(at_work(attempts)) == {"gone", "here"}
    child.kill()
    child.wait()
    assert set(at_work(attempts)) == {"here"}


_AS_ANOTHER_HOST = """
import json, socket, sys
from flows.machine.processes import ProcessId, at_work
socket.sethostname("renamed")
print(json.dumps([ProcessId.current().host, sorted(at_work(json.load(sys.stdin)))]))
"""


def test_nor_do_its_records_count_for_ever_once_the_host_is_renamed(child):
    """In a UTS namespace of its own, which has a host's name of its own."""
    attempts = {"gone": process(child.pid), "here": process(os.getpid())}
    child.kill()
    child.wait()
    told = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--uts", sys.executable, "-c", _AS_ANOTHER_HOST],
        input=json.dumps(attempts),
        capture_output=True,
        encoding="utf-8",
    )
    if "unshare:" in told.stderr:
        pytest.skip(f"no namespaces here: {told.stderr}")
    assert json.loads(told.stdout) == ["renamed", ["here"]]


@pytest.mark.parametrize("host", [os.uname().nodename, "before"])
def test_after_another_boot_of_the_machine_nothing_of_before_is_at_work(host):
    """Also where the pid, at the same count of ticks, is a process's again."""
    known = {"there": process(os.getpid(), host=host, boot=ANOTHER_BOOT, machine="0123456789abcdef")}
    if ProcessId.current().machine:
        assert at_work(known) == known, "of another machine"
        known["there"]["machine"] = ProcessId.current().machine
        assert not at_work(known)


def test_where_a_machine_has_no_id_its_name_says_which_it_is():
    for host, expected in ((os.uname().nodename, "gone"), ("elsewhere", "elsewhere")):
        known = process(os.getpid(), host=host, boot=ANOTHER_BOOT, machine="")
        assert ProcessId.from_dict(known).state() == expected


def test_a_pid_of_another_container_on_this_machine_says_nothing_here():
    attempts = {"there": process(os.getpid(), host="its-name", namespace="1", started="1")}
    assert at_work(attempts) == attempts
    attempts["there"]["host"] = os.uname().nodename  # the same one, made anew
    assert not at_work(attempts)


def test_a_pid_that_is_used_again_is_another_process():
    assert alive(os.getpid(), start_ticks(os.getpid()))
    assert not alive(os.getpid(), "1")
    assert not at_work({"reused": {**process(os.getpid()), "started": "1"}})


def test_no_pid_is_no_process():
    for pid in (-1, 0, 2**22 + 1, 2**70):
        assert start_ticks(pid) == "" and command_of(pid) == "" and environment_of(pid) == {}


def test_what_a_run_tells_prefect_is_read_again():
    own = ProcessId.current()
    assert ProcessId.from_text(own.to_text()) == own
    assert ProcessId.from_text("host-of-0-1-0:17") == ProcessId(17, "host-of-0-1-0", "")
    for text in ("17", "", "host:", "host:x"):
        assert ProcessId.from_text(text) is None


_DEAF = "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(600)"


@pytest.fixture
def deaf(monkeypatch):
    """A process in a group of its own that takes no SIGTERM, on a kernel that does not carry out SIGKILL, as for one
    that waits for a device."""
    child = subprocess.Popen(
        [sys.executable, "-c", _DEAF],
        stdout=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "PREFECT__FLOW_RUN_ID": "one", "PREFECT_API_URL": "http://of-this-test/api"},
    )
    assert child.stdout is not None and child.stdout.readline() == b"\n"
    kill, killpg = os.kill, os.killpg
    for name, real in (("kill", kill), ("killpg", killpg)):
        monkeypatch.setattr(
            os, name, lambda to, number, real=real: number == signal.SIGKILL or real(to, number)
        )
    for module in (processes, supervisor):
        monkeypatch.setattr(module, "KILLED_SECONDS", 0.5)
    yield child
    killpg(child.pid, signal.SIGKILL)
    child.wait()


def test_a_group_that_outlives_a_sigkill_is_told_of_and_not_waited_for_for_ever(deaf, capfd):
    began = time.monotonic()
    assert not stop_group(deaf.pid, 0.2)
    assert time.monotonic() - began < 60
    assert f"process group {deaf.pid} is still there" in capfd.readouterr().err


def test_nor_is_a_flow_that_outlives_it(deaf, monkeypatch):
    monkeypatch.setattr(supervisor, "FLOW_GRACE_SECONDS", 0.2)
    said: list[str] = []
    supervisor._end_processes("http://of-this-test/api", said.append)
    assert len(said) == 1 and f"process {deaf.pid} is still there" in said[0]
