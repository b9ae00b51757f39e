"""The loss on held-out text: it is that of each document alone, falls where it should, and changes nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from transformers import AutoModelForCausalLM

from storage.errors import DamagedArtifact
from tasks.training import loop
from tasks.training.state.heldout import COST, MOST, read_lines, spacing
from tests.support.training.world import EOT, SEQUENCE, VOCABULARY, World, after_calls, outputs, run, run_here


def some_text(path: Path) -> dict[str, list[list[int]]]:
    """Documents of 1 to 48 tokens of two sources, more than one pass takes."""
    random = np.random.default_rng(5)
    text = {
        name: [
            [EOT, *random.integers(1, VOCABULARY, length).tolist()]
            for length in random.integers(1, SEQUENCE + 1, 7).tolist()
        ]
        for name in ("web", "books")
    }
    path.write_text(json.dumps(text))
    return text


def lines_of(work: Path) -> list[dict[str, Any]]:
    """What was measured, without the time that it took."""
    return [
        {name: value for name, value in line.items() if name != "seconds"}
        for line in read_lines(work / "heldout.jsonl")
    ]


def watched(text: Path, every: int | str | None = 400, **changes: Any) -> dict[str, Any]:
    return {
        "identity__kind": "pretrain",
        "identity__dropout": 0.1,
        "paths__heldout": str(text),
        "execution__heldout_every_tokens": every,
        **changes,
    }


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_is_the_loss_of_each_document_alone(world: World, tmp_path: Path, precision: str) -> None:
    text = some_text(tmp_path / "heldout.json")
    work = run(world, tmp_path / "w", **watched(tmp_path / "heldout.json", identity__precision=precision))
    line = lines_of(work)[-1]
    assert line["step"] == 8
    model: Any = AutoModelForCausalLM.from_pretrained(work / "export", dtype=torch.float32)
    for name, documents in text.items():
        total = 0.0
        for ids in documents:
            with torch.no_grad():
                logits = model(torch.tensor([ids[:-1]])).logits[0]
            total += float(functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum"))
        mean = total / sum(len(ids) - 1 for ids in documents)
        assert line[f"heldout/{name}"] == pytest.approx(mean, rel=1e-5 if precision == "fp32" else 1e-2)


def test_it_changes_no_byte_and_a_resume_measures_the_same(world: World, tmp_path: Path) -> None:
    some_text(tmp_path / "heldout.json")
    asked = watched(tmp_path / "heldout.json")
    without = run(world, tmp_path / "without", **{**asked, "execution__heldout_every_tokens": None})
    whole = run(world, tmp_path / "whole", **asked, execution__checkpoint_every=1e9)
    assert outputs(whole) == outputs(without) and not lines_of(without)
    for step in range(8):
        work = tmp_path / f"stopped-{step}"
        spec = world.spec(work, **asked, execution__checkpoint_every=1e9)
        assert run_here(spec, after_calls(step + 1))[0] == loop.RESUMABLE
        with (work / "heldout.jsonl").open("ab") as file:  # of steps that no checkpoint holds, and a torn one
            file.write(b'{"step": 99, "tokens": 9}\n{"step"')
        assert run_here(spec)[0] == loop.DONE
        assert lines_of(work) == lines_of(whole)
        assert outputs(work) == outputs(without)


def test_it_falls_at_the_start_after_each_multiple_and_at_the_end(world: World, tmp_path: Path) -> None:
    some_text(tmp_path / "heldout.json")
    work = run(world, tmp_path / "w", **watched(tmp_path / "heldout.json"))
    tokens = [0] + [json.loads(line)["tokens"] for line in (work / "journal.jsonl").read_text().splitlines()]
    steps = [step for step in range(9) if step in (0, 8) or tokens[step] // 400 != tokens[step - 1] // 400]
    assert [line["step"] for line in lines_of(work)] == steps
    assert [line["tokens"] for line in lines_of(work)] == [tokens[step] for step in steps]


@pytest.mark.parametrize("content", ["", "[]", '{"web": 3}', '{"web": [3]}', "{"])
def test_other_files_are_refused(world: World, tmp_path: Path, content: str) -> None:
    (tmp_path / "heldout.json").write_text(content)
    with pytest.raises(DamagedArtifact, match=r"heldout\.json"):
        run(world, tmp_path / "w", **watched(tmp_path / "heldout.json"))


def test_nothing_is_measured_without_text(world: World, tmp_path: Path) -> None:
    (tmp_path / "heldout.json").write_text("{}")
    assert not lines_of(run(world, tmp_path / "w", **watched(tmp_path / "heldout.json")))


@pytest.mark.parametrize("segment", [10_000, 136_000, 140_000, 5_000_000, 320_000_000, 10**9])
def test_by_itself_it_takes_two_percent_at_most(segment: int) -> None:
    every = spacing("auto", 8192, segment)
    if every is None:
        assert COST * segment < 8192 / 3
        return
    times = segment // every
    assert 1 <= times <= MOST
    assert times * 8192 / 3 <= COST * segment


def test_what_is_asked_for_is_taken() -> None:
    assert spacing(1000, 8192, 10) == 1000
    assert spacing(None, 8192, 10**9) is None
    assert spacing("auto", 0, 10**9) is None and spacing(1000, 0, 10**9) is None
    assert math.isclose(spacing("auto", 8192, 10**9) or 0, 10**7)
