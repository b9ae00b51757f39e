"""The ledger of documents and tokens, from the stages' own statistics. The report and the data page share it.

    documents  in = out + dropped + held out           text  in = out + dropped + held out + edited away

`ledger_of` follows documents and bytes of text through the stages and lists what does not add up. `round_of` and
`sources_of` follow tokens into the rounds of packing. `hits_of` sums the benchmark questions found in the text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from storage.artifact import Input

# ---- documents and text -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Amounts:
    """Documents, bytes and tokens at one stage, of one slice or summed. None: the stage does not count it.

    `bytes_…` are as the stage reports them; ingest reports those of its files. `text_…` are bytes of UTF-8 text;
    for what ingest drops, no size is known. `text_edited` is negative if placeholders are longer than what they
    replace.
    """

    stage: str
    documents_in: int = 0
    documents_out: int = 0
    documents_dropped: int = 0
    documents_held_out: int | None = None
    bytes_in: int | None = None
    bytes_out: int | None = None
    text_in: int | None = None
    text_out: int | None = None
    text_dropped: int | None = None
    text_held_out: int | None = None
    text_edited: int | None = None
    tokens: int | None = None
    reasons: Mapping[str, int] = field(default_factory=dict)
    """Dropped documents by reason."""
    edits: Mapping[str, int] = field(default_factory=dict)
    """Edits of kept documents, by rule."""

    @property
    def left(self) -> int:
        """Documents that do not go on to the next stage."""
        return self.documents_dropped + (self.documents_held_out or 0)

    @property
    def text_accounted(self) -> int:
        """Text in bytes that was output, dropped, held out or edited away."""
        return sum(
            value or 0 for value in (self.text_out, self.text_dropped, self.text_held_out, self.text_edited)
        )


_SUMMED = tuple(name for name in Amounts.__dataclass_fields__ if name not in ("stage", "reasons", "edits"))


def amounts_of(stage: str, stats: Mapping[str, Any]) -> Amounts:
    """The ledger's part of a stage's statistics."""

    def count(name: str) -> int | None:
        return None if stats.get(name) is None else int(stats[name])

    came, out = count("bytes_in"), count("bytes_out")
    found = Amounts(
        stage=stage,
        documents_in=count("documents_in") or 0,
        documents_out=count("documents_out") or 0,
        documents_dropped=count("documents_dropped") or 0,
        documents_held_out=count("documents_held_out"),
        bytes_in=came,
        bytes_out=out,
        text_out=came if out is None else out,
        tokens=count("tokens"),
        reasons={name: int(value) for name, value in stats.get("dropped_by_reason", {}).items()},
        edits=_edits(stats),
    )
    if stage in ("extract", "ingest") or came is None or found.text_out is None:
        return found
    held = count("bytes_held_out") or 0
    edited = count("bytes_cut" if "bytes_cut" in stats else "bytes_removed") or 0
    dropped = count("bytes_dropped")
    rest = came - found.text_out - held - edited
    return replace(
        found,
        text_in=came,
        text_dropped=rest if dropped is None else dropped,
        text_held_out=held,
        text_edited=edited,
    )


def _edits(stats: Mapping[str, Any]) -> dict[str, int]:
    edits = {name: int(count) for name, count in stats.get("edits", {}).items()}
    return edits | ({"repeated_lines": int(stats["lines_removed"])} if stats.get("lines_removed") else {})


@dataclass(frozen=True)
class Entry:
    """What one stage did with one slice."""

    slice: int
    source: str
    amounts: Amounts


@dataclass(frozen=True)
class Journey:
    """The documents of one source through the stages, summed over its slices."""

    source: str
    slices: int
    stages: tuple[Amounts, ...]


@dataclass(frozen=True)
class Ledger:
    """Every source through the stages, their sums, and what does not add up."""

    sources: tuple[Journey, ...] = ()
    stages: tuple[Amounts, ...] = ()
    document_problems: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    """Problems of documents and of text."""


def ledger_of(entries: Iterable[Entry]) -> Ledger:
    """The ledger of all slices. Entries must come slice by slice, and within a slice in the order of the stages."""
    sources: dict[str, dict[str, Amounts]] = {}
    slices: dict[str, set[int]] = {}
    total: dict[str, Amounts] = {}
    before: dict[tuple[int, str], Amounts] = {}
    of_documents: list[str] = []
    problems: list[str] = []
    for entry in entries:
        own, last = entry.amounts, before.get((entry.slice, entry.source))
        place = f"{own.stage}, slice {entry.slice} ({entry.source})"
        found = _document_problems(place, own, last)
        of_documents += found
        problems += found + _text_problems(place, own, last)
        before[entry.slice, entry.source] = own
        slices.setdefault(entry.source, set()).add(entry.slice)
        for rows in (sources.setdefault(entry.source, {}), total):
            rows[own.stage] = _sum(rows[own.stage], own) if own.stage in rows else own
    journeys = tuple(Journey(name, len(slices[name]), tuple(rows.values())) for name, rows in sources.items())
    stages = sorted(total.values(), key=lambda own: own.stage != "extract")  # not all sources have it
    return Ledger(journeys, tuple(stages), tuple(of_documents), tuple(problems))


def _sum(one: Amounts, other: Amounts) -> Amounts:
    sums: dict[str, Any] = {
        name: (getattr(one, name) or 0) + (getattr(other, name) or 0)
        for name in _SUMMED
        if (getattr(one, name), getattr(other, name)) != (None, None)
    }
    return replace(
        one, **sums, reasons=_together(one.reasons, other.reasons), edits=_together(one.edits, other.edits)
    )


def _together(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return dict(one) | {name: one.get(name, 0) + count for name, count in other.items()}


def _document_problems(place: str, own: Amounts, before: Amounts | None) -> list[str]:
    found = []
    came = own.documents_in
    if came != own.documents_out + own.left:
        found.append(
            f"{place}: {came} documents in, but {own.documents_out} out and {own.left} dropped or held out"
        )
    # a shelf of documents may be read in several slices
    if before is not None and before.stage != "extract" and before.documents_out != came:
        found.append(f"{place}: {came} documents in, but the stage before gave {before.documents_out}")
    return found


def _text_problems(place: str, own: Amounts, before: Amounts | None) -> list[str]:
    came = own.text_in
    if came is None:
        return []
    found = []
    if came != own.text_accounted:
        found.append(
            f"{place}: {came} bytes of text in, but {own.text_accounted} out, dropped, held out or edited"
        )
    if before is not None and before.text_out is not None and before.text_out != came:
        found.append(f"{place}: {came} bytes of text in, but the stage before gave {before.text_out}")
    return found


# ---- tokens -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SourceTokens:
    """The tokens of one source in one round of packing. None: an older `pack` did not report it."""

    source: str
    tokens: int
    """Tokens packed in this round."""
    epochs: float | None
    """How often the source's text was read by the end of the round."""
    tokens_available: int | None
    tokens_placed: int | None
    tokens_carried: int | None
    tokens_not_taken: int | None
    tokens_repeated: int | None


