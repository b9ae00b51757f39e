"""Killed with SIGKILL at random moments in every stage, a run ends with the bytes of one that was never killed."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from small import ONWARD, ROOT, digests, environment, run_json, write_config

STAGES = (
    "ingest",
    "dedup",
    "filter",
    "decontaminate",
    "tokenizer",
    "base",
    "tokenize",
    "pack",
    "train",
    "train",
    "train",
    "perplexity",
    "questions",
    "evaluate",
    "decay",
    "report",
)
LEAVES_WITHIN_SECONDS = 30.0


def still_at_work(store: Path) -> list[str]:
    """Processes that name the store, or hold a file of it open."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            held = [os.readlink(entry) for entry in (process / "fd").iterdir()]
            if str(store) in line or any(name.startswith(str(store)) for name in held):
                found.append(line[:150])
    return found


def wait_until_alone(store: Path) -> float:
    began = time.monotonic()
    while left := still_at_work(store):
        assert time.monotonic() - began < LEAVES_WITHIN_SECONDS, f"outlived the kill: {left}"
        time.sleep(0.1)
    return time.monotonic() - began


class Attempt:
    """A run as a process group; tells when a stage begins."""

    def __init__(self, command: list[str], home: Path) -> None:
        self.process = subprocess.Popen(
            command,
            env=environment(home),
            cwd=home,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self.errors = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._drain = threading.Thread(target=self._read_errors, daemon=True)
        self._drain.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self.errors = self.process.stderr.read()

    def wait_for(self, words: str) -> bool:
        """True when a line with these words was printed, False when the process ended first."""
        while self.process.poll() is None:
            if any(line.startswith(words) for line in self.lines):
                return True
            time.sleep(0.005)
        return False

    def last_stage(self) -> str:
        """The stage that was being made when the process ended; none between two, or while it started."""
        words = self.lines[-1].split() if self.lines else []
        return words[1] if words and words[0] == "make" else "none"

    def kill(self, whole_group: bool) -> None:
        with contextlib.suppress(ProcessLookupError):
            if whole_group:
                os.killpg(self.process.pid, signal.SIGKILL)
            else:
                os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """Part digests of an undisturbed run, and its home."""
    home = tmp_path_factory.mktemp("calm")
    attempt = Attempt(
        [sys.executable, str(ROOT / "tests/integration/driver.py"), str(write_config(home))], home
    )
    attempt.process.wait(600)
    assert attempt.process.returncode == 0, attempt.errors[-3000:]
    return home, digests(home / "store")


@pytest.mark.slow
def test_killed_in_every_stage_it_ends_with_the_same_bytes(tmp_path, calm):
    _, undisturbed = calm
    config = write_config(tmp_path)
    command = [sys.executable, str(ROOT / "tests/integration/driver.py"), str(config)]
    seed = random.randrange(10**6)
    rng = random.Random(seed)
    store = tmp_path / "store"
    kills = 0
    hit = Counter[str]()
    for number, stage in enumerate(STAGES):
        attempt = Attempt(command, tmp_path)
        if attempt.wait_for(f"make {stage} "):
            time.sleep(rng.uniform(0, 3.0 if stage in ("train", "decay") else 0.05))
            attempt.kill(whole_group=number % 2 == 0)
            kills += 1
            hit[attempt.last_stage()] += 1
        wait_until_alone(store)
    while kills < 20:
        attempt = Attempt(command, tmp_path)
        time.sleep(rng.uniform(2, 8))
        attempt.kill(whole_group=kills % 2 == 0)
        kills += 1
        hit[attempt.last_stage()] += 1
        wait_until_alone(store)
    last = Attempt(command, tmp_path)
    last.process.wait(600)
    assert last.process.returncode == 0, last.errors[-3000:]
    assert digests(store) == undisturbed, f"after {kills} kills, seed {seed}"
    assert not list((store / ".work").glob("*/manifest.json"))
    assert hit["train"] and len(hit) > 5, f"the kills landed in {dict(hit)}"
    print(f"{kills} kills, seed {seed}, in {dict(hit)}: {len(undisturbed)} artifacts equal")


@pytest.mark.slow
def test_onward_run_killed_at_random_moments_ends_with_the_same_bytes(tmp_path, calm):
    _, undisturbed = calm
    config = write_config(tmp_path)
    seed = random.randrange(10**6)
    rng = random.Random(seed)
    kills = 0
    longest = 0.0
    for number in range(6):
        attempt = Attempt([*ONWARD, "run", str(config), "--json"], tmp_path)
        try:
            attempt.process.wait(rng.uniform(4, 9))
        except subprocess.TimeoutExpired:
            attempt.kill(whole_group=number % 2 == 0)
            kills += 1
        longest = max(longest, wait_until_alone(tmp_path / "store"))
    assert kills >= 5
    result = run_json(tmp_path, config)
    assert digests(tmp_path / "store") == undisturbed, f"after {kills} kills, seed {seed}"
    assert {f"{s['stage']}/{s['key']}" for s in result["stages"]} == set(undisturbed)
    assert [model["name"] for model in result["models"]] == ["base", "8K", "20K"]
    print(f"{kills} kills of onward run, seed {seed}; the last process left {longest:.1f} s after its kill")
