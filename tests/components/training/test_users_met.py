"""What users of other trainers met when they resumed (the threads are named): a test each, where no other test is."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from storage.errors import ConfigError
from storage.packing import PackingManifest, write_manifest
from tasks.training import loop
from tasks.training.data import Corpus
from tests.support.training.trainers import Start
from tests.support.training.world import (
    PER_STEP,
    World,
    after_calls,
    journal_steps,
    llama_config,
    outputs,
    run_here,
    save_model,
)

BOUNDARY = 5
"""The step after which one manifest (an epoch, a round) ends and the next begins."""
CHANGES: dict[str, Any] = {"identity__kind": "pretrain", "identity__last_step": 9}


def in_two(world: World, root: Path) -> list[str]:
    """The manifest cut in two between steps, as two rounds or epochs leave them."""
    whole = PackingManifest.open(world.manifest)
    cut = BOUNDARY * PER_STEP
    paths = []
    for first, end in ((0, cut), (cut, world.sequences)):
        paths.append(root / f"from-{first}.arrow")
        write_manifest(
            paths[-1],
            whole.rows(first, end),
            sequence_length=whole.sequence_length,
            first_sequence=first,
            sequences=end - first,
            shards=list(whole.shards),
            eot=whole.eot,
            tokenizer=whole.tokenizer,
            seed=0,
        )
    return [str(path) for path in paths]


@pytest.mark.parametrize("stopped_after", [BOUNDARY - 1, BOUNDARY, BOUNDARY + 1])
def test_stopped_where_an_epoch_ends_no_sequence_is_lost_or_seen_twice(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_after: int
) -> None:
    """verl#7401, meta-pytorch/data#1437: the next epoch skipped; litgpt#1712, datasets#7447, accelerate#2016, #4071: the
    last part or the first order again; streaming#437: from shard 1 again; data#1520: what was read ahead is lost."""
    run_here(world.spec(tmp_path / "one", **CHANGES))
    seen: Counter[int] = Counter()
    plain = Corpus._micro_batch

    def watched(corpus: Corpus, first: int, end: int) -> Any:
        seen.update(range(first, end))
        return plain(corpus, first, end)

    monkeypatch.setattr(Corpus, "_micro_batch", watched)
    spec = world.spec(tmp_path / "two", **CHANGES, paths__manifests=in_two(world, tmp_path))
    assert run_here(spec, after_calls(stopped_after + 1))[0] == loop.RESUMABLE
    assert run_here(spec)[0] == loop.DONE
    assert outputs(tmp_path / "two") == outputs(tmp_path / "one")
    assert set(seen) == set(range(9 * PER_STEP))
    assert {sequence for sequence, times in seen.items() if times > 1} <= {
        stopped_after * PER_STEP,
        stopped_after * PER_STEP + 1,
    }, "only the row that was made ahead is made again"


def test_the_third_start_is_where_the_second_stopped(world: World, tmp_path: Path) -> None:
    """KempnerForge#57: the *second* resume was off by what the first had done."""
    run_here(world.spec(tmp_path / "whole", **CHANGES))
    spec = world.spec(tmp_path / "often", **CHANGES, execution__checkpoint_every=1e9)
    for _ in range(4):
        assert run_here(spec, after_calls(3))[0] == loop.RESUMABLE
    assert journal_steps(tmp_path / "often") == list(range(1, 9))
    assert run_here(spec)[0] == loop.DONE
    assert outputs(tmp_path / "often") == outputs(tmp_path / "whole")


def test_a_resumed_loss_and_rate_are_those_of_the_run_that_never_stopped(
    world: World, tmp_path: Path
) -> None:
    """torchtitan#809, #1136, #1702: loss worse after resume; transformers#23099, #27749: schedule reset."""
    tables = []
    for name, stop in (("whole", None), ("stopped", 4)):
        spec = world.spec(tmp_path / name, **CHANGES, identity__schedule__warmup_steps=6)
        if stop:
            assert run_here(spec, after_calls(stop))[0] == loop.RESUMABLE
        assert run_here(spec)[0] == loop.DONE
        tables.append(pq.read_table(tmp_path / name / "journal" / "journal.parquet").to_pydict())
    assert tables[0]["loss"] == tables[1]["loss"] and tables[0]["lr"] == tables[1]["lr"]
    assert len(set(tables[0]["lr"][:6])) == 6


def test_killed_amid_accumulation_the_step_is_taken_whole_again(
    world: World, start_trainer: Start, tmp_path: Path
) -> None:
    """transformers#22143: gradients of half a step lost, the step counted."""
    from tests.support.training.world import Death

    changes = CHANGES | {"execution__micro_batch": 1}
    run_here(world.spec(tmp_path / "whole", **changes))
    spec = world.spec(tmp_path / "killed", **changes)
    for row in (PER_STEP * 2 + 3, PER_STEP + 2):
        process = start_trainer(spec, Death("tasks.training.step", "_forward_backward", row))
        process.join(120)
        assert process.exitcode == -signal.SIGKILL
    assert run_here(spec)[0] == loop.DONE
    assert outputs(tmp_path / "killed") == outputs(tmp_path / "whole")


@pytest.mark.slow
def test_resuming_takes_no_more_memory_than_starting(
    world: World, start_trainer: Start, tmp_path: Path
) -> None:
    """nanoGPT#236, axolotl#219, TinyLlama#36: out of memory only on resume."""
    wide = llama_config(hidden_size=384, intermediate_size=1536, num_hidden_layers=8)
    heavy = replace(world, export=save_model(wide, tmp_path / "wide"))
    peaks = []
    for last in (3, 6):
        spec = heavy.spec(tmp_path / "work", identity__last_step=6, execution__checkpoint_every=1e-9)
        process = start_trainer(spec)
        if last == 3:
            while len(journal_steps_safely(tmp_path / "work")) < 3:
                assert process.is_alive()
            os.kill(process.pid or 0, signal.SIGTERM)
        process.join(120)
        assert process.exitcode == (75 if last == 3 else 0)
        lines = (tmp_path / "work" / "journal.jsonl").read_text().splitlines()
        peaks.append(json.loads(lines[-1])["peak_memory"])
    assert peaks[1] < 1.1 * peaks[0]


def journal_steps_safely(work: Path) -> list[str]:
    path = work / "journal.jsonl"
    return path.read_text().split("\n")[:-1] if path.exists() else []


def test_sequences_longer_than_the_models_positions_are_refused(world: World, tmp_path: Path) -> None:
    short = save_model(llama_config(max_position_embeddings=32), tmp_path / "short")
    with pytest.raises(ConfigError, match=r"sequence_length is 48, but the model has 32 positions"):
        run_here(world.spec(tmp_path / "work", paths__start=str(short)))
    assert not np.any([path.name == "journal.jsonl" for path in (tmp_path / "work").iterdir()])