@dataclass(frozen=True, kw_only=True)
class PackedRound:
    """One round of packing: its sequences, padding, cut documents, and the tokens of each source."""

    round: int
    sequences: int
    tokens: int
    padding: int
    padding_fraction: float
    documents_whole: int
    documents_cut: int
    concatenation_cuts: int
    """Documents that are whole here but that concatenate-and-cut would cut, over the same windows."""
    sources: tuple[SourceTokens, ...]

    @property
    def documents(self) -> int:
        """Documents of the round, at least 1."""
        return max(self.documents_whole + self.documents_cut, 1)

    @property
    def sequence_length(self) -> int:
        """Tokens, with padding, of a sequence."""
        return (self.tokens + self.padding) // max(self.sequences, 1)

    @property
    def concatenation_cut(self) -> int:
        """Documents that concatenate-and-cut would cut: those cut here, because they are longer than a sequence,
        and more.
        """
        return self.documents_cut + self.concatenation_cuts


def round_of(number: int, stats: Mapping[str, Any]) -> PackedRound:
    """A round from the statistics of its `pack`."""
    states = ("epochs", *LEDGER)
    return PackedRound(
        round=number,
        sequences=int(stats["sequences"]),
        tokens=int(stats["tokens"]),
        padding=int(stats["padding"]),
        padding_fraction=stats["padding_fraction"],
        documents_whole=int(stats["documents_whole"]),
        documents_cut=int(stats["documents_cut"]),
        concatenation_cuts=int(stats.get("concatenation_cuts", 0)),
        sources=tuple(
            SourceTokens(
                source=name, tokens=int(one["tokens"]), **{state: one.get(state) for state in states}
            )
            for name, one in stats["sources"].items()
        ),
    )


LEDGER = ("tokens_available", "tokens_placed", "tokens_carried", "tokens_not_taken", "tokens_repeated")
"""What `pack` reports for each source, besides epochs."""


def sources_of(rounds: Sequence[PackedRound]) -> list[tuple[SourceTokens, list[tuple[int, int]]]]:
    """Each source with its latest reported values, and its tokens as (round, tokens)."""
    found: dict[str, tuple[SourceTokens, list[tuple[int, int]]]] = {}
    for one in rounds:
        for own in one.sources:
            before, packed = found.get(own.source, (own, []))
            stated = {name: value for name, value in vars(own).items() if value is not None}
            found[own.source] = (replace(before, **stated), [*packed, (one.round, own.tokens)])
    return list(found.values())


# ---- benchmarks in the text ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class BenchmarkHits:
    """How many of a benchmark's questions were found, in the slices of one source or in all."""

    benchmark: str
    source: str
    questions: int
    indexed: int
    """Questions that are long enough to be searched for."""
    unchecked: int
    """Questions that were not searched for."""
    questions_found: int = 0
    documents_found: int = 0
    afterwards: bool = False
    """Counted after the corpus was made: what was found is still in it."""


def hits_of(parts: Iterable[tuple[str, Input]], *, afterwards: bool = False) -> tuple[BenchmarkHits, ...]:
    """The parts `hits`, summed by benchmark and by the name given with each part."""
    rows: dict[tuple[str, str], BenchmarkHits] = {}
    for source, part in parts:
        entries: dict[str, Any] = json.loads(part.only().read_bytes())
        for name, entry in entries.items() if afterwards else sorted(entries.items()):
            last = rows.get((name, source))
            rows[name, source] = BenchmarkHits(
                benchmark=name,
                source=source,
                questions=int(entry["questions"]),
                indexed=int(entry["indexed"]),
                unchecked=int(entry["unchecked"]),
                questions_found=int(entry["questions_found"]) + (last.questions_found if last else 0),
                documents_found=int(entry["documents_found"]) + (last.documents_found if last else 0),
                afterwards=afterwards,
            )
    return tuple(rows.values())
