"""The end of a message of failure: the same again where that can help, else what has to be changed first."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Any

import pytest

from flows.dag.call import Call
from flows.runs.ending import advice, ending_of, lost_ending, ways_of_lost, ways_to_go_on
from flows.runs.failure import RunRefused, run_failed
from storage.errors import (
    BadInput,
    ConfigError,
    DamagedArtifact,
    HubUnreachable,
    Interrupted,
    OnwardError,
    StageFailed,
)
from storage.runs import RunRecord
from storage.store import Request, Store
from tasks.models.trainer import LOG, RESULT, _judge
from tests.support import letters_stage

AGAIN = [
    StageFailed("a worker process died", passing=True),
    HubUnreachable("the hub cannot be reached"),
    DamagedArtifact("train/3f9a2c: other bytes"),
    Interrupted("asked to stop"),
    OSError(errno.EIO, "Input/output error"),
    ConnectionResetError("reset by peer"),
    TimeoutError("timed out"),
    MemoryError(),
]
CHANGED = [
    StageFailed("the loss was not finite; lower training.learning_rate"),
    StageFailed("ingest: 3 of 9 rows had to be set aside"),
    ConfigError("training.optimizer.betas: must be below 1"),
    BadInput("model.base: a Mamba cannot be trained"),
    OnwardError("no such thing"),
]
PUT_RIGHT = [
    OSError(number, "of the system", "/data/file")
    for number in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.ENOENT, errno.ENOTDIR)
]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(
        sys, "argv", ["/opt/onward", "run", "my runs.yaml", "--set", "training.token_budgets=[40M]"]
    )
    return "onward run 'my runs.yaml' --set 'training.token_budgets=[40M]'"


@pytest.mark.parametrize("error", AGAIN, ids=repr)
def test_what_may_pass_asks_for_the_same_again(error: Exception, terminal: str) -> None:
    assert advice(error, ways_to_go_on(None, False)) == f"To go on: {terminal}"
    page = "http://127.0.0.1:4200/runs/flow-run/1"
    assert advice(error, ways_to_go_on(page, True)) == (
        f"To go on: the button Retry on this run's page in Prefect ({page})"
    )


@pytest.mark.parametrize("error", CHANGED, ids=repr)
def test_what_would_fail_again_asks_for_a_change_and_names_no_retry(error: Exception, terminal: str) -> None:
    here = advice(error, ways_to_go_on(None, False))
    assert here == f"The same fails again in the same way. Change what is said above, then: {terminal}"
    there = advice(error, ways_to_go_on("http://127.0.0.1:4200/runs/flow-run/1", True))
    assert "start a new run of its deployment" in there
    assert "Retry" not in there and "retry" not in there


@pytest.mark.parametrize("error", PUT_RIGHT, ids=lambda error: errno.errorcode[error.errno])
def test_what_the_machine_refuses_is_to_be_put_right_first(error: OSError, terminal: str) -> None:
    assert advice(error, ways_to_go_on(None, False)) == (
        f"The same fails again until this is put right. Then: {terminal}"
    )


def test_an_unknown_error_promises_nothing(terminal: str) -> None:
    line = advice(ZeroDivisionError("division by zero"), ways_to_go_on(None, False))
    assert line == f"Onward does not know this error, and it may come again. To go on: {terminal}"


def test_nothing_is_called_kept_where_nothing_was_made(tmp_path: Path, terminal: str) -> None:
    store = Store(tmp_path / "store")
    ways = ways_to_go_on(None, False)
    error: Exception = ConfigError("seed: must be a number")
    refused = run_failed(error, ending_of(error, store, [], ways))
    assert isinstance(refused, RunRefused)
    assert str(refused).splitlines()[1] == "Nothing was begun."
    request = Request(letters_stage, letters_stage.LettersConfig(), letters_stage.LettersInputs())
    error = StageFailed("it failed")
    call = Call(request, 1, None, None, state="failed", error=error)
    told = str(run_failed(error, ending_of(error, store, [call], ways))).splitlines()
    assert told[0] == f"{call.label} failed: it failed"
    assert told[1] == "Kept: nothing, because nothing was finished yet."
    assert told[2] == f"Repeats: {call.name} from its start, then what was not begun."
    assert "checkpoint" not in "".join(told)


TRAINER: list[tuple[int, str, Any, str]] = [
    (-9, "", True, "was ended by SIGKILL"),
    (-1, "", True, "was ended by SIGHUP"),
    (-11, "", None, "was ended by SIGSEGV"),
    (74, "trainer: error: the disk is full", True, "the disk is full"),
    (1, "trainer: error: The loss was not finite", False, "The loss was not finite"),
    (1, "Traceback\nKeyError: 3", None, "KeyError: 3"),
    (1, "trainer 1: error: This process lost the others (x).", True, "lost the others"),
    (1, "trainer: error: the disk is full\ntrainer: exit code 74", True, "the disk is full"),
]
"""The last: under torchrun, which gives no code but 1."""
DAMAGED = [
    (76, "trainer: error: a.arrow was altered"),
    (1, "trainer 1: error: a.arrow was altered\ntrainer 1: exit code 76"),
]


@pytest.mark.parametrize(("code", "words", "passing", "told"), TRAINER)
def test_a_trainer_that_failed_says_whether_the_same_may_succeed(
    tmp_path: Path, code: int, words: str, passing: bool | None, told: str
) -> None:
    (tmp_path / LOG).write_text(words)
    with pytest.raises(StageFailed, match=told) as raised:
        _judge(code, tmp_path, 0)
    assert raised.value.passing is passing
    assert "kept" not in str(raised.value)


@pytest.mark.parametrize(("code", "words"), DAMAGED)
def test_a_trainer_that_met_damage_asks_for_no_change(
    tmp_path: Path, terminal: str, code: int, words: str
) -> None:
    (tmp_path / LOG).write_text(words)
    with pytest.raises(DamagedArtifact, match="found damaged bytes: .*a.arrow was altered$") as raised:
        _judge(code, tmp_path, 0)
    assert advice(raised.value, ways_to_go_on(None, False)) == f"To go on: {terminal}"


def test_a_trainer_that_was_asked_to_stop_did_not_fail(tmp_path: Path) -> None:
    for code in (75, 0):
        with pytest.raises(Interrupted):
            _judge(code, tmp_path, 0)
    (tmp_path / RESULT).write_text("{}")
    _judge(0, tmp_path, 0)


def test_of_a_run_whose_process_is_gone_the_record_and_the_store_say_what_is_kept(tmp_path: Path) -> None:
    shard = tmp_path / ".work" / f"filter-{'c' * 16}" / "00001" / ".shard.json"
    shard.parent.mkdir(parents=True)
    shard.write_text("{}")
    record = RunRecord("small-3f9a2c", "small", {}, (("ingest", "a" * 64), ("dedup", "b" * 64)))
    ending = lost_ending(Store(tmp_path), record, ways_of_lost(deployed=True))
    assert "2 finished stages" in ending.message and "1 finished shards of filter · cccccc" in ending.message
    assert "Retry" in ending.page and ending.title.startswith("Crashed: ")
    unknown = lost_ending(None, None, ways_of_lost(deployed=False))
    assert "every finished stage" in unknown.page and "onward run" in unknown.page
