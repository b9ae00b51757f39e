"""An index of benchmark questions by word n-grams, and the search for documents that contain them.

A word is a run of letters and digits, in one spelling (spelling.py). In scripts without spaces it is a character, which
counts for a part of a word (units.py). A question of `ngram` words or more is found by any of its n-grams. A shorter
question is only found as one run together with its correct answer or its choices: the first `ngram` words of the run
count, and it needs at least eight. If hashes are equal, the words themselves are compared.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
from pyarrow import feather

from storage.errors import StageFailed
from tasks.corpus.benchmarks.questions import Question, read_questions
from tasks.corpus.benchmarks.spelling import joined_words, plain_words
from tasks.corpus.units import WORD, runs, shown, weights_of, words_in
from tasks.corpus.words import Words, batches, hashes_between, ngram_hashes, split_words

HEAD_WORDS = 8
"""Minimum number of words of a short question with its answer. This many first words are indexed."""

_TABLE_BITS = 24
"""At most. There are at least sixteen cells for each head, up to a million heads."""


@dataclass(frozen=True)
class Entries:
    """Runs of words to search for, sorted by the hash of their first `width` words.

    heads, whole: uint64, hashes of the first words and of the whole run. lengths: words in the run. wordings, places:
    where the run is in the index's wordings. All of shape (entries,).
    """

    width: int
    heads: np.ndarray
    whole: np.ndarray
    lengths: np.ndarray
    wordings: np.ndarray
    places: np.ndarray

    def find(self, words: Words) -> tuple[np.ndarray, np.ndarray]:
        """(first word, entry) of every place in `words` where the hash of an entry's whole run occurs."""
        hashes, fits, _ = runs(words.hashes, words.first, weights_of(words), self.width)
        upper, lower = self._tables
        places = np.flatnonzero(upper[hashes >> self._shift] & fits)
        places = places[lower[hashes[places] & self._mask]]
        low = np.searchsorted(self.heads, hashes[places], side="left")
        high = np.searchsorted(self.heads, hashes[places], side="right")
        counts = high - low
        position = np.repeat(places, counts)
        entry = np.repeat(low - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())
        return self._whole(words, position, entry)

    @cached_property
    def _tables(self) -> tuple[np.ndarray, np.ndarray]:
        """The upper and lower bits that occur in the heads. They rule out most places."""
        tables = np.zeros((2, 1 << self._bits), bool)
        tables[0, self.heads >> self._shift] = True
        tables[1, self.heads & self._mask] = True
        return tables[0], tables[1]

    @property
    def _bits(self) -> int:
        return min(len(self.heads).bit_length() + 4, _TABLE_BITS)

    @property
    def _shift(self) -> np.uint64:
        return np.uint64(64 - self._bits)

    @property
    def _mask(self) -> np.uint64:
        return np.uint64((1 << self._bits) - 1)

    def _whole(self, words: Words, position: np.ndarray, entry: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        good = np.ones(len(position), bool)
        longer = self.whole[entry] != self.heads[entry]
        for length in np.unique(self.lengths[entry[longer]]):
            these = np.flatnonzero(longer & (self.lengths[entry] == length))
            at = position[these]
            end = words.first[np.searchsorted(words.first, at, side="right")]
            fits = at + length <= end
            good[these[~fits]] = False
            these, at = these[fits], at[fits]
            run = words.hashes[at[:, None] + np.arange(length)[None, :]].ravel()
            hashes = ngram_hashes(run, int(length))[:: int(length)] if len(at) else np.zeros(0, np.uint64)
            good[these] = hashes == self.whole[entry[these]]
        return position[good], entry[good]


@dataclass(frozen=True)
class Index:
    """The questions to search for, numbered over all benchmarks. `question_of` gives each wording's question.

    benchmark_of, row_of, checked: shape (questions,). wordings: normalised texts, with words separated by single
    spaces. unread: of each benchmark, the rows that are no question of a known schema.
    """

    benchmarks: tuple[str, ...]
    benchmark_of: np.ndarray
    row_of: np.ndarray
    checked: np.ndarray
    wordings: pa.Array
    question_of: np.ndarray
    entries: tuple[Entries, ...]
    unread: tuple[int, ...] = ()

    @cached_property
    def digest(self) -> str:
        """Of all that is looked for."""
        found = hashlib.blake2b(json.dumps([self.benchmarks, [e.width for e in self.entries]]).encode())
        for entries in self.entries:
            for name in _COLUMNS:
                found.update(getattr(entries, name).tobytes())
        for numbers in (self.benchmark_of, self.row_of, self.checked, self.question_of):
            found.update(numbers.tobytes())
        for buffer in self.wordings.buffers()[1:]:
            found.update(buffer or b"")
        return found.hexdigest()

    def name(self, question: int) -> str:
        """`benchmark:row`."""
        return f"{self.benchmarks[self.benchmark_of[question]]}:{self.row_of[question]}"


@dataclass(frozen=True)
class Match:
    """A match in a document: the text, its first word, the matched words, and the question."""

    text: int
    position: int
    words: str
    question: int


def build_index(files: tuple[tuple[str, Path], ...], ngram: int, partly: bool = False) -> Index:
    """Index the questions of (benchmark, file). Raises StageFailed for a benchmark without any indexed question.

    With `partly`, such a benchmark is not an error. One benchmark is read at a time: a whole list of them takes twice the
    memory.
    """
    parts = []
    for benchmark, path in files:
        part = _index_of(benchmark, path, ngram)
        if not len(part.wordings) and not partly:
            raise StageFailed(
                f"decontaminate: no question of {benchmark!r} could be read from {path} ({part.unread[0]} rows); "
                "its fields match no known schema (own benchmarks: question, choices, answer)"
            )
        parts.append(part)
    for (benchmark, path), part in zip(files, parts, strict=True):
        if not partly and not part.checked.any():
            raise StageFailed(
                f"decontaminate: nothing of {benchmark!r} was indexed from {path}: every question, even with its "
                f"answer, has fewer than {min(HEAD_WORDS, ngram)} words"
            )
    return _together(parts, ngram)


def _index_of(benchmark: str, path: Path, ngram: int) -> Index:
    """The index of one benchmark, with its entries in the order of the wordings."""
    questions, rows = read_questions(benchmark, path)
    wordings: list[str] = []
    owners: list[int] = []
    alone: list[bool] = []
    for number, (question, suffices) in enumerate(
        zip(questions, _long_enough(questions, ngram), strict=True)
    ):
        for kind, text in _wordings(question, suffices):
            wordings.append(text)
            owners.append(number)
            alone.append(kind == "alone")
    row_of = np.array([question.row for question in questions], np.int64)
    unread = rows - len(questions)
    return _assemble(
        benchmark, row_of, wordings, np.array(owners, np.int64), np.array(alone, bool), ngram, unread
    )


def _together(parts: list[Index], ngram: int) -> Index:
    """One index of several, with its entries sorted."""
    questions = np.concatenate([[0], np.cumsum([len(part.row_of) for part in parts])]).astype(np.int64)
    wordings = np.concatenate([[0], np.cumsum([len(part.wordings) for part in parts])]).astype(np.int64)
    nothing = np.zeros(0, np.int64)
    return Index(
        tuple(part.benchmarks[0] for part in parts),
        np.repeat(np.arange(len(parts)), np.diff(questions)),
        np.concatenate([nothing, *(part.row_of for part in parts)]),
        np.concatenate([np.zeros(0, bool), *(part.checked for part in parts)]),
        pa.concat_arrays([pa.array([], pa.large_string()), *(part.wordings for part in parts)]),
        np.concatenate(
            [nothing, *(part.question_of + begin for part, begin in zip(parts, questions, strict=False))]
        ),
        tuple(
            _sorted([part.entries[kind] for part in parts], wordings, width)
            for kind, width in enumerate((ngram, min(HEAD_WORDS, ngram)))
        ),
        tuple(part.unread[0] for part in parts),
    )


def _sorted(parts: list[Entries], begins: np.ndarray, width: int) -> Entries:
    heads = np.concatenate([np.zeros(0, np.uint64), *(part.heads for part in parts)])
    order = np.argsort(heads, kind="stable")

    def column(name: str, kind: type) -> np.ndarray:
        return np.concatenate([np.zeros(0, kind), *(getattr(part, name) for part in parts)])[order]

    owner = np.repeat(begins[:-1], [len(part.heads) for part in parts])[order]
    return Entries(
        width,
        heads[order],
        column("whole", np.uint64),
        column("lengths", np.int64),
        column("wordings", np.int64) + owner,
        column("places", np.int64),
    )


def _long_enough(questions: list[Question], ngram: int) -> list[bool]:
    """Whether each question is searched for by itself, so that no wording with its answer is."""
    texts = pl.Series([next(iter(question.texts), "") for question in questions], dtype=pl.String)
    words = split_words(_normalised(texts))
    enough: list[bool] = (words_in(words.first, weights_of(words)) >= ngram * WORD).tolist()
    return enough


def _normalised(wordings: pl.Series) -> pl.Series:
    return plain_words(wordings).str.replace_all(" +", " ").str.strip_chars()


def _wordings(question: Question, alone_suffices: bool) -> list[tuple[str, str]]:
    listed = [("alone", text) for text in question.texts]
    if alone_suffices:
        return listed
    return listed + [("answered", text) for text in (*question.answered, *question.printed)]


def _assemble(
    benchmark: str,
    row_of: np.ndarray,
    wordings: list[str],
    owner: np.ndarray,
    alone: np.ndarray,
    ngram: int,
    unread: int,
) -> Index:
    head = min(HEAD_WORDS, ngram)
    normalised = _normalised(pl.Series(wordings, dtype=pl.String))
    words = split_words(normalised)
    counts, enough = words_in(words.first, weights_of(words)), ngram * WORD
    checked = np.zeros(len(row_of), bool)
    checked[owner[alone & (counts >= enough)]] = True
    first = np.searchsorted(owner, np.arange(len(checked)))  # the first wording: the question itself
    own_words = counts[np.minimum(first, max(len(counts) - 1, 0))] if len(counts) else counts
    blanks = WORD * np.array(
        [len(re.findall(r"_+", text)) for text in wordings], np.int64
    )  # a blank stands for one word
    short = (own_words[owner] < enough) & (counts >= head * WORD)
    short &= ~alone | ((blanks > 0) & (counts + blanks >= enough) & (counts < enough))
    checked[owner[short]] = True
    return Index(
        (benchmark,),
        np.zeros(len(row_of), np.int64),
        row_of,
        checked,
        normalised.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(pa.large_string()),
        owner,
        (_windows(words, alone, ngram), _runs(words, short, head, ngram)),
        (unread,),
    )


def _windows(words: Words, chosen: np.ndarray, ngram: int) -> Entries:
    hashes, fits, lengths = runs(words.hashes, words.first, weights_of(words), ngram)
    wording = np.repeat(np.arange(len(chosen)), np.diff(words.first))[: len(hashes)]
    keep = np.flatnonzero(fits & chosen[wording])
    owner = wording[keep]
    return Entries(ngram, hashes[keep], hashes[keep], lengths[keep], owner, keep - words.first[owner])


def _runs(words: Words, chosen: np.ndarray, head: int, ngram: int) -> Entries:
    wording, weights = np.flatnonzero(chosen), weights_of(words)
    starts, ends = words.first[wording], words.first[wording + 1]
    if len(wording):
        first_words = runs(words.hashes, words.first, weights, head)[0][starts]
        _, fits, units = runs(words.hashes, words.first, weights, ngram)
        at = np.minimum(starts, len(fits) - 1)
        whole_fits = (starts < len(fits)) & fits[at] if len(fits) else np.zeros(len(starts), bool)
        lengths = np.where(whole_fits, units[at] if len(fits) else 0, ends - starts)
    else:
        first_words, lengths = np.zeros(0, np.uint64), starts
    whole = hashes_between(words.hashes, starts, starts + lengths)
    return Entries(head, first_words, whole, lengths, wording, np.zeros(len(wording), np.int64))


def find_matches(texts: pl.Series, index: Index) -> list[Match]:
    """Every place in the texts that contains an indexed run, ordered by text and place. The words themselves are
    compared.

    A text with words that are hyphenated at line ends is searched twice. Of the second search, in which these words are
    joined, the questions count that the first one did not find.
    """
    matches: list[Match] = []
    for offset, some in batches(texts):
        found = _matches(plain_words(some), index)
        known = {(match.text, match.question) for match in found}
        places, joined = joined_words(some)
        for match in _matches(joined, index):
            text = int(places[match.text])
            if (text, match.question) not in known:
                found.append(replace(match, text=text))
        matches += [replace(match, text=offset + match.text) for match in found]
    return sorted(matches, key=lambda match: (match.text, match.position, match.question, match.words))


def _matches(plain: pl.Series, index: Index) -> list[Match]:
    matches: list[Match] = []
    words = split_words(plain)
    for entries in index.entries:
        if not len(entries.heads):
            continue
        positions, found = entries.find(words)
        owners = np.searchsorted(words.first, positions, side="right") - 1
        for text, position, entry in zip(owners, positions, found, strict=True):  # few
            length = int(entries.lengths[entry])
            wording = int(entries.wordings[entry])
            run = words.text(int(position), int(position) + length)
            place = int(entries.places[entry])
            if run == " ".join(index.wordings[wording].as_py().split(" ")[place : place + length]):
                begin = int(position - words.first[text])
                matches.append(Match(int(text), begin, shown(run), int(index.question_of[wording])))
    return matches


@dataclass(frozen=True)
class SavedIndex:
    """An index in files. Two with one digest are equal, wherever they are."""

    digest: str
    benchmarks: tuple[str, ...]
    directory: Path = field(compare=False)


def save_index(index: Index, directory: Path) -> SavedIndex:
    """Write an index, for the workers to load."""
    directory.mkdir(parents=True, exist_ok=True)
    for old in directory.iterdir():  # a worker may still have it mapped, so it is not written over
        old.unlink()
    for number, entries in enumerate(index.entries):
        columns = {name: getattr(entries, name) for name in _COLUMNS}
        table = pa.table(columns).replace_schema_metadata({"width": str(entries.width)})
        _write(table, directory / f"entries-{number}.arrow")
    _write(pa.table({"wording": index.wordings, "question": index.question_of}), directory / "wordings.arrow")
    questions = pa.table({"benchmark": index.benchmark_of, "row": index.row_of, "checked": index.checked})
    _write(questions, directory / "questions.arrow")
    return SavedIndex(index.digest, index.benchmarks, directory)


@lru_cache(maxsize=1)
def load_index(saved: SavedIndex) -> Index:
    """Map the files that `save_index` wrote. A process keeps the last index: the next slice's is the same one."""
    entries = []
    for path in sorted(saved.directory.glob("entries-*.arrow")):
        table = feather.read_table(path, memory_map=True)
        width = int((table.schema.metadata or {})[b"width"])
        entries.append(Entries(width, *(_numbers(table[name]) for name in _COLUMNS)))
    wordings = feather.read_table(saved.directory / "wordings.arrow", memory_map=True)
    questions = feather.read_table(saved.directory / "questions.arrow", memory_map=True)
    return Index(
        saved.benchmarks,
        _numbers(questions["benchmark"]),
        _numbers(questions["row"]),
        questions["checked"].to_numpy(),
        _one(wordings["wording"]),
        _numbers(wordings["question"]),
        tuple(entries),
    )


def _write(table: pa.Table, path: Path) -> None:
    """In one piece, so that each column is one mapped range of the file."""
    feather.write_feather(table, path, compression="uncompressed", chunksize=max(len(table), 1))


_COLUMNS = ("heads", "whole", "lengths", "wordings", "places")


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    return _one(column).to_numpy()


def _one(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
