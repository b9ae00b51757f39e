"""Text that behaves like English, of any size: real documents in other words.

    python benchmarks/billion_text.py DIR [--bytes 5G] [--seed 0] [--general 0.4]        # 4 minutes on one core for 5 GB

Writes DIR/educational and DIR/general, made after ../shared/data/edu and ../shared/data/general (ONWARD_TEST_DATA): Parquet
files of 64 MB of text, and every eighth as compressed JSON lines. The same arguments give the same files.

A document is a real one, so lengths, lines, repetition and markup are those of real text. But it begins at another of
its sentences, and its words are others: each, except the most frequent ones, is exchanged for one of the same kind
(capitals, signs around it) and about as frequent, the same one in the whole document. So two documents made after one
have little in common, as documents of real text have. Some names are made up, so that new words go on coming.

Besides, as shares of all documents:
    1 %    exact copies of any earlier document of the source
    4 %    near copies: one in 33 words is another, or the last tenth is missing
    4 %    the bad documents of ../shared/data/dirty: other languages, markup, boilerplate, degenerate text
    0.2 %  documents with a benchmark's question in them

A document is a function of the seed and its number, so a copy of any earlier one can be made. Memory does not grow with the
size: about 1.2 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import zstandard

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("ONWARD_TEST_DATA", ROOT.parent / "shared" / "data"))
SOURCES = {"educational": "edu", "general": "general"}
REAL_BYTES = 36_000_000  # of each source, after which documents are made
FILE_BYTES = 64_000_000
BATCH_DOCUMENTS = 500  # made at once
EXACT, NEAR, BAD, QUESTION = 0.01, 0.04, 0.04, 0.002  # shares of the documents
CUT, EDITED = (
    0.3,
    0.03,
)  # of near copies: the share that lacks its end; the share of words that are others in the rest
FREQUENT = 150  # words of a kind that stay
NAMES = 200_000  # made-up words
_ROW = re.compile(r"\S+|\s+")
_PARTS = re.compile(r"^(\W*)(.*?)(\W*)$", re.DOTALL)
_CONSTANTS = tuple(np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def mixed(*numbers: Any) -> np.ndarray:
    """64 bits from the numbers, by SplitMix64's finaliser."""
    state = np.uint64(0)
    first, second, third = _CONSTANTS
    with np.errstate(over="ignore"):
        for number in numbers:
            state = (state + np.asarray(number).astype(np.uint64) + np.uint64(1)) * first
            state = (state ^ (state >> np.uint64(30))) * second
            state = (state ^ (state >> np.uint64(27))) * third
            state = state ^ (state >> np.uint64(31))
    return np.atleast_1d(state)


def shares(*numbers: Any) -> np.ndarray:
    """The same bits as numbers from 0 to 1."""
    return (mixed(*numbers) >> np.uint64(11)) / float(1 << 53)


# ---- the real text as numbers -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Models:
    """Real documents as runs of strings, words and what parts them in turn.

    strings: all distinct ones. codes: int32, the strings of all documents. first: where each document begins in codes.
    sentences: places in codes at which a sentence begins, ascending. good, bad: numbers of documents of each kind; the
    questions follow. low, size: of each string, where its group of exchangeable strings begins in `members`, and how
    many these are. place: its place in the group.
    """

    strings: pa.Array
    codes: np.ndarray
    first: np.ndarray
    sentences: np.ndarray
    good: int
    bad: int
    members: np.ndarray
    low: np.ndarray
    size: np.ndarray
    place: np.ndarray

    @classmethod
    def of(cls, good: list[str], bad: list[str], questions: list[str]) -> Models:
        """Cut texts into words, and sort the words into kinds."""
        numbers: dict[str, int] = {}
        runs = []
        for text in (*good, *bad, *questions):  # a loop over the documents, once
            runs.append([numbers.setdefault(one, len(numbers)) for one in _ROW.findall(text + "\n")])
        codes = np.concatenate([np.array(run, np.int32) for run in runs])
        first = np.concatenate([[0], np.cumsum([len(run) for run in runs])])
        made = [_name(number) for number in range(NAMES)]
        strings = [*numbers, *(name for name in made if name not in numbers)]
        counts = np.bincount(codes, minlength=len(strings))
        ends = np.array([one.endswith((".", "?", "!")) for one in strings])
        sentences = np.flatnonzero(ends[codes[:-2]]) + 2
        return cls(
            pa.array(strings, pa.large_string()),
            codes,
            first,
            sentences,
            len(good),
            len(bad),
            *_groups(strings, counts),
        )


