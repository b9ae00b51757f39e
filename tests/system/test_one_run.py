"""One small run of everything, by its command, killed on its way, and its server too: what `make test` shows."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.support.attempts import Attempt, wait_until_alone
from tests.support.servers import flow_run_state, kill_own_server, task_states
from tests.support.small import ONWARD, digests, write_config

LONGER: dict[str, Any] = {
    "budgets": ("40K",),
    "training__execution": {"device": "cpu", "threads": 1, "checkpoint_every": "100ms"},
}
"""A training that lasts long enough to be killed in its middle, behind a checkpoint."""


def test_killed_and_then_without_its_server_it_ends_with_the_bytes_of_a_run_that_was_left_alone(
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

    again = Attempt([*ONWARD, "run", str(config), "--json"], home)
    for stage in ("perplexity", "report"):  # its own Prefect server dies twice: in between, and at the end
        while not list((store / stage).glob("*/manifest.json")):
            if again.process.poll() is not None:
                raise AssertionError(f"it ended with {again.ended(10)}: {again.errors[-3000:]}")
            time.sleep(0.01)
        kill_own_server(again.process.pid)
    assert again.ended(300) == 0, again.errors[-3000:]
    assert "Traceback" not in again.errors and "died (exit code -9) and is started again" in again.errors
    result = json.loads(again.lines[0])
    assert result["state"] == "completed" and wait_until_alone(store) < 30
    assert flow_run_state(home / "prefect" / "prefect.db", result["flow_run"]) == "Completed"
    assert digests(store) == digests(alone / "store")
    assert {stage["state"] for stage in result["stages"]} == {"built", "cached"}
    assert [model["name"] for model in result["models"]] == ["base", "40K"]
    assert (store / result["report"] / "report.html").is_file()
    for model in result["models"]:
        assert (store / model["path"] / "model.safetensors").is_file()
    states = Counter({"built": "Completed", "cached": "Cached"}[stage["state"]] for stage in result["stages"])
    assert task_states(home / "prefect" / "prefect.db", result["flow_run"]) == states
