"""Slices of several sources through `decontaminate`, each beside those before it; and what must hold of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from storage.artifact import Chain, Input
from storage.draft import Draft
from storage.workers import Workers
from tasks.corpus import decontaminate
from tasks.corpus.decontaminate import DecontaminateConfig, DecontaminateInputs, DecontaminateStats
from tasks.corpus.documents import read_documents
from tasks.corpus.duplicates.minhash import simplify
from tests.support.corpus.slices import dropped_in, part_in, slice_of, texts_in


@dataclass(frozen=True)
class Made:
    """What the stage left of one slice."""

    source: str
    path: Path
    given: Input
    stats: DecontaminateStats

    @property
    def trained(self) -> list[str]:
        """Texts that are trained on."""
        return texts_in(self.path)

    @property
    def held(self) -> list[str]:
        """Texts that are held out."""
        return texts_in(self.path, "holdout") if (self.path / "holdout").exists() else []

    @property
    def dropped(self) -> list[dict[str, Any]]:
        """Rows of `dropped.parquet`, each with its text."""
        table = read_documents(self.given.paths)
        texts = dict(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))
        return [row | {"text": texts[row["id"]]} for row in dropped_in(self.path)]

    def names(self) -> dict[str, str]:
        """`<id> of <source>` → text, of what came in."""
        table = read_documents(self.given.paths)
        return {
            f"{own} of {self.source}": text
            for own, text in zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True)
        }


@dataclass
class Slices:
    """Slices in order. `holdout`: the fraction that is held out of a source's first slice."""

    root: Path
    holdout: float = 0.2
    copies: bool = True
    workers: Workers | None = None
    piece: int | None = None
    made: list[Made] = field(default_factory=list)

    def add(self, source: str, texts: Sequence[str], shards: int = 3) -> Made:
        """The next slice."""
        number = len(self.made)
        own = [one for one in self.made if one.source == source]
        first = sum(len(one.given.paths) and one.stats.documents_in for one in own)
        given = slice_of(self.root / f"in-{number}", texts, source=source, first=first, shards=shards)
        return self.run(source, given, not own)

    def run(self, source: str, given: Input, first: bool, directory: str | None = None) -> Made:
        """The stage on a part that is there already."""
        config = DecontaminateConfig(
            holdout_fraction=self.holdout, holdout_piece=self.piece, copies=self.copies
        )
        earlier = Chain(tuple(part_in(one.path, "known") for one in self.made)) if self.made else None
        trained = tuple(part_in(one.path, "documents") for one in self.made) if first else ()
        inputs = DecontaminateInputs(given, (), first, (), earlier, trained)
        draft = Draft(self.root / (directory or f"made-{len(self.made)}"), workers=self.workers)
        self.made.append(Made(source, draft.path, given, decontaminate.run(config, inputs, draft)))
        return self.made[-1]


def shingles_of(text: str) -> frozenset[tuple[str, ...]]:
    """The words as dedup spells them, five at a time; all of them where there are fewer."""
    words = simplify(pl.Series([text]))[0].split()
    runs = [tuple(words[at : at + 5]) for at in range(len(words) - 4)]
    return frozenset(runs or ([tuple(words)] if words else []))


def share(one: frozenset, other: frozenset) -> float:
    """|a ∩ b| / min(|a|, |b|); 0 if one is empty."""
    least = min(len(one), len(other))
    return len(one & other) / least if least else 0.0


def check(slices: Sequence[Made], copies: bool = True) -> None:
    """All pairs: nothing that is trained on is like a held-out text; and only what had to go went, for what it names."""
    held: dict[str, frozenset] = {}
    names: dict[str, str] = {}
    trained: list[frozenset] = []
    plain: set[str] = set()
    for one in slices:
        named = one.names()
        names |= named
        earlier_trained = list(trained)
        mine = {text: shingles_of(text) for text in named.values()}
        held_before = dict(held)
        held |= {name: mine[text] for name, text in named.items() if text in set(one.held)}
        for text in one.held:
            assert all(share(mine[text], other) < 0.8 for other in earlier_trained), text
        for text in one.trained:
            assert all(share(mine[text], other) < 0.8 for other in held.values()), text
        kept = [" ".join(text.lower().split()) for text in (*one.trained, *one.held)]
        if copies:
            assert len(set(kept)) == len(kept) and not plain & set(kept)
        plain |= set(kept)
        for row in one.dropped:
            own = mine[row["text"]]
            if row["reason"] == "held_out_overlap":
                shares = {name: share(own, other) for name, other in held.items()}
                if row["value"] < 1 or held_before:
                    assert row["value"] == max(shares.values()) >= 0.8, (
                        row["value"],
                        sorted(shares.values())[-3:],
                    )
                assert shares[row["detail"]] == row["value"]
            else:
                assert row["reason"] == "copy_after_filter" and copies
                assert row["text"].lower().split() == names[row["detail"]].lower().split()
        trained += [mine[text] for text in one.trained]
        stats = one.stats
        assert stats.documents_in == len(named)
        assert stats.documents_in == stats.documents_out + stats.documents_dropped + stats.documents_held_out
        assert sum(stats.dropped_by_reason.values()) == stats.documents_dropped == len(one.dropped)
        gone = sum(len(row["text"].encode()) for row in one.dropped)
        assert stats.bytes_in == stats.bytes_out + stats.bytes_held_out + gone
