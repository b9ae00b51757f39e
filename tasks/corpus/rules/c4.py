"""C4's rules (Raffel et al. 2020, arXiv:1910.10683, section 2.2), as datatrove applies them (`filters/c4_filters.py`).

Lines that are not prose are removed from the text; then whole documents are judged by the remaining lines. The rule
that a line must end in punctuation is off, as in FineWeb (Penedo et al. 2024, arXiv:2406.17557, section 3.4): it alone
removes 30 % of the text. C4's list of bad words is not included: datatrove's filter does not include it either.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import polars as pl

from tasks.corpus.rules.english import SENTENCE_ENDS
from tasks.corpus.rules.rule import BatchLines, Edited, Family, Rule, TextBatch, at_most
from tasks.corpus.rules.spans import NEWLINE, character_counts, series, strings, sums
from tasks.corpus.units import holds_units

MAX_WORD_CHARACTERS = 1000
MIN_LINE_WORDS = 3
MIN_SENTENCES = 5
POLICY = (
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)
CITATION = r"^(?:\d*|edit|citation needed)$"
"""The content of the square brackets that Wikipedia's citations leave behind. They are cut out of every line."""

LINE_RULES: dict[str, float | None] = {
    "c4_long_words": MAX_WORD_CHARACTERS,
    "c4_lines_without_end_punctuation": None,
    "c4_short_lines": MIN_LINE_WORDS,
    "c4_javascript_lines": 0,
    "c4_policy_lines": 0,
}
"""Line rules with their thresholds, in the order in which datatrove applies them: the longest word of a line in
characters, the end of a line, words in a line, mentions of JavaScript, phrases about cookies and terms. None: off."""

_BRACE, _OPEN, _CLOSE, _DOT, _QUOTES = ord("{"), ord("["), ord("]"), ord("."), b".?!\"'"


@dataclass(frozen=True)
class LineVerdicts:
    """C4's line rules at some thresholds. A batch caches the result."""

    limits: tuple[tuple[str, float], ...]

    def __call__(self, batch: TextBatch) -> KeptLines:
        """The lines that are kept, and the counts that the rules for whole documents need."""
        limits, lines = dict(self.limits), batch.broken_lines
        text = lines.spans.text()
        starts, ends = _stripped(batch, lines)
        cuts = _citations(batch)
        phrases = _phrases(batch, lines, text, starts, ends)
        alive, removed = lines.written.copy(), {}

        def remove(name: str, bad: np.ndarray) -> None:
            nonlocal alive
            removed[name] = np.bincount(text[alive & bad], minlength=len(batch))
            alive &= ~bad

        if "c4_long_words" in limits:
            remove("c4_long_words", _long_words(batch, lines, limits["c4_long_words"]))
        if "c4_lines_without_end_punctuation" in limits:
            remove("c4_lines_without_end_punctuation", ~_ends_well(batch, starts, ends, cuts))
        if "c4_short_lines" in limits:
            remove("c4_short_lines", _short(batch, lines, limits["c4_short_lines"]))
        lorem = np.bincount(text[alive & phrases["lorem"]], minlength=len(batch))
        if "c4_javascript_lines" in limits:
            remove("c4_javascript_lines", phrases["javascript"])
        braces = np.zeros(len(alive), bool)
        braces[_line_of(lines, np.flatnonzero(batch.flat.buffer == _BRACE))] = True
        curly = np.bincount(text[alive & braces], minlength=len(batch))
        if "c4_policy_lines" in limits:
            remove("c4_policy_lines", phrases["policy"])
        return KeptLines(batch, alive, starts, ends, cuts, lorem, curly, removed)


