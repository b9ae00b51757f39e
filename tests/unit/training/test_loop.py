"""A segment of training: exact on resume, indifferent to micro-batch and cadence, what it leaves can be gone on from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from storage.errors import ConfigError, StageFailed
from tasks.training import loop
from tasks.training import step as steps
from tests.support.training.families import SCALED, STATEFUL, WINDOWED
from tests.support.training.plain_loop import plain_loop
from tests.support.training.world import (
    World,
    after_calls,
    journal_steps,
    llama_config,
    outputs,
    run,
    run_here,
    save_model,
)


def weights(work: Path, part: str = "trunk") -> dict[str, torch.Tensor]:
    return load_file(work / part / "model.safetensors")


@pytest.mark.parametrize("kind", [None, *WINDOWED, *SCALED, *STATEFUL])
def test_it_does_what_a_plain_loop_does(world: World, tmp_path: Path, kind: str | None) -> None:
    """Of a model whose attention has a window, whose logits are scaled, or whose layers carry state, too."""
    if kind:
        made = {**WINDOWED, **SCALED, **STATEFUL}[kind]
        world = replace(world, export=save_model(made(), tmp_path / "model"))
    work = run(world, tmp_path / "w", identity__last_step=5)
    losses, expected = plain_loop(world, tmp_path / "w", 5)
    lines = pq.read_table(work / "journal" / "journal.parquet").to_pydict()
    np.testing.assert_allclose(lines["loss"], losses, rtol=1e-4 if kind else 1e-5)
    for name, tensor in weights(work).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", STATEFUL)
def test_with_one_document_to_a_row_it_ends_with_the_same_bytes_too(
    world: World, tmp_path: Path, family: str
) -> None:
    world = replace(world, export=save_model(STATEFUL[family](), tmp_path / "model"))
    changes = {"identity__kind": "pretrain", "identity__last_step": 3}
    whole = outputs(run(world, tmp_path / "whole", **changes, execution__checkpoint_every=1e9))
    work = tmp_path / "stopped"
    run_here(world.spec(work, **changes), after_calls(2))
    assert outputs(run(world, work, **changes)) == whole


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_stopped_after_any_step_it_ends_with_the_same_bytes(
    world: World, tmp_path: Path, precision: str
) -> None:
    changes = {
        "identity__kind": "pretrain",
        "identity__precision": precision,
        "identity__keep_every_tokens": 400,
    }
    whole = outputs(run(world, tmp_path / "whole", **changes, execution__checkpoint_every=1e9))
    for step in range(8):
        work = tmp_path / f"stopped-{step}"
        spec = world.spec(work, **changes, execution__checkpoint_every=1e9)
        assert run_here(spec, after_calls(step + 1))[0] == loop.RESUMABLE
        assert journal_steps(work) == list(range(1, step + 1))
        assert run_here(spec)[0] == loop.DONE
        assert outputs(work) == whole
        assert journal_steps(work) == list(range(1, 9))


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_dying_at_every_step_in_turn_changes_no_byte(world: World, tmp_path: Path, dropout: float) -> None:
    changes = {"identity__kind": "rewarm", "identity__dropout": dropout}
    whole = outputs(run(world, tmp_path / "whole", **changes, execution__checkpoint_every=1e9))

    class Death(BaseException):
        pass

    def dies(step: int) -> Iterator[bool]:
        yield from [False] * step
        raise Death

    spec = world.spec(tmp_path / "often", **changes, execution__keep_last=1)
    for _ in range(3):
        questions = dies(2)
        with pytest.raises(Death):
            run_here(spec, lambda questions=questions: next(questions))
    assert run_here(spec)[0] == loop.DONE
    assert outputs(tmp_path / "often") == whole


def test_the_micro_batch_changes_rounding_alone(world: World, tmp_path: Path) -> None:
    works = [run(world, tmp_path / str(size), execution__micro_batch=size) for size in (1, 3, 4)]
    tables = [pq.read_table(work / "journal" / "journal.parquet").to_pydict() for work in works]
    for work, table in zip(works[1:], tables[1:], strict=True):
        assert table["tokens"] == tables[0]["tokens"]
        np.testing.assert_allclose(table["loss"], tables[0]["loss"], rtol=1e-4)
        for name, tensor in weights(work).items():
            torch.testing.assert_close(tensor, weights(works[0])[name], rtol=1e-2, atol=1e-3)
    np.testing.assert_allclose(tables[1]["loss"][0], tables[0]["loss"][0], rtol=1e-7)


@pytest.mark.parametrize("option", [{"gradient_checkpointing": True}, {"threads": 2}])
def test_execution_changes_rounding_alone(world: World, tmp_path: Path, option: dict[str, Any]) -> None:
    plain = weights(run(world, tmp_path / "plain"))
    other = run(world, tmp_path / "other", **{f"execution__{name}": value for name, value in option.items()})
    for name, tensor in weights(other).items():
        torch.testing.assert_close(tensor, plain[name], rtol=1e-2, atol=1e-3)


def test_a_small_loss_chunk_gives_the_same_gradient(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = weights(run(world, tmp_path / "plain", identity__last_step=2))
    monkeypatch.setattr(
        "tasks.training.device.memory.Device.loss_chunk", lambda device, vocabulary, width: 16
    )
    for name, tensor in weights(run(world, tmp_path / "chunks", identity__last_step=2)).items():
        torch.testing.assert_close(tensor, plain[name], rtol=1e-3, atol=1e-4)


def trunk(world: World, work: Path, first: int, last: int, start: Path | None = None, **changes: Any) -> Path:
    if start is not None:
        changes |= {"paths__start": str(start / "trunk"), "paths__start_kind": "trunk"}
    return run(world, work, identity__first_step=first, identity__last_step=last, **changes)


def test_a_trunk_extended_is_the_trunk_made_at_once(world: World, tmp_path: Path) -> None:
    short = trunk(world, tmp_path / "short", 0, 3)
    long = trunk(world, tmp_path / "long", 3, 8, short)
    whole = trunk(world, tmp_path / "whole", 0, 8)
    for name in ("model.safetensors", "optimizer.safetensors", "state.json", "config.json"):
        assert (long / "trunk" / name).read_bytes() == (whole / "trunk" / name).read_bytes()
    first, second, both = (
        pq.read_table(work / "journal" / "journal.parquet").to_pylist() for work in (short, long, whole)
    )
    assert first + second == both


def test_a_decay_branches_off_and_leaves_a_model_alone(world: World, tmp_path: Path) -> None:
    start = trunk(world, tmp_path / "trunk", 0, 5)
    before = outputs(start)
    schedule = {"kind": "wsd", "peak": 1e-2, "warmup_steps": 3, "decay_from": 5, "decay_to": 8}
    branch = trunk(
        world, tmp_path / "decay", 5, 8, start, identity__kind="decay", identity__schedule=schedule
    )
    assert (branch / "export").is_dir() and not (branch / "trunk").exists()
    assert outputs(start) == before
    result = json.loads((branch / "result.json").read_text())
    table = pq.read_table(branch / "journal" / "journal.parquet").to_pydict()
    assert table["step"] == [6, 7, 8]
    assert result["tokens_seen"] == table["tokens"][-1]
    assert (
        result["tokens"]
        == table["tokens"][-1] - json.loads((start / "trunk" / "state.json").read_text())["tokens"]
    )
    assert table["lr"] == sorted(table["lr"], reverse=True)


def test_a_decay_of_no_steps_exports_the_trunk(world: World, tmp_path: Path) -> None:
    start = trunk(world, tmp_path / "trunk", 0, 2)
    branch = trunk(world, tmp_path / "decay", 2, 2, start, identity__kind="decay")
    assert (branch / "export" / "model.safetensors").read_bytes() == (
        start / "trunk" / "model.safetensors"
    ).read_bytes()
    assert pq.read_table(branch / "journal" / "journal.parquet").num_rows == 0


def test_a_trunk_of_another_step_is_refused(world: World, tmp_path: Path) -> None:
    start = trunk(world, tmp_path / "trunk", 0, 2)
    with pytest.raises(ConfigError, match="trunk at step 2; identity.first_step is 3"):
        trunk(world, tmp_path / "next", 3, 5, start)


@pytest.mark.parametrize("tied", [True, False])
def test_the_export_is_what_from_pretrained_loads(world: World, tmp_path: Path, tied: bool) -> None:
    base = save_model(llama_config(tie_word_embeddings=tied), tmp_path / "base")
    work = run(world, tmp_path / "w", identity__kind="pretrain", paths__start=str(base))
    model = AutoModelForCausalLM.from_pretrained(work / "export")
    assert model.dtype == torch.float32
    names = set(weights(work, "export"))
    assert ("lm_head.weight" in names) is not tied
    same = model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert same is tied
    assert json.loads((work / "export" / "config.json").read_text())["dtype"] == "float32"
    assert AutoTokenizer.from_pretrained(work / "export")("w1 w2").input_ids == [1, 2]
    assert weights(work, "export").keys() == weights(work, "trunk").keys()
    for path in (work / "export").rglob("*"):
        assert str(tmp_path).encode() not in path.read_bytes()


def test_weights_of_another_dtype_train_in_float32(world: World, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(world.export, dtype=torch.bfloat16).save_pretrained(
        tmp_path / "half"
    )
    work = run(world, tmp_path / "w", identity__kind="pretrain", paths__start=str(tmp_path / "half"))
    assert {tensor.dtype for tensor in weights(work, "export").values()} == {torch.float32}


def test_the_end_of_text_learns_also_where_it_is_the_padding(world: World, tmp_path: Path) -> None:
    base = save_model(llama_config(pad_token_id=0, tie_word_embeddings=False), tmp_path / "base")
    work = run(world, tmp_path / "w", paths__start=str(base), identity__last_step=2)
    name = "model.embed_tokens.weight"
    assert not torch.equal(weights(work)[name][0], load_file(base / "model.safetensors")[name][0])


def test_a_step_that_is_not_finite_is_skipped_and_recorded(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = steps._forward_backward

    def poisoned(segment: loop.Segment, *rest: Any) -> torch.Tensor:
        losses = plain(segment, *rest)
        return losses * float("nan") if segment.progress.step == 2 else losses

    monkeypatch.setattr(steps, "_forward_backward", poisoned)
    work = run(world, tmp_path / "w", identity__last_step=4)
    table = pq.read_table(work / "journal" / "journal.parquet").to_pydict()
    assert table["skipped"] == [False, False, True, False]
    assert table["loss"][2] is None and None not in (table["loss"][0], table["loss"][3])
    counts = {
        float(t)
        for n, t in load_file(work / "trunk" / "optimizer.safetensors").items()
        if n.endswith(".step")
    }
    assert counts == {3.0}
    assert json.loads((work / "result.json").read_text())["skipped_steps"] == 1


def test_five_bad_steps_in_a_row_end_it_with_the_reason(world: World, tmp_path: Path) -> None:
    spec = world.spec(tmp_path / "w", identity__schedule__peak=1e30, identity__schedule__warmup_steps=0)
    for _ in range(2):
        with pytest.raises(StageFailed, match=r"5 steps in a row.*rate 1e\+30.*training\.learning_rate"):
            run_here(spec)
    assert not (tmp_path / "w" / "result.json").exists()


def test_kept_states_are_named_by_tokens_and_load(world: World, tmp_path: Path) -> None:
    work = run(world, tmp_path / "w", identity__keep_every_tokens=500)
    tokens = pq.read_table(work / "journal" / "journal.parquet")["tokens"].to_pylist()
    names = sorted(path.name for path in (work / "kept").iterdir())
    assert names == [f"tokens-{500 * k:015d}" for k in range(1, tokens[-1] // 500 + 1)]
    AutoModelForCausalLM.from_pretrained(work / "kept" / names[0])
    AutoTokenizer.from_pretrained(work / "kept" / names[0])


def test_the_clock_is_in_no_part(world: World, tmp_path: Path) -> None:
    work = run(world, tmp_path / "w")
    journal, clock = (
        pq.read_table(work / "journal" / "journal.parquet"),
        pq.read_table(work / "clock.parquet"),
    )
    assert journal.column_names == [
        "step", "tokens", "loss", "loss/books", "loss/web", "lr", "grad_norm", "skipped",
        "rolled_back", "spike",
    ]  # fmt: skip
    assert clock.column_names == ["step", "seconds", "tokens_per_second", "mfu", "data_wait", "peak_memory"]
    assert journal["step"].to_pylist() == clock["step"].to_pylist() == list(range(1, 9))


def test_a_changed_specification_is_refused_by_field(world: World, tmp_path: Path) -> None:
    assert run_here(world.spec(tmp_path), after_calls(3))[0] == loop.RESUMABLE
    with pytest.raises(ConfigError, match=r"schedule\.peak was 0\.01, is 0\.02"):
        run_here(world.spec(tmp_path, identity__schedule__peak=0.02))
    assert run_here(world.spec(tmp_path))[0] == loop.DONE


def test_the_resolved_execution_is_kept_on_resume(world: World, tmp_path: Path) -> None:
    whole = outputs(run(world, tmp_path / "whole", execution__micro_batch=2))
    spec = world.spec(tmp_path / "w", execution__micro_batch=2)
    assert run_here(spec, after_calls(3))[0] == loop.RESUMABLE
    code, said = run_here(world.spec(tmp_path / "w", execution__micro_batch=1, execution__threads=2))
    assert code == loop.DONE
    assert any("micro_batch stays 2" in line for line in said) and any(
        "threads stays 1" in line for line in said
    )
    assert outputs(tmp_path / "w") == whole


def test_finished_work_is_not_done_again(world: World, tmp_path: Path) -> None:
    run(world, tmp_path)
    before = (tmp_path / "result.json").stat().st_mtime_ns
    code, said = run_here(world.spec(tmp_path))
    assert code == loop.DONE and "finished before" in said[0]
    assert (tmp_path / "result.json").stat().st_mtime_ns == before
