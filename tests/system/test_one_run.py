"""One small run of everything, by its command, killed once on its way: what `make test` shows of the whole."""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.support.attempts import Attempt, wait_until_alone
from tests.support.servers import task_states
from tests.support.small import ONWARD, digests, run_json, write_config

LONGER: dict[str, Any] = {
    "budgets": ("40K",),
    "training__execution": {"device": "cpu", "threads": 1, "checkpoint_every": "100ms"},
}
"""A training that lasts long enough to be killed in its middle, behind a checkpoint."""


def test_killed_in_mid_training_and_started_again_it_ends_with_the_bytes_of_a_run_that_was_left_alone(
    tmp_path: Path,
) -> None:
    alone, home = tmp_path / "alone", tmp_path / "killed"
    for directory in (alone, home):
        directory.mkdir()
    calm = Attempt([sys.executable, "-m", "tests.support.driver", str(write_config(alone, **LONGER))], alone)
    assert calm.ended(600) == 0, calm.errors[-3000:]

    config, store = write_config(home, **LONGER), home / "store"
    attempt = Attempt([*ONWARD, "run", str(config), "--json"], home)
    while not list((store / ".work").glob("train-*/checkpoints/step-*/manifest.json")):
        if attempt.process.poll() is not None:
            raise AssertionError(f"it ended with {attempt.ended(10)}: {attempt.errors[-3000:]}")
        time.sleep(0.01)
    attempt.kill(whole_group=False)
    wait_until_alone(store)
    assert not (store / "report").exists(), "it was killed before its end"

    result = run_json(home, config)
    assert digests(store) == digests(alone / "store")
    assert {stage["state"] for stage in result["stages"]} == {"built", "cached"}
    assert [model["name"] for model in result["models"]] == ["base", "40K"]
    assert (store / result["report"] / "report.html").is_file()
    for model in result["models"]:
        assert (store / model["path"] / "model.safetensors").is_file()
    states = Counter({"built": "Completed", "cached": "Cached"}[stage["state"]] for stage in result["stages"])
    assert task_states(home / "prefect" / "prefect.db", result["flow_run"]) == states