def _name(number: int) -> str:
    letters = ""
    number += 5000
    while number:
        number, rest = divmod(number, 70)
        letters += "bcdfghklmnprst"[rest % 14] + "aeiou"[rest // 14]
    return letters.title()


def _groups(strings: list[str], counts: np.ndarray) -> tuple[np.ndarray, ...]:
    """(members, low, size, place): strings of one kind, in groups of about equal frequency."""
    kinds: dict[tuple[str, str, str], list[int]] = {}
    for number, one in enumerate(strings):
        kinds.setdefault(_kind(one), []).append(number)
    members, low, size, place = (np.zeros(len(strings), np.int64) for _ in range(4))
    at = 0
    for kind, own in kinds.items():
        ordered = np.array(own)[np.lexsort((own, -counts[own]))]
        fixed = len(ordered) if kind[1] in ("space", "other") else FREQUENT if kind[1] == "lower" else 10
        edges = [*range(min(fixed, len(ordered)))]  # frequent ones are groups of one
        width, begin = 40, len(edges)
        while begin < len(ordered):  # the rarer, the larger the group
            edges.append(begin)
            begin, width = begin + width, min(width * 2, 50_000)
        for begin, end in zip(edges, [*edges[1:], len(ordered)], strict=True):
            group = ordered[begin:end]
            members[at + begin : at + end] = group
            low[group], size[group], place[group] = at + begin, end - begin, np.arange(end - begin)
        at += len(ordered)
    return members, low, size, place


def _kind(one: str) -> tuple[str, str, str]:
    found = _PARTS.match(one)
    assert found
    before, core, after = found.groups()
    if one.isspace():
        return "", "space", ""
    if core.isdigit():
        return before, f"digits {len(core)}", after
    if not core.isalpha() or len(before + after) > 3:
        return "", "other", ""
    letters = "plain" if core.isascii() else "wide" if max(core) < "\u0250" else str(ord(core[0]) >> 8)
    case = (
        "lower" if core.islower() else "upper" if core.isupper() else "title" if core.istitle() else "mixed"
    )
    return before, case if letters == "plain" else f"{case} {letters}", after


# ---- documents that are functions of their numbers --------------------------------------------------------------------


@dataclass(frozen=True)
class Maker:
    """Makes the documents of a source."""

    models: Models
    seed: int

    def texts(self, documents: np.ndarray) -> pa.Array:
        """The texts of these documents (int64), as an Arrow array of large strings."""
        models, seed = self.models, self.seed
        origin, near = self._origins(documents)
        model = (shares(seed, origin, 2) * models.good).astype(np.int64)
        bad = shares(seed, origin, 3) < BAD
        model[bad] = models.good + (shares(seed, origin[bad], 4) * models.bad).astype(np.int64)
        begin, end = models.first[model], models.first[model + 1]
        turn = begin + (shares(seed, origin, 5) * (end - begin)).astype(np.int64)
        at = np.minimum(np.searchsorted(models.sentences, turn), len(models.sentences) - 1)
        turn = np.where(
            (models.sentences[at] < end) & (models.sentences[at] >= begin), models.sentences[at], begin
        )
        lengths = end - begin
        cut = near & (shares(seed, documents, 6) < CUT)
        lengths = np.where(cut, np.maximum(lengths * 9 // 10, 1), lengths)
        edges = np.concatenate([[0], np.cumsum(lengths)])
        owner = np.repeat(np.arange(len(documents)), lengths)
        places = np.arange(edges[-1]) - edges[owner] + turn[owner]
        places -= np.where(places >= end[owner], (end - begin)[owner], 0)
        codes = models.codes[places].astype(np.int64)
        low, size = models.low[codes], models.size[codes]
        swapped = np.flatnonzero(size > 1)
        key, low, size = mixed(seed, origin, 7)[owner[swapped]], low[swapped], size[swapped]
        shift = mixed(key, low) % size.astype(np.uint64)
        codes[swapped] = models.members[low + (models.place[codes[swapped]] + shift.astype(np.int64)) % size]
        self._edit(codes, swapped[(near & ~cut)[owner[swapped]]], documents[owner], places)
        return self._joined(codes, edges, documents, origin)

    def _origins(self, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The document that each one copies, itself for most; and which are near copies."""
        drawn = shares(self.seed, documents, 0)
        at, near = documents.copy(), (drawn >= EXACT) & (drawn < EXACT + NEAR) & (documents >= 100)
        while True:
            copies = np.flatnonzero((shares(self.seed, at, 0) < EXACT + NEAR) & (at >= 100))
            if not len(copies):
                return at, near
            at[copies] = (shares(self.seed, at[copies], 1) * at[copies]).astype(np.int64)

    def _edit(self, codes: np.ndarray, which: np.ndarray, documents: np.ndarray, places: np.ndarray) -> None:
        drawn = shares(self.seed, documents[which], places[which], 8)
        which = which[drawn < 2 * EDITED]  # of the words that may be exchanged, half of all
        size = self.models.size[codes[which]]
        other = (shares(self.seed, documents[which], places[which], 9) * size).astype(np.int64)
        codes[which] = self.models.members[self.models.low[codes[which]] + other]

    def _joined(
        self, codes: np.ndarray, edges: np.ndarray, documents: np.ndarray, origin: np.ndarray
    ) -> pa.Array:
        models = self.models
        asked = np.flatnonzero(shares(self.seed, origin, 10) < QUESTION)
        if len(asked):  # a question stands at the end of its document
            count = len(models.first) - 1 - models.good - models.bad
            own = models.good + models.bad + (shares(self.seed, origin[asked], 11) * count).astype(np.int64)
            added = [models.codes[models.first[one] : models.first[one + 1]] for one in own]
            sizes = np.zeros(len(documents), np.int64)
            sizes[asked] = [len(one) for one in added]
            codes = np.insert(codes, np.repeat(edges[asked + 1], sizes[asked]), np.concatenate(added))
            edges = edges + np.concatenate([[0], np.cumsum(sizes)])
        taken = models.strings.take(pa.array(codes))
        _, offsets, data = taken.buffers()
        whole = np.frombuffer(offsets, np.int64)[edges]
        return pa.Array.from_buffers(pa.large_string(), len(documents), [None, pa.py_buffer(whole), data])


# ---- files ------------------------------------------------------------------------------------------------------------


def real_texts(directory: Path, limit: int) -> list[str]:
    """Texts of a real source's Parquet files, up to `limit` bytes, taken evenly."""
    tables = [pq.read_table(path, columns=["text"])["text"] for path in sorted(directory.glob("*.parquet"))]
    column = pa.chunked_array([chunk for table in tables for chunk in table.chunks])
    size = pc.sum(pc.binary_length(column)).as_py()
    return [text for text in column.to_pylist()[:: max(1, -(-size // limit))] if text and text.strip()]


def bad_texts() -> list[str]:
    """The bad documents that were planted in the dirty corpus: other languages, boilerplate, degenerate text."""
    from tests.support.corpus.shared import rows_of

    truth = json.loads((DATA / "dirty" / "truth.json").read_text(encoding="utf-8"))
    named = {entry["id"] for kind in ("non_english", "boilerplate", "degenerate") for entry in truth[kind]}
    return [row["text"][:200_000] for row in rows_of(DATA / "dirty") if row["id"] in named]


def question_texts() -> list[str]:
    """A long field of each of some benchmarks' questions."""
    found = []
    for name in ("mmlu/test", "arc_easy/test", "sciq/test", "boolq/validation", "piqa/validation"):
        path = DATA / "benchmarks" / f"{name}.jsonl"
        for line in path.read_text(encoding="utf-8").splitlines()[::20] if path.exists() else ():
            fields = [value for value in json.loads(line).values() if isinstance(value, str)]
            found.append(max(fields, key=len))
    return [text for text in found if len(text.split()) >= 13]


def batches(maker: Maker, limit: int) -> Iterator[tuple[int, pa.Array]]:
    """(first number, texts) until `limit` bytes are made."""
    made = number = 0
    while made < limit:
        texts = maker.texts(np.arange(number, number + BATCH_DOCUMENTS))
        yield number, texts
        made += pc.sum(pc.binary_length(texts)).as_py()
        number += BATCH_DOCUMENTS


def write_source(directory: Path, source: str, limit: int, seed: int) -> dict[str, int]:
    """Write a source's files. Returns the numbers of documents, bytes of text and files."""
    directory.mkdir(parents=True)
    real = real_texts(DATA / SOURCES[source], REAL_BYTES)
    maker = Maker(Models.of(real, bad_texts(), question_texts()), seed)
    total = {"documents": 0, "bytes": 0, "files": 0}
    held: list[pa.Table] = []
    with ThreadPoolExecutor(1) as beside:

        def write() -> None:
            table = pa.concat_tables(held)
            held.clear()
            waiting.append(beside.submit(write_file, directory, total["files"], table))
            total["files"] += 1
            if len(waiting) > 1:
                waiting.pop(0).result()

        waiting: list[Any] = []
        size = 0
        for number, texts in batches(maker, limit):
            ids = pa.array([f"{source}-{seed}-{number + place}" for place in range(len(texts))])
            held.append(pa.table({"id": ids, "text": texts}))
            own = pc.sum(pc.binary_length(texts)).as_py()
            total["documents"], total["bytes"] = total["documents"] + len(texts), total["bytes"] + own
            size += own
            if size >= FILE_BYTES:
                write()
                size = 0
        if held:
            write()
        for one in waiting:
            one.result()
    return total


def write_file(directory: Path, number: int, table: pa.Table) -> None:
    """Write a file of documents: every eighth as compressed JSON lines."""
    if number % 8 == 7:
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist())
        packed = zstandard.ZstdCompressor(level=1).compress(lines.encode())
        (directory / f"part-{number:05d}.jsonl.zst").write_bytes(packed)
        return
    pq.write_table(
        table,
        directory / f"part-{number:05d}.parquet",
        compression="zstd",
        compression_level=1,
        row_group_size=1000,
    )


def generate(directory: Path, size: int, seed: int, general: float) -> dict[str, dict[str, int]]:
    """Write both sources; returns what was written, by source."""
    parts = {"educational": round(size * (1 - general)), "general": round(size * general)}
    return {name: write_source(directory / name, name, part, seed) for name, part in parts.items() if part}


def main() -> None:
    from storage.counts import parse_count

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path, help="a new directory")
    parser.add_argument("--bytes", type=parse_count, default=5_000_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--general", type=float, default=0.4, help="share of the general source")
    chosen = parser.parse_args()
    print(json.dumps(generate(chosen.directory, chosen.bytes, chosen.seed, chosen.general)))


if __name__ == "__main__":
    main()
