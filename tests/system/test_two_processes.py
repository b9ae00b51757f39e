"""A run that trains by two processes: stopped, killed and gone on with, it ends with the bytes of one left alone."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.support.attempts import Attempt, wait_until_alone
from tests.support.begun import begin
from tests.support.small import ONWARD, digests, onward, run_json, write_config

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("runs_share_a_server")]
TWO = {"device": "cpu", "threads": 1, "processes": 2, "checkpoint_every": "500ms"}


def steps(store: Path, stage: str) -> int:
    """Steps in the newest journal of a stage that is being made."""
    journals = list((store / ".work").glob(f"{stage}-*/journal.jsonl"))
    return max((journal.read_text().count("\n") for journal in journals), default=0)


def wait_for_steps(attempt: Attempt, store: Path, number: int) -> None:
    while steps(store, "train") < number:
        assert attempt.process.poll() is None, attempt.errors[-3000:]
        time.sleep(0.02)


def test_two_processes_under_onward_run(tmp_path: Path, reference_run: Path) -> None:
    for store in ("calm", "store"):
        begin(reference_run, tmp_path, store)
    over = {"budgets": ("12K",), "training__execution": TWO}
    calm = Attempt(
        [
            sys.executable,
            "-m",
            "tests.support.driver",
            str(write_config(tmp_path, "calm", **over)),
            "decay",
        ],
        tmp_path,
    )
    assert calm.ended(500) == 0, calm.errors[-3000:]

    config, store = write_config(tmp_path, "store", **over), tmp_path / "store"
    command = [*ONWARD, "run", str(config), "--json", "--until", "decay"]
    asked = Attempt(command, tmp_path)
    wait_for_steps(asked, store, 3)
    asked.process.send_signal(signal.SIGTERM)
    assert asked.ended(120) == 1
    wait_until_alone(store)
    assert list((store / ".work").glob("train-*/checkpoints/step-*"))

    killed = Attempt(command, tmp_path)
    wait_for_steps(killed, store, steps(store, "train") + 5)
    killed.kill(whole_group=False)
    wait_until_alone(store)

    result = run_json(tmp_path, config, "--until", "decay")
    assert digests(store) == digests(tmp_path / "calm")
    for entry in result["stages"]:
        if entry["stage"] in ("train", "decay") and entry["round"]:
            manifest = json.loads((store / entry["path"] / "manifest.json").read_text())
            assert manifest["provenance"]["execution"]["processes"] == 2


def test_more_processes_than_sequences_are_refused_before_any_work(tmp_path: Path) -> None:
    config = write_config(tmp_path, training__execution={**TWO, "processes": 5})
    answer = onward(tmp_path, "run", config)
    assert answer.returncode == 2
    assert "for 4 sequences a step" in answer.stderr
    lonely = write_config(tmp_path, training__execution={**TWO, "nodes": 2})
    answer = onward(tmp_path, "run", lonely)
    assert answer.returncode == 2
    assert "rendezvous must be host:port" in answer.stderr
