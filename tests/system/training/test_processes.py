"""Training by several processes: the batches of one, the same bits whatever is killed, all of them gone in the end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from storage.errors import ConfigError, DamagedArtifact, Interrupted, StageFailed
from tasks.models import trainer
from tasks.training.device import execution
from tasks.training.process import launch, restart
from tasks.training.process.processes import ALONE, Processes, mark_of
from tasks.training.read_spec import parse_spec
from tasks.training.spec import Execution
from tasks.training.state.sealed import read_sealed
from tests.support import ROOT
from tests.support.training.families import SMOLLM, counted
from tests.support.training.groups import (
    CHANGES,
    STEPS,
    at_work,
    in_a_group,
    losses,
    ranks_of,
    started,
    train,
    wait_until,
)
from tests.support.training.world import World, journal_steps, llama_config, outputs, run_here, save_model


@pytest.fixture(scope="module")
def world(world: World) -> World:
    """The same text for a model whose steps take long enough to be killed in."""
    wide = llama_config(hidden_size=128, intermediate_size=256, num_hidden_layers=4)
    return replace(world, export=save_model(wide, world.root / "wide"))


@pytest.fixture(scope="module")
def by_two(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work directory of two processes that nobody disturbs."""
    work = started(world, tmp_path_factory.mktemp("two") / "work")
    train(work)
    return work


def test_shares_are_neighbours_and_cover_a_step() -> None:
    for count in (1, 2, 3, 8):
        for sequences in (8, 11, 64):
            shares = [Processes(rank, count).share(sequences) for rank in range(count)]
            assert [number for first, end in shares for number in range(first, end)] == list(range(sequences))
            sizes = [end - first for first, end in shares]
            assert max(sizes) - min(sizes) <= 1


def test_one_process_changes_nothing() -> None:
    values = np.arange(3.0)
    assert ALONE.total(values) is values
    assert ALONE.share(7) == (0, 7)
    assert ALONE.tell("mine") == "mine" and ALONE.any(True) and not ALONE.any(False)
    assert ALONE.device("cuda") == "cuda" and Processes(3, 8, 3, 4).device("cuda") == "cuda:3"


def test_a_mark_sees_one_bit() -> None:
    weights = [torch.arange(6.0), torch.ones(2)]
    changed = [weights[0].clone(), weights[1]]
    changed[0][3] = torch.nextafter(changed[0][3], torch.tensor(10.0))
    assert mark_of(weights) == mark_of([tensor.clone() for tensor in weights])
    assert mark_of(weights) != mark_of(changed) != mark_of(weights[::-1])


