"""A measurement that was killed goes on where it was, and ends with the bytes of one that never was."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from storage.testing import draft_in
from tasks.evaluation import perplexity, scorer
from tasks.evaluation.model import load_model
from tasks.evaluation.resume import NAME, ComputedBatches
from tasks.evaluation.scorer import Scorer
from tests.support.evaluation.cases import LENGTH, Case

FACTS = {"device": "cpu", "threads": 2}


def requests(case: Case) -> list[Any]:
    """Contexts of many lengths out of real text, each with three answers."""
    words = " ".join(case.texts[:6]).split()
    contexts = [
        " ".join(words[at : at + size]) for at, size in zip(range(0, 900, 30), range(3, 150, 4), strict=False)
    ]
    return [SimpleNamespace(args=(one, " " + word)) for one in contexts for word in ("the", "of course", "A")]


def kept(path: Path, what: dict[str, Any] = FACTS) -> list[Any]:
    """All that an attempt finds."""
    with ComputedBatches(path, what) as found:
        values = []
        while (value := found.next()) is not None:
            values.append(value)
    return values


def write(path: Path, *values: Any) -> None:
    with ComputedBatches(path, FACTS) as found:
        for value in values:
            found.add(value)


def test_values_come_back_in_order_and_to_the_bit(tmp_path: Path) -> None:
    values = [[0.1, 1e-300, -1 / 3], [[-2.5, True], [-7.0, False]], [], [float("inf")]]
    write(tmp_path / NAME, *values)
    assert kept(tmp_path / NAME) == values
    with ComputedBatches(tmp_path / NAME, FACTS) as more:
        for _ in values:
            assert more.next() is not None
        assert more.next() is None
        more.add([8.0])
    assert kept(tmp_path / NAME) == [*values, [8.0]]


def test_what_was_computed_elsewhere_does_not_count(tmp_path: Path) -> None:
    write(tmp_path / NAME, [1.0])
    assert kept(tmp_path / NAME, FACTS | {"device": "cuda"}) == []
    assert kept(tmp_path / NAME) == [], "it was begun anew"


@pytest.mark.parametrize("byte", [5, -1, -2, -9])
def test_a_line_that_was_cut_or_altered_ends_what_counts(tmp_path: Path, byte: int) -> None:
    path = tmp_path / NAME
    write(path, [1.0], [2.0], [3.0])
    whole = path.read_bytes()
    for end in range(len(whole) - 1, whole.index(b"[2.0]"), -1):
        path.write_bytes(whole[:end])
        assert kept(path) in ([[1.0]], [[1.0], [2.0]])
    start = whole.index(b"[2.0]") - 9
    line = bytearray(whole[start:].split(b"\n", 1)[0] + b"\n")
    line[byte] ^= 1
    path.write_bytes(whole[:start] + line + whole[start + len(line) :])
    assert kept(path) == [[1.0]]


class Stopped(Exception):
    pass


def stop_after(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, calls: int | None) -> list[int]:
    """Let a module's function raise after some calls; the list tells how many there were."""
    real, made = getattr(module, name), [0]

    def counted(*arguments: Any) -> Any:
        if made[0] == calls:
            raise Stopped
        made[0] += 1
        return real(*arguments)

    monkeypatch.setattr(module, name, counted)
    return made


def test_a_perplexity_that_was_killed_goes_on(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [text[:900] for text in case.texts[:6]]
    inputs = perplexity.PerplexityInputs(
        case.base.part("export"), case.holdout(texts, "resumed").part("holdout")
    )
    config = perplexity.PerplexityConfig(max_length=64, device="cpu")
    monkeypatch.setattr(perplexity, "_BATCH_TOKENS", {"cpu": 256})
    whole = draft_in(tmp_path / "whole")
    with monkeypatch.context() as patched:
        batches = stop_after(patched, perplexity, "_batch_nll", None)
        perplexity.run(config, inputs, whole)
    assert batches[0] > 5
    killed = draft_in(tmp_path / "killed")
    for calls in (2, 1):
        with monkeypatch.context() as patched, pytest.raises(Stopped):
            stop_after(patched, perplexity, "_batch_nll", calls)
            perplexity.run(config, inputs, killed)
    told: list[int] = []
    killed._progress = lambda done, total, unit: told.append(done)
    with monkeypatch.context() as patched:
        left = stop_after(patched, perplexity, "_batch_nll", None)
        perplexity.run(config, inputs, killed)
    assert left[0] == batches[0] - 3 == len(told) - 1, "the time left is reckoned from the first report"
    for name in ("scores.json", "documents.parquet"):
        assert (killed.path / name).read_bytes() == (whole.path / name).read_bytes()


def test_answers_that_were_being_scored_go_on(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = case.base.path / "export"
    model, asked = load_model(export, torch.device("cpu"), LENGTH), requests(case)

    told: list[int] = []

    def answers(calls: int | None, path: Path | None) -> tuple[Any, int]:
        told.clear()
        own = Scorer(model, export, LENGTH, lambda done, total, unit: told.append(done))
        with monkeypatch.context() as patched:
            made = stop_after(patched, scorer, "_likelihoods", calls)
            if path is None:
                return own.loglikelihood(asked), made[0]
            with ComputedBatches(path, FACTS) as own.kept:
                return own.loglikelihood(asked), made[0]

    whole, batches = answers(None, None)
    with pytest.raises(Stopped):
        answers(3, tmp_path / NAME)
    found, left = answers(None, tmp_path / NAME)
    assert json.dumps(found) == json.dumps(whole)
    assert left == batches - 3 == len(told) - 1 > 0, "two passes prove what is shared, and are not made again"