@dataclass(frozen=True)
class KeptLines:
    """The lines of a batch that C4 keeps, and counts per text.

    alive: which lines are kept. starts, ends: byte ranges of the lines, without surrounding white space. cuts: byte
    ranges of the citations to cut. lorem, curly: per text, the lines with lorem ipsum or curly brackets. removed: per
    text, the lines that each line rule removed.
    """

    batch: TextBatch
    alive: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    cuts: tuple[np.ndarray, np.ndarray]
    lorem: np.ndarray
    curly: np.ndarray
    removed: dict[str, np.ndarray]

    def sentences(self, limit: float) -> np.ndarray:
        """Sentences in the kept lines, as spaCy's sentencizer counts them: int64, shape (texts,).

        A text with at least `limit` lines has at least that many sentences, and is not counted further.
        """
        lines = self.batch.broken_lines.spans
        counted = sums(self.alive, lines.first)
        few = np.repeat((counted > 0) & (counted < limit), np.diff(lines.first))
        chosen = np.flatnonzero(self.alive & few)
        if len(chosen):
            text = np.repeat(np.arange(len(self.batch)), np.diff(lines.first))[chosen]
            cleaned = strings(self.batch.flat.buffer, self.starts[chosen], self.ends[chosen])
            cleaned = cleaned.str.replace_all(r"\[\d*\]|\[edit\]|\[citation needed\]", "")
            each = np.maximum(sentence_counts(TextBatch(cleaned)), 1)  # a line of citations counts as one
            found = np.bincount(text, each, minlength=len(self.batch))
            counted = np.where(np.isin(np.arange(len(counted)), text), found.astype(np.int64), counted)
        return counted

    def edited(self, keep: np.ndarray) -> Edited:
        """The kept lines of the texts to keep (bool, shape (texts,)), joined by single newlines."""
        spans, buffer = self.batch.broken_lines.spans, self.batch.flat.buffer
        alive = self.alive & np.repeat(keep, np.diff(spans.first))
        starts, ends = self.starts[alive], self.ends[alive]
        from_, to = self.cuts
        inside = np.searchsorted(starts, from_, side="right") - 1
        held = inside >= 0
        held[held] = to[held] <= ends[inside[held]]
        change = np.zeros(len(buffer) + 1, np.int8)
        change[starts] += 1
        change[ends + 1] -= 1  # the byte after a line becomes its newline
        change[from_[held]] -= 1
        change[to[held]] += 1
        data = buffer.copy()
        data[ends] = NEWLINE
        stays = np.cumsum(change[:-1], dtype=np.int8).view(bool)
        sizes = np.bincount(spans.text()[alive], ends - starts + 1, minlength=len(self.batch))
        owner = np.searchsorted(self.batch.flat.edges, from_[held], side="right") - 1
        sizes -= np.bincount(owner, (to - from_)[held], minlength=len(self.batch))
        edges = np.concatenate([[0], np.cumsum(sizes[keep])]).astype(np.int64)
        texts = series(data[stays], edges).str.strip_chars()
        return Edited(texts, {name: counts[keep] for name, counts in self.removed.items()})


def family(limits: Mapping[str, float]) -> Family:
    """C4's rules with their limits, by name. A rule that is not in `limits` is off."""
    reading = LineVerdicts(tuple((name, limits[name]) for name in LINE_RULES if name in limits))
    rules = tuple(rule for rule in document_rules(reading) if rule.name in limits)
    return Family(
        tuple(rule.at(limits[rule.name]) for rule in rules), partial(_edit, reading=reading), by_line=True
    )


def document_rules(reading: LineVerdicts) -> tuple[Rule, ...]:
    """The rules for whole documents, at their published thresholds."""
    return (
        at_most("c4_lorem_ipsum", 0, lambda batch: batch.once(reading).lorem),
        at_most("c4_curly_brackets", 0, lambda batch: batch.once(reading).curly),
        Rule(
            "c4_too_few_sentences",
            MIN_SENTENCES,
            True,
            lambda batch, limit: batch.once(reading).sentences(limit),
        ),
    )


def sentence_counts(batch: TextBatch) -> np.ndarray:
    """Sentences of each text, at least 1 if there is a word: int64, shape (texts,).

    A sentence ends with a full stop or a similar sign, and the punctuation directly after it.
    """
    words = batch.pieces.words()
    vocabulary = words.vocabulary
    ends = vocabulary.words.is_in(SENTENCE_ENDS).to_numpy()[words.entries]
    marks = vocabulary.words.str.contains(r"^\p{P}+$").to_numpy()[words.entries] | ends
    before = np.concatenate([[0], np.cumsum(ends)])
    plain = np.flatnonzero(~marks)
    text = words.text[plain]
    previous = before[words.first[:-1]][text]  # ends before the previous plain word, or before the text
    same = text[1:] == text[:-1]
    previous[1:][same] = before[plain[:-1]][same]
    opened = np.bincount(text[before[plain] > previous], minlength=len(batch))
    return opened + (np.diff(words.first) > 0)


def _edit(batch: TextBatch, keep: np.ndarray, reading: LineVerdicts) -> Edited:
    return batch.once(reading).edited(keep)