def test_micro_batches_and_threads_are_of_a_share(world: World, tmp_path: Path) -> None:
    identity = parse_spec(world.spec(tmp_path, identity__sequences_per_step=20)).identity
    asked = Execution(device="cpu", micro_batch=16)
    resolved = execution.resolve(asked, SMOLLM, identity, Processes(0, 3, 0, 3), count=counted)
    assert (resolved["micro_batch"], resolved["processes"]) == (7, 3)
    assert resolved["threads"] == max(1, execution.usable_cores() // 3)
    with pytest.raises(ConfigError, match="21 processes for 20 sequences"):
        execution.resolve(asked, SMOLLM, identity, Processes(0, 21, 0, 21), count=counted)


def test_the_number_of_processes_may_change_and_is_kept(world: World, tmp_path: Path) -> None:
    identity = parse_spec(world.spec(tmp_path)).identity
    asked = Execution(device="cpu")
    said: list[str] = []
    path = tmp_path / "execution.json"
    two = execution.settle(
        path,
        execution.resolve(asked, SMOLLM, identity, Processes(0, 2, 0, 2), count=counted),
        asked,
        said.append,
        begun=False,
    )
    assert said == []
    alone = execution.resolve(asked, SMOLLM, identity, count=counted)
    one = execution.settle(path, alone, asked, said.append, begun=True)
    assert one["micro_batch"] == two["micro_batch"] and one["processes"] == 1
    was = {"processes": 2, "threads": two["threads"], "sharding": "none"}
    assert one["before"] == [was]
    assert "begun by 2 processes, goes on with 1" in said[0]
    assert read_sealed(path) == one
    again = replace(asked, sharding="full")
    shares = execution.resolve(again, SMOLLM, identity, Processes(0, 2, 0, 2), count=counted)
    found = execution.settle(path, shares, again, said.append, begun=True)
    assert (found["processes"], found["sharding"], found["compile"]) == (2, "full", False)
    assert found["before"] == [was, {"processes": 1, "threads": alone["threads"], "sharding": "none"}]
    assert "goes on with 2 processes that share the weights out" in said[1]


@pytest.mark.slow
def test_a_group_agrees_and_adds_up(tmp_path: Path) -> None:
    answer = in_a_group(tmp_path, "methods")
    assert answer.returncode == 0, answer.stderr[-3000:]


@pytest.mark.slow
def test_adding_up_beside_the_last_backward_changes_no_bit(tmp_path: Path) -> None:
    answer = in_a_group(tmp_path, "overlap")
    assert answer.returncode == 0, answer.stderr[-3000:]


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(world: World, by_two: Path, tmp_path: Path) -> None:
    alone = tmp_path / "work"
    assert run_here(world.spec(alone, **CHANGES))[0] == 0
    assert journal_steps(by_two) == list(range(1, STEPS + 1))
    np.testing.assert_allclose(losses(by_two), losses(alone), rtol=1e-5)
    assert set(outputs(by_two)) == set(outputs(alone))
    columns = ("tokens", "lr", "skipped")
    rows = [
        [
            [json.loads(line)[name] for name in columns]
            for line in (work / "journal.jsonl").read_text().splitlines()
        ]
        for work in (by_two, alone)
    ]
    assert rows[0] == rows[1]
    found = json.loads((by_two / "execution.json").read_text())
    assert found["processes"] == 2 and "before" not in found


@pytest.mark.slow
def test_whatever_is_killed_the_bits_are_those_of_two_undisturbed(
    world: World, by_two: Path, tmp_path: Path
) -> None:
    work = started(world, tmp_path / "work")

    def kill_ranks_and_torchrun(process: trainer.Process) -> None:
        for rank, step in ((1, 8), (0, 20)):
            wait_until(lambda step=step: (journal_steps(work) or [0])[-1] >= step)
            os.kill(ranks_of(process.pid)[rank], signal.SIGKILL)
            wait_until(lambda: len(ranks_of(process.pid)) < 2)
        wait_until(lambda: journal_steps(work)[-1] >= 32)
        assert process.poll() is None  # one call of torchrun until here
        process.kill()
        process.wait()

    with pytest.raises(StageFailed):
        train(work, follow=kill_ranks_and_torchrun)
    wait_until(lambda: at_work(work) == [], 180)
    log = (work / trainer.LOG).read_text()
    assert "trainer: warning: This process lost the others" in log and "trainer: error" not in log
    assert "trainer 1: warning: This process lost the others" in log and "(2 of 3 times)" in log

    before = journal_steps(work)[-1]
    assert before < STEPS
    script = (
        "import sys; from pathlib import Path; from tasks.models.trainer import run_trainer\n"
        "run_trainer(Path(sys.argv[1]), processes=2, follow=lambda p: p.wait(), warn=print)"
    )
    parent = subprocess.Popen([sys.executable, "-c", script, str(work)], cwd=ROOT)
    wait_until(lambda: journal_steps(work)[-1] >= min(before + 8, STEPS) or parent.poll() is not None)
    parent.kill()
    parent.wait()
    wait_until(lambda: at_work(work) == [], 180)
    train(work)
    assert outputs(work) == outputs(by_two)
    assert journal_steps(work) == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_begun_by_two_it_goes_on_with_one(world: World, by_two: Path, tmp_path: Path) -> None:
    work = started(world, tmp_path / "work", execution__checkpoint_every=1e9)

    def ask(process: trainer.Process) -> None:
        wait_until(lambda: (journal_steps(work) or [0])[-1] >= 8)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(work, follow=ask)
    assert at_work(work) == []
    stopped_at = journal_steps(work)[-1]
    assert [path.name for path in (work / "checkpoints").iterdir()] == [f"step-{stopped_at:08d}"]
    assert 8 <= stopped_at < STEPS
    code, said = run_here(world.spec(work, **CHANGES))
    assert code == 0
    np.testing.assert_allclose(losses(work), losses(by_two), rtol=1e-5)
    found = json.loads((work / "execution.json").read_text())
    was = {"processes": 2, "threads": 1, "sharding": "none"}
    assert (found["processes"], found["before"]) == (1, [was])
    assert any("begun by 2 processes, goes on with 1" in line for line in said)


@pytest.mark.slow
def test_asked_by_a_signal_all_stop_after_one_step(world: World, tmp_path: Path) -> None:
    work = started(world, tmp_path / "work", execution__checkpoint_every=1e9)

    def terminate(process: trainer.Process) -> None:
        wait_until(lambda: (journal_steps(work) or [0])[-1] >= 5)
        for rank in ranks_of(process.pid)[1:]:  # one alone: the others hear of it
            os.kill(rank, signal.SIGTERM)
        process.wait()

    with pytest.raises(Interrupted, match="asked to stop"):
        train(work, follow=terminate)
    last = journal_steps(work)[-1]
    assert [path.name for path in (work / "checkpoints").iterdir()] == [f"step-{last:08d}"]
    assert (work / trainer.LOG).read_text().count("ready in") == 1  # and none was started again


@pytest.mark.slow
def test_one_lost_rank_is_no_more_than_a_warning(world: World, by_two: Path, tmp_path: Path) -> None:
    """Amid a step, and nobody but torchrun does anything about it."""
    work = started(world, tmp_path / "work")
    killed: list[int] = []

    def lose(process: trainer.Process) -> None:
        wait_until(lambda: (journal_steps(work) or [0])[-1] >= 12)
        killed.append(ranks_of(process.pid)[1])
        os.kill(killed[0], signal.SIGKILL)
        process.wait()

    train(work, follow=lose)
    assert killed and outputs(work) == outputs(by_two)
    assert journal_steps(work) == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_what_dies_again_and_again_is_given_up(world: World, tmp_path: Path) -> None:
    work = started(world, tmp_path / "work")
    killed: set[int] = set()

    def lose_all(process: trainer.Process) -> None:
        while process.poll() is None:
            time.sleep(0.05)
            if (work / trainer.LOG).read_text().count("ready in") > len(killed):
                killed.add(ranks_of(process.pid)[1])
                os.kill(ranks_of(process.pid)[1], signal.SIGKILL)

    with pytest.raises(StageFailed, match=r"\(SIGKILL ended one of its processes\)") as failed:
        train(work, follow=lose_all)
    assert failed.value.passing, "the same again may succeed"
    assert len(killed) == 1 + launch.RESTARTS and at_work(work) == []


@pytest.mark.slow
def test_what_would_fail_again_is_not_tried_again(world: World, tmp_path: Path) -> None:
    """The first process finds a shard altered; the second but loses the first, and would go on."""
    digest, shard = next(iter(world.shards.items()))
    altered = bytearray(shard.read_bytes())
    altered[-200] ^= 1
    other = tmp_path / shard.name
    other.write_bytes(altered)
    work = started(replace(world, shards={**world.shards, digest: other}), tmp_path / "work")
    with pytest.raises(DamagedArtifact, match=r"trainer: error: .* was altered: its sha256 is"):
        train(work)
    log = (work / trainer.LOG).read_text()
    assert log.count("trainer 1: warning: This process lost the others") == 1  # no second attempt met
    assert log.count("trainer: error:") == 1 + launch.RESTARTS
    assert not list(work.glob(f"{restart.MARKER}*"))


def test_an_attempt_knows_what_the_one_before_found(tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    environment = {"TORCHELASTIC_RUN_ID": "a/b", "TORCHELASTIC_MAX_RESTARTS": "3"}
    first = restart.TorchrunStart.of(spec, environment)
    assert first.failed_before() is None
    first.fail("first words")
    first.fail("others")
    second = restart.TorchrunStart.of(spec, environment | {"TORCHELASTIC_RESTART_COUNT": "1"})
    assert second.failed_before() == "first words"
    another = environment | {"TORCHELASTIC_RUN_ID": "c", "TORCHELASTIC_RESTART_COUNT": "1"}
    assert restart.TorchrunStart.of(spec, another).failed_before() is None
    assert (
        not restart.TorchrunStart.of(spec, {}).launched
        and restart.TorchrunStart.of(spec, {}).failed_before() is None
    )
    last = restart.TorchrunStart.of(spec, environment | {"TORCHELASTIC_RESTART_COUNT": "3"})
    assert last.words(restart.LostOthers("gone.")) == "error: gone."
    assert second.words(restart.LostOthers("gone.")).endswith("(2 of 3 times).")


@pytest.mark.slow
def test_what_is_wrong_is_said_by_the_first_process(world: World, tmp_path: Path) -> None:
    work = started(world, tmp_path / "work")
    with pytest.raises(StageFailed, match=r"trainer: error: 3 processes for 2 sequences a step"):
        train(work, processes=3)
    assert at_work(work) == []


@contextlib.contextmanager
def another_machine(store: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-m", "tasks.training.join", str(store), "1"], cwd=ROOT)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(200)


@pytest.mark.slow
def test_two_machines_train_together_and_a_lost_one_can_come_back(
    world: World, by_two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    store = tmp_path / "store"
    work = started(world, store / ".work" / "train-0123456789abcdef")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    how: dict[str, Any] = {"processes": 1, "nodes": 2, "rendezvous": address}
    with another_machine(store) as other:

        def lose(process: trainer.Process) -> None:
            wait_until(lambda: (journal_steps(work) or [0])[-1] >= 8)
            os.kill(ranks_of(process.pid)[0], signal.SIGKILL)  # both torchruns start their own again
            wait_until(lambda: (work / trainer.LOG).read_text().count("ready in") == 2)
            before = journal_steps(work)[-1]
            wait_until(lambda: journal_steps(work)[-1] >= before + 8)
            assert process.poll() is None
            other.kill()
            process.wait()

        with pytest.raises(Interrupted, match="asked to stop"):
            train(work, follow=lose, **how)
    wait_until(lambda: at_work(work) == [], 180)
    assert 8 <= journal_steps(work)[-1] < STEPS
    assert not list(work.glob("joined-*")) and not (work / launch.RENDEZVOUS).exists()

    ended: list[BaseException | None] = []

    def again() -> None:
        try:
            train(work, **how)
            ended.append(None)
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=again)
    thread.start()
    wait_until((work / launch.RENDEZVOUS).exists)
    with another_machine(store):
        thread.join(600)
    assert ended == [None]
    assert outputs(work) == outputs(by_two)


def test_join_says_how_it_is_used(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from tasks.training import join

    assert join.main([]) == join.main([str(tmp_path), "0"]) == 2
    assert "usage: python -m tasks.training.join STORE N" in capfd.readouterr().err
    assert join.main([str(tmp_path), "1"]) == 2
    assert "there is no store" in capfd.readouterr().err
