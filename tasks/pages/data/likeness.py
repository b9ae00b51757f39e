"""How well documents are told by examples (`likeness`): shares of both sources at each score, and documents near 0.5."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tasks.pages.blocks import Block, Heading, Quote, Table, Text
from tasks.pages.data.inputs import LikenessParts


@dataclass(frozen=True)
class NearDocument:
    """A document that was not learned from, its source and its score."""

    id: str
    source: str
    score: float
    text: str


@dataclass(frozen=True)
class Likeness:
    """One model: its two sources, how well it tells them apart, shares of both by least score, documents near 0.5."""

    source: str
    unlike: str
    documents: int
    others: int
    auc: float
    kept: tuple[tuple[str, float, float], ...]
    near: tuple[NearDocument, ...]


def likeness_of(parts: Sequence[LikenessParts], excerpt: Callable[[str], str]) -> tuple[Likeness, ...]:
    """The facts. `excerpt` cuts a text, and masks it if the filter does."""
    return tuple(
        Likeness(
            one.stats["source"],
            one.stats["unlike"],
            one.stats["documents"],
            one.stats["others"],
            one.stats["auc"],
            tuple((level, *shares) for level, shares in one.stats["kept"].items()),
            tuple(
                NearDocument(near["id"], source, near["score"], excerpt(near["text"]))
                for source, found in json.loads(one.examples.only().read_bytes()).items()
                for near in found
            ),
        )
        for one in parts
    )


def likeness_blocks(facts: Sequence[Likeness]) -> list[Block]:
    """The section."""
    blocks: list[Block] = [Heading(2, "What is like the examples")] if facts else []
    for one in facts:
        head = ("least score", f"of {one.source}", f"of {one.unlike}")
        rows = tuple((level, f"{mine:.1%}", f"{other:.1%}") for level, mine, other in one.kept)
        note = (
            "Shares of documents that have at least that score, of those that were not learned from. Learned from "
            f"{one.documents:,} documents of {one.source} and {one.others:,} of {one.unlike}; of one of each, the right "
            f"one has the higher score in {one.auc:.1%}."
        )
        blocks += [Table(head, rows), Text(note, "note")]
        for near in sorted(one.near, key=lambda near: -near.score):
            side = "kept at 0.5" if near.score >= 0.5 else "left out at 0.5"
            blocks.append(
                Quote(f"score {near.score:.3f}, {side}; document {near.id} of {near.source}", near.text)
            )
    return blocks
