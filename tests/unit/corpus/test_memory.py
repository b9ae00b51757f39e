"""What the filter holds on to while it works."""

from __future__ import annotations

import gc
import weakref

import polars as pl
import pytest

from tasks.corpus.filter import FilterConfig, judge
from tasks.corpus.rules import rule


def test_no_batch_of_texts_outlives_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Circles of a batch and what was computed of it kept hundreds of megabytes until Python looked for them."""
    alive: list[weakref.ref[rule.TextBatch]] = []
    made = rule.TextBatch.__init__

    def noted(self: rule.TextBatch, *arguments: pl.Series) -> None:
        made(self, *arguments)
        alive.append(weakref.ref(self))

    monkeypatch.setattr(rule.TextBatch, "__init__", noted)
    text = "The cat sat on the mat and looked at the rain that fell on the garden behind the house.\n" * 3
    gc.collect()
    gc.disable()
    try:
        judge(pl.Series([text, "no", text + " [1] {"]), None, FilterConfig().families())
        assert len(alive) >= 3 and all(batch() is None for batch in alive)
    finally:
        gc.enable()
