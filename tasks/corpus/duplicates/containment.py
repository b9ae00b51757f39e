"""Texts that contain one of a set of texts, or are contained in one, by their shingles.

A text and a held-out text share too much where the smaller of their two sets of distinct shingles lies in the larger
one to at least four fifths: |a ∩ b| / min(|a|, |b|) ≥ 4/5. Shingles are those of near-duplicates, runs of `NGRAM` words
(minhash.py). A text with fewer words has one shingle, all of its words, so only a text of the same words is alike. A
text without any word has none, and is like no other.

The set of texts is a table of shingles, sorted by hash, which workers map into memory: an inverted index. Every shingle
of every text is looked up, so that no pair is missed. Two tables of bits rule out most of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from pyarrow import feather

from storage.views import numpy_view
from tasks.corpus.duplicates.minhash import Shingles, shingles_of_lowered, simplify
from tasks.corpus.duplicates.signatures import SignatureTable, merged, write_tables
from tasks.corpus.shards import texts_of
from tasks.corpus.words import batches

NGRAM = 5
"""Words of a shingle, whatever `corpus.dedup` says: what is held out is the same with and without it."""
TABLE, SIZES, PAIRS = "held.arrow", "held-sizes.arrow", "pairs.arrow"

_NUMERATOR, _DENOMINATOR = 4, 5
_BITS = 24
_SHIFT, _MASK = np.uint64(64 - _BITS), np.uint64((1 << _BITS) - 1)
_PAIRS_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Pairs:
    """Texts that share too much with a held-out one. texts, places: int64; shares: float64, 0.8 to 1."""

    texts: np.ndarray
    places: np.ndarray
    shares: np.ndarray

    @classmethod
    def nothing(cls) -> Pairs:
        """No pair."""
        return cls(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))

    @classmethod
    def together(cls, pairs: Sequence[Pairs]) -> Pairs:
        """All of them, in order."""
        every = [cls.nothing(), *pairs]
        return cls(*(np.concatenate([getattr(one, name) for one in every]) for name in vars(every[0])))

    def best(self) -> Pairs:
        """For each text, the held-out one of which it shares most; of equals, the first."""
        order = np.lexsort((self.places, -self.shares, self.texts))
        _, one = np.unique(self.texts[order], return_index=True)
        chosen = order[one]
        return Pairs(self.texts[chosen], self.places[chosen], self.shares[chosen])


@dataclass(frozen=True)
class HeldTexts:
    """A set of texts to look for. `table`: their distinct shingles and the number of each one's text, from 0.

    sizes: int64, shape (texts,), distinct shingles of each.
    """

    table: SignatureTable
    sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.sizes)

    @classmethod
    def of(cls, texts: Iterable[pl.Series], spill: Path) -> HeldTexts:
        """The texts of all series, numbered in order. What exceeds the memory goes to temporary files in `spill`."""
        tables, sizes, before = [], [np.zeros(0, np.int64)], 0
        for lowered in (some.str.to_lowercase() for each in texts for _, some in batches(each)):
            values, owners = _distinct(text_shingles(lowered))
            tables.append(SignatureTable.of(values, owners + before, 0))
            sizes.append(np.bincount(owners, minlength=len(lowered)))
            before += len(lowered)
        return cls(_joined(tables, spill), np.concatenate(sizes))

    @classmethod
    def together(cls, sets: Sequence[HeldTexts], spill: Path) -> HeldTexts:
        """Several sets as one, numbered in order."""
        starts = np.cumsum([0, *(len(one) for one in sets)])
        tables = [
            SignatureTable(one.table.hashes, one.table.places, start=int(start))
            for one, start in zip(sets, starts, strict=False)
        ]
        return cls(_joined(tables, spill), np.concatenate([np.zeros(0, np.int64), *(s.sizes for s in sets)]))

    def save(self, directory: Path) -> None:
        """Write the set, for `load`."""
        directory.mkdir(parents=True, exist_ok=True)
        write_tables(directory / TABLE, [self.table])
        sizes = pa.table({"shingles": pa.array(self.sizes, pa.int64())})
        feather.write_feather(sizes, directory / SIZES, compression="uncompressed")

    @classmethod
    def load(cls, directory: Path) -> HeldTexts:
        """A saved set, mapped into memory."""
        batch = pa.ipc.open_file(pa.memory_map(str(directory / TABLE), "r")).get_batch(0)
        table = SignatureTable(numpy_view(batch.column("hash")), numpy_view(batch.column("place")))
        return cls(table, feather.read_table(directory / SIZES)["shingles"].to_numpy())

    def alike(self, texts: pl.Series) -> Pairs:
        """Every pair of one of `texts` and one of the set that share too much."""
        found: list[Pairs] = []
        for offset, some in batches(texts if len(self.table.hashes) else texts.clear()):
            own = text_shingles(some.str.to_lowercase())
            for pairs in self._alike(own):
                found.append(replace(pairs, texts=pairs.texts + offset))
        return Pairs.together(found)

    def _alike(self, own: Shingles) -> Iterator[Pairs]:
        upper, lower = self._tables
        places = np.flatnonzero(upper[own.values >> _SHIFT])
        places = places[lower[own.values[places] & _MASK]]
        owners = np.searchsorted(own.first, places, side="right") - 1
        order = np.lexsort((own.values[places], owners))
        values, owners = own.values[places][order], owners[order]
        new = np.ones(len(values), bool)
        new[1:] = (values[1:] != values[:-1]) | (owners[1:] != owners[:-1])
        values, owners = values[new], owners[new]
        distinct, which = np.unique(values, return_inverse=True)
        rows, at = self.table.find(distinct)
        counts = np.bincount(at, minlength=len(distinct))
        first = np.cumsum(counts) - counts
        held = counts[which] > 0
        which, owners = which[held], owners[held]
        sizes = counts[which]  # texts of the set that hold each shingle
        for begin, end in _cuts(owners, np.cumsum(sizes)):
            many = sizes[begin:end]
            repeated = np.repeat(np.arange(begin, end), many)
            within = np.arange(len(repeated)) - np.repeat(np.cumsum(many) - many, many)
            found = self.table.at(rows[first[which[repeated]] + within])
            pairs, common = np.unique(owners[repeated] * len(self) + found, return_counts=True)
            yield self._sharing(own, pairs // len(self), pairs % len(self), common)

    def _sharing(self, own: Shingles, texts: np.ndarray, places: np.ndarray, common: np.ndarray) -> Pairs:
        """Of texts with shingles in common, the pairs that share too much."""
        most: dict[int, int] = {}
        for text, count in zip(texts.tolist(), common.tolist(), strict=True):
            most[text] = max(most.get(text, 0), count)
        # a loop over texts: of most, a few shingles show that they have too many
        smaller = {text: _size_up_to(own, text, _reached_by(count)) for text, count in most.items()}
        least = np.minimum(self.sizes[places], np.array([smaller[text] for text in texts.tolist()], np.int64))
        enough = common * _DENOMINATOR >= least * _NUMERATOR
        return Pairs(texts[enough], places[enough], common[enough] / least[enough])

    @cached_property
    def _tables(self) -> tuple[np.ndarray, np.ndarray]:
        tables = np.zeros((2, 1 << _BITS), bool)
        tables[0, self.table.hashes >> _SHIFT] = True
        tables[1, self.table.hashes & _MASK] = True
        return tables[0], tables[1]


@dataclass(frozen=True)
class AlikeJob:
    """A file of documents that is searched for the set saved in `held`."""

    path: Path
    held: Path


def alike_shard(job: AlikeJob, directory: Path) -> dict[str, Any]:
    """Shard function: writes `pairs.arrow`, every pair of a row and one of the set."""
    write_pairs(HeldTexts.load(job.held).alike(texts_of(job.path)), directory)
    return {}


def write_pairs(pairs: Pairs, directory: Path) -> None:
    """Write `pairs.arrow`."""
    columns = {name: pa.array(column) for name, column in vars(pairs).items()}
    feather.write_feather(pa.table(columns), directory / PAIRS, compression="uncompressed")


def read_pairs(directory: Path) -> Pairs:
    """What `write_pairs` wrote."""
    table = feather.read_table(directory / PAIRS)
    return Pairs(*(table[name].to_numpy() for name in ("texts", "places", "shares")))


def text_shingles(lowered: pl.Series) -> Shingles:
    """The shingles of lower-case texts, as they are compared here."""
    found = shingles_of_lowered(lowered, NGRAM)
    short = np.flatnonzero(np.diff(found.first) == 0)
    if not len(short):
        return found
    plain = simplify(lowered.gather(pl.Series(short, dtype=pl.UInt32))).str.strip_chars().to_list()
    worded = [(place, text) for place, text in zip(short.tolist(), plain, strict=True) if text]
    places = np.array([place for place, _ in worded], np.int64)
    whole = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for _, text in worded)
    counts = np.diff(found.first)
    values = np.insert(found.values, found.first[places], np.frombuffer(whole, "<u8"))
    counts[places] = 1
    return Shingles(values, np.concatenate([[0], np.cumsum(counts)]))


def _distinct(given: Shingles) -> tuple[np.ndarray, np.ndarray]:
    """The distinct shingles of each text, and their texts' numbers, text by text."""
    owners = np.repeat(np.arange(len(given.first) - 1), np.diff(given.first))
    order = np.lexsort((given.values, owners))
    values = given.values[order]
    new = np.ones(len(values), bool)
    new[1:] = (values[1:] != values[:-1]) | (owners[1:] != owners[:-1])  # ordered by text already
    return values[new], owners[new]


def _joined(tables: Sequence[SignatureTable], spill: Path) -> SignatureTable:
    nothing = SignatureTable(np.zeros(0, np.uint64), np.zeros(0, np.uint32))
    return merged(tables, spill) if tables else nothing


def _cuts(owners: np.ndarray, pairs: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of shingles of whole texts with about `_PAIRS_AT_ONCE` pairs each. `pairs`: their running sum."""
    begin = 0
    while begin < len(owners):
        before = int(pairs[begin - 1]) if begin else 0
        end = int(np.searchsorted(pairs, before + _PAIRS_AT_ONCE, side="right"))
        end = int(np.searchsorted(owners, owners[max(end - 1, begin)], side="right"))
        yield begin, end
        begin = end


def _reached_by(common: int) -> int:
    """The largest set of which so many shingles are four fifths."""
    return common * _DENOMINATOR // _NUMERATOR


def _size_up_to(own: Shingles, text: int, most: int) -> int:
    """The number of a text's distinct shingles. Where it is more than `most`, any number above `most`."""
    begin, end = int(own.first[text]), int(own.first[text + 1])
    some = len(np.unique(own.values[begin : min(end, begin + 2 * most + 8)]))
    return some if some > most else len(np.unique(own.values[begin:end]))
