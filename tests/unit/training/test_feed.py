"""Rows made ahead are the rows of the step asked for; a fixed size adds padding that nothing sees."""

from __future__ import annotations

from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest
import torch

from storage.errors import BadInput
from tasks.training.data import Corpus
from tasks.training.feed import NO_TARGET, Feed, FixedSize
from tests.support.training.world import PER_STEP, SEQUENCE, World, open_corpus

CPU = torch.device("cpu")


def feed_of(corpus: Corpus, last_step: int = 8, **changes: Any) -> Feed:
    values = {"micro_batch": 3, "share": (0, PER_STEP), "last_step": last_step}
    return Feed(corpus, CPU, **{**values, **changes})


def test_rows_are_the_micro_batches_of_the_step_asked_for(world: World, tmp_path: Path) -> None:
    """In order, again, back and forth: what was made ahead for another step is not given out."""
    corpus = open_corpus(world, tmp_path)
    feed = feed_of(corpus)
    for step in (1, 2, 3, 3, 1, 8, 2):
        rows, wanted = list(feed.rows(step)), list(corpus.micro_batches(step, 3))
        assert [len(row.targets) for row in rows] == [len(batch.targets) for batch in wanted]
        for row, batch in zip(rows, wanted, strict=True):
            assert torch.equal(row.inputs, batch.inputs) and torch.equal(row.targets, batch.targets)
            assert torch.equal(row.positions, batch.positions) and row.packing.lengths == batch.documents
    feed.close()


def test_a_step_left_in_the_middle_begins_anew(world: World, tmp_path: Path) -> None:
    corpus = open_corpus(world, tmp_path)
    feed = feed_of(corpus, micro_batch=1)
    next(iter(feed.rows(2)))
    (first, *_), (wanted, *_) = feed.rows(2), corpus.micro_batches(2, 1)
    assert torch.equal(first.inputs, wanted.inputs)
    feed.close()


def test_the_next_row_is_made_while_this_one_is_used(world: World, tmp_path: Path) -> None:
    feed = feed_of(open_corpus(world, tmp_path), last_step=2)
    for step in (1, 2):
        for _ in feed.rows(step):
            ahead = feed._ahead
            if ahead is not None:
                assert wait([ahead[1]], timeout=10).done
    assert ahead is None, "nothing is behind the last step"
    feed.close()


def test_what_goes_wrong_ahead_is_told_where_it_is_wanted(world: World, tmp_path: Path) -> None:
    corpus = open_corpus(world, tmp_path)
    steps = world.sequences // PER_STEP
    feed = feed_of(corpus, last_step=steps + 1)
    assert len(list(feed.rows(steps))) == 2
    with pytest.raises(BadInput, match="do not hold sequence"):
        list(feed.rows(steps + 1))
    feed.close()


@pytest.mark.parametrize("masking", [True, False])
def test_a_fixed_size_adds_padding_alone(world: World, tmp_path: Path, masking: bool) -> None:
    corpus = open_corpus(world, tmp_path, identity__document_masking=masking)
    most = corpus.most_documents(0, 8, 3)
    feed = feed_of(corpus, fixed=FixedSize(SEQUENCE, most))
    sizes = set()
    for step in range(1, 9):
        for row, batch in zip(feed.rows(step), corpus.micro_batches(step, 3), strict=True):
            tokens = len(batch.targets)
            assert torch.equal(row.inputs[:, :tokens], batch.inputs)
            assert torch.equal(row.targets[:tokens], batch.targets)
            assert (row.targets[tokens:] == NO_TARGET).all()
            assert row.packing.lengths[: len(batch.documents)] == batch.documents
            positions = torch.cat([torch.arange(length) for length in row.packing.lengths])
            assert torch.equal(row.positions[0], positions)
            assert max(row.packing.lengths) <= row.packing.longest == SEQUENCE
            assert row.packing.bounds is not None and row.packing.bounds.diff().min() >= 0
            ends = torch.tensor(row.packing.lengths).cumsum(0)
            assert torch.equal(row.packing.bounds[1 : len(ends) + 1].long(), ends)
            assert (row.packing.bounds[len(ends) :] == len(row.targets)).all()
            sizes.add((row.inputs.shape[1], len(row.packing.bounds)))
    feed.close()
    # three sequences, then the fourth of each step
    assert sizes == {(3 * SEQUENCE, most + 4), (SEQUENCE, most + 2)}


def test_the_most_documents_are_those_of_the_fullest_row(world: World, tmp_path: Path) -> None:
    corpus = open_corpus(world, tmp_path)
    for sequences in (1, 2, 4):
        every = [
            len(batch.documents)
            for start in range(8 * PER_STEP - sequences + 1)
            for batch in [corpus._micro_batch(start, start + sequences)]
        ]
        assert corpus.most_documents(0, 8, sequences) == max(every)
