"""The store and processes: killed at every write, and two that want one key."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from storage.store import Making, Request, Store
from storage.workers import Workers
from tests.support import ROOT
from tests.support import letters_stage as stages


def request_of(**config) -> Request:
    return Request(stages, stages.LettersConfig(**config), stages.LettersInputs())


def test_the_same_parts_whatever_the_workers(tmp_path):
    alone = Store(tmp_path / "a").ensure(request_of(shards=5)).artifact
    with Workers(2) as workers:
        many = Store(tmp_path / "b").ensure(request_of(shards=5), Making(workers=workers)).artifact
    assert alone.manifest.parts == many.manifest.parts
    assert alone.stats == many.stats


WRITE_EVENTS = {
    "open",
    "os.rename",
    "os.mkdir",
    "os.remove",
    "os.rmdir",
    "os.chmod",
    "os.truncate",
    "shutil.rmtree",
}


def _killed_at(store: Path, boundary: int) -> bool:
    """In a forked child: make the artifact, and die by SIGKILL at the given write. True where it lived to the end."""
    child = os.fork()
    if child == 0:
        seen = 0

        def hook(event, arguments):
            nonlocal seen
            if event in WRITE_EVENTS and arguments and str(store) in str(arguments[0]):
                seen += 1
                if seen == boundary:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        try:
            Store(store).ensure(request_of())
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFEXITED(status)


def test_killed_at_every_write_there_is_nothing_or_a_whole_artifact(tmp_path):
    whole = Store(tmp_path / "calm").ensure(request_of()).artifact.manifest
    boundary, killed = 0, 0
    while True:
        boundary += 1
        root = tmp_path / f"store-{boundary}"
        survived = _killed_at(root, boundary)
        store = Store(root)
        found = store.lookup("letters", whole.key)  # raises were it half there
        if found is not None:
            assert store.verify(found) == []
            assert found.manifest.parts == whole.parts
        after = store.ensure(request_of()).artifact
        assert after.manifest.parts == whole.parts
        assert store.verify(after) == []
        if survived:
            break
        killed += 1
    assert killed > 40, "the hook saw the writes"


def test_killed_after_its_last_write_a_stage_is_not_run_again(tmp_path, monkeypatch):
    store = Store(tmp_path)
    monkeypatch.setattr("storage.store.commit_directory", lambda work, final: os._exit(9))
    child = os.fork()
    if child == 0:
        store.ensure(request_of())
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    monkeypatch.undo()
    monkeypatch.setattr(stages, "run", lambda *arguments: pytest.fail("paid for twice"))
    outcome = store.ensure(request_of())
    assert outcome.state == "built"
    assert store.verify(outcome.artifact) == []


def test_killed_again_and_again_it_still_ends_whole(tmp_path):
    whole = Store(tmp_path / "calm").ensure(request_of()).artifact.manifest
    root = tmp_path / "store"
    for boundary in range(3, 60, 7):
        _killed_at(root, boundary)
    assert Store(root).ensure(request_of()).artifact.manifest.parts == whole.parts


_MAKER = """
import sys, time
from pathlib import Path
from tests.support import letters_stage as stages
from storage.store import Request, Store
original = stages.make_letters
def slow(job, directory):
    with open(sys.argv[2], "a") as log:
        log.write(f"{job[1]}\\n")
    time.sleep(0.1)
    return original(job, directory)
stages.make_letters = slow
print(Store(Path(sys.argv[1])).ensure(Request(stages, stages.LettersConfig(shards=5), stages.LettersInputs())).state)
"""


def _maker(store: Path, log: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", _MAKER, str(store), str(log)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_two_processes_that_want_the_same_key_make_it_once(tmp_path):
    log = tmp_path / "log"
    makers = [_maker(tmp_path / "store", log) for _ in range(2)]
    states = sorted(maker.communicate(timeout=60)[0].strip() for maker in makers)
    assert states == ["built", "cached"]
    assert sorted(log.read_text().split()) == ["1", "2", "3", "4", "5"]


def test_the_lock_is_free_at_once_when_its_owner_is_killed(tmp_path):
    log = tmp_path / "log"
    owner = _maker(tmp_path / "store", log)
    while not log.exists():
        time.sleep(0.01)
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    began = time.monotonic()
    assert Store(tmp_path / "store").ensure(request_of(shards=5)).state == "built"
    assert time.monotonic() - began < 60
