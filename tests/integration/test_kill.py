"""Killed with SIGKILL in every stage, a run ends with the bytes of one that was never killed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

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
    "perplexity",
    "questions",
    "evaluate",
    "samples",
    "train",
    "train",
    "decay",
    "checkpoint",
    "contamination",
    "data",
    "report",
)
"""Every stage, in the order in which a run comes to them: one that is killed has all that follow before it."""
EVERY_STAGE: dict[str, Any] = {
    "budgets": ("8K",),
    "training__keep_every_tokens": "4K",
    "evaluation__checkpoints": True,
    "evaluation__own": [
        {"name": "continuation", "group": "domain", "held_out": "domain", "questions": 8},
        {"name": "counting", "group": "general", "file": "questions.jsonl"},
    ],
}
"""A run that comes to each of them: a checkpoint kept on the way, a benchmark that the corpus was not searched for."""
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


def configure(home: Path) -> list[str]:
    """The command that makes a run of every stage in `home`."""
    rows = [
        {"question": f"The word after {word} is", "choices": [after, "none"], "answer": 0}
        for word, after in (("one", "two"), ("three", "four"))
    ]
    (home / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    config = write_config(home, **EVERY_STAGE)
    return [sys.executable, str(ROOT / "tests/integration/driver.py"), str(config)]


@pytest.mark.slow
def test_killed_in_every_stage_it_ends_with_the_same_bytes(tmp_path, tmp_path_factory):
    calm = tmp_path_factory.mktemp("calm")
    alone = Attempt(configure(calm), calm)
    command, store = configure(tmp_path), tmp_path / "store"
    assert alone.process.wait(600) == 0, alone.errors[-3000:]
    undisturbed = digests(calm / "store")
    seed = random.randrange(10**6)
    rng = random.Random(seed)
    begun, hit = Counter[str](), Counter[str]()
    for number, stage in enumerate(STAGES):
        attempt = Attempt(command, tmp_path)
        if attempt.wait_for(f"make {stage} "):
            time.sleep(rng.uniform(0, 3.0 if stage in ("train", "decay") else 0.05))
            attempt.kill(whole_group=number % 2 == 0)
            begun[stage] += 1
            hit[attempt.last_stage()] += 1
        wait_until_alone(store)
    last = Attempt(command, tmp_path)
    assert last.process.wait(600) == 0, last.errors[-3000:]
    assert digests(store) == undisturbed, f"killed in {dict(hit)}, seed {seed}"
    assert not list((store / ".work").glob("*/manifest.json"))
    assert begun == Counter(STAGES), f"not begun any more when it was to be killed; seed {seed}"
    assert hit["train"] and len(hit) > 9, f"the kills landed in {dict(hit)}"
    print(f"{begun.total()} kills, seed {seed}, in {dict(hit)}: {len(undisturbed)} artifacts equal")


@pytest.mark.slow
def test_onward_run_killed_again_and_again_ends_with_the_same_bytes(tmp_path, reference_run):
    undisturbed = digests(reference_run / "store")
    config, store = write_config(tmp_path), tmp_path / "store"
    seed = random.randrange(10**6)
    rng = random.Random(seed)
    longest = 0.0
    for number in range(4):
        before = len(finished(store))
        attempt = Attempt([*ONWARD, "run", str(config), "--json"], tmp_path)
        while len(finished(store)) == before:
            assert attempt.process.poll() is None, attempt.errors[-3000:]
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 4))
        assert attempt.process.poll() is None
        attempt.kill(whole_group=number % 2 == 0)
        longest = max(longest, wait_until_alone(store))
    result = run_json(tmp_path, config)
    assert digests(store) == undisturbed, f"after {number + 1} kills, seed {seed}"
    assert {f"{s['stage']}/{s['key']}" for s in result["stages"]} == set(undisturbed)
    assert [model["name"] for model in result["models"]] == ["base", "8K", "20K"]
    print(
        f"{number + 1} kills of onward run, seed {seed}; the last process left {longest:.1f} s after its kill"
    )


def finished(store: Path) -> set[Path]:
    """The artifacts that are there."""
    return set(store.glob("[!.]*/*/manifest.json"))