def _stripped(batch: TextBatch, lines: BatchLines) -> tuple[np.ndarray, np.ndarray]:
    """Byte ranges of the lines without the surrounding white space."""
    starts, ends = lines.spans.starts.copy(), lines.spans.starts.copy()
    written = lines.written
    starts[written] = batch.spans.starts[lines.low[written]]
    ends[written] = batch.spans.ends[lines.high[written] - 1]
    return starts, ends


def _line_of(lines: BatchLines, places: np.ndarray) -> np.ndarray:
    return np.searchsorted(lines.spans.starts, places, side="right") - 1


def _short(batch: TextBatch, lines: BatchLines, limit: float) -> np.ndarray:
    """Which lines have too few words. A script without spaces is counted by characters (units.py)."""
    short = lines.high - lines.low < limit
    doubtful = np.flatnonzero(short & lines.written)
    if len(doubtful):
        written = strings(batch.plain, lines.spans.starts[doubtful], lines.spans.ends[doubtful])
        held = np.flatnonzero(holds_units(written))
        if len(held):
            pieces = TextBatch(written.gather(pl.Series(held, dtype=pl.UInt32))).pieces
            short[doubtful[held]] = pieces.count < limit
    return short


def _long_words(batch: TextBatch, lines: BatchLines, limit: float) -> np.ndarray:
    spans, found = batch.spans, np.zeros(len(lines.spans), bool)  # without spaces, a sentence is no long word
    long = np.flatnonzero(spans.ends - spans.starts > limit)
    if len(long):
        wide = character_counts(batch.plain, spans.starts[long], spans.ends[long]) > limit
        wide[wide] = ~holds_units(strings(batch.plain, spans.starts[long[wide]], spans.ends[long[wide]]))
        found[_line_of(lines, spans.starts[long[wide]])] = True
    return found


def _citations(batch: TextBatch) -> tuple[np.ndarray, np.ndarray]:
    buffer = batch.flat.buffer
    opened, closed = np.flatnonzero(buffer == _OPEN), np.flatnonzero(buffer == _CLOSE)
    nearest = np.searchsorted(closed, opened)
    opened, nearest = opened[nearest < len(closed)], nearest[nearest < len(closed)]
    ends = closed[nearest]
    short = ends - opened <= 64  # no citation is longer
    opened, ends = opened[short], ends[short]
    found = strings(buffer, opened + 1, ends).str.contains(CITATION).to_numpy()
    return opened[found], ends[found] + 1


def _ends_well(
    batch: TextBatch, starts: np.ndarray, ends: np.ndarray, cuts: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """Which lines end in `.`, `?`, `!` or a straight quotation mark, but not in an ellipsis, after citations are cut."""
    buffer, last = batch.flat.buffer, ends.copy()
    from_, to = cuts
    for _ in range(64):  # a line may end in several citations
        at = np.searchsorted(to, last)
        cut = at < len(to)
        cut[cut] = to[at[cut]] == last[cut]
        if not cut.any():
            break
        last[cut] = from_[at[cut]]
    inner = last > starts
    final = buffer[np.maximum(last - 1, 0)]
    good = inner & np.isin(final, np.frombuffer(_QUOTES, np.uint8))
    dots = (buffer[np.maximum(last - 2, 0)] == _DOT) & (buffer[np.maximum(last - 3, 0)] == _DOT)
    return good & ~((final == _DOT) & dots & (last - starts >= 3))


def _phrases(
    batch: TextBatch, lines: BatchLines, text: np.ndarray, starts: np.ndarray, ends: np.ndarray
) -> dict[str, np.ndarray]:
    """Which lines contain each kind of phrase. Only lines of texts that contain one are searched."""
    kinds = {"lorem": ["lorem ipsum"], "javascript": ["javascript"], "policy": list(POLICY)}
    words = [word for some in kinds.values() for word in some]
    suspect = batch.texts.str.contains_any(words, ascii_case_insensitive=True).to_numpy()
    rows = np.flatnonzero(suspect[text] & lines.written)
    found = {kind: np.zeros(len(text), bool) for kind in kinds}
    if len(rows):
        some: pl.Series = strings(batch.flat.buffer, starts[rows], ends[rows]).str.to_lowercase()
        for kind, phrases in kinds.items():
            found[kind][rows] = some.str.contains_any(phrases).to_numpy()
    return found
