"""Stage `filter`: drop documents that published quality rules reject; record the rule and the measured value.

The families of rules are applied in the published order (FineWeb's): language, Gopher's repetition and quality rules,
C4, FineWeb's own; then the education score, and personal data last. C4 removes lines from the text, and personal data
is masked in it: later families and later stages see the edited text.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import polars as pl
import pyarrow as pa
from pyarrow import feather
from pydantic import field_validator, model_validator

from storage.artifact import Input
from storage.draft import Draft
from storage.errors import ConfigError
from storage.settings import Real, Settings, execution, identity
from storage.units import Written, as_path
from tasks.corpus.documents import (
    dropped_table,
    read_column,
    read_documents,
    read_kept,
    write_documents,
    write_dropped,
)
from tasks.corpus.rules import (
    c4,
    education,
    fineweb,
    gopher_quality,
    gopher_repetition,
    language,
    likeness,
    pii,
)
from tasks.corpus.rules.language import MIN_SCORE
from tasks.corpus.rules.lines import even_lines
from tasks.corpus.rules.rule import Family, Rule, TextBatch
from tasks.corpus.shards import PART_FILE, count_by, document_shards
from tasks.corpus.words import batches

STAGE = "filter"
VERSION = 2
COMPONENTS = {
    "language": 3,
    "gopher": 4,
    "c4": 4,
    "fineweb": 4,
    "education": 1,
    "classifier": 2,
    "likeness": 1,
    "pii": 3,
}
"""Versions of the families of rules: one that is raised makes only those corpora again in which it is on."""

_GOPHER = gopher_repetition.RULES + gopher_quality.RULES
_C4_DOCUMENT_RULES = c4.document_rules(c4.LineVerdicts(()))
ANY_LANGUAGE = "any"
_VERDICTS = "verdicts.arrow"
_BATCH_BYTES = 2_000_000
"""Small enough that a batch's arrays stay in a core's cache. Each text is judged on its own, so this value changes no
bytes."""


class FilterConfig(Settings):
    """Which families of rules are applied, each with its published thresholds."""

    language: str = identity(
        "en",
        description="Language to keep, as fastText's lid.176 names it (en, de, fr, ...); any: every language.",
    )
    min_language_score: Real = identity(
        MIN_SCORE,
        ge=0.0,
        le=1.0,
        description="How sure the language model must be, 0 to 1 (FineWeb: 0.65).",
    )
    gopher: bool = identity(
        True,
        description="Gopher's repetition and quality rules (Rae et al. 2021), as datatrove applies them.",
    )
    c4: bool = identity(
        True,
        description="C4's rules (Raffel et al. 2020): lines that are no prose are cut out of the text, citations too.",
    )
    c4_curly_brackets: bool = identity(
        True,
        description="C4 drops documents with a curly bracket: turn it off for code and mathematics.",
    )
    c4_end_punctuation: bool = identity(
        False,
        description="C4 cuts out lines that do not end in punctuation; FineWeb leaves this rule out.",
    )
    fineweb: bool = identity(
        True,
        description="FineWeb's own rules (Penedo et al. 2024) against lists, menus and repeated lines.",
    )
    min_edu_score: Real | None = identity(
        None,
        ge=0.0,
        le=5.0,
        description="Least education score, 0 to 5: the source's own `score` (raw, not rounded; FineWeb-Edu: 3), or the "
        "classifier's; documents with neither are kept. null: not asked.",
    )
    edu_classifier: Annotated[Path | None, Written(as_path)] = execution(
        None,
        description="Directory of a local sequence classifier (transformers, safetensors) that scores documents without "
        "a score of their own; the digest of its files is in the key.",
    )
    pii: Literal["mask", "off"] = identity(
        "mask",
        description="mask: e-mail addresses, public IP addresses and telephone numbers are replaced by placeholders.",
    )
    thresholds: dict[str, Real | None] = identity(
        default_factory=dict,
        description="Other limits than the published ones, by rule as in dropped.parquet; null: the rule is not asked.",
    )

    @field_validator("language", mode="before")
    @classmethod
    def _known_language(cls, value: object) -> object:
        if value is None or value == ANY_LANGUAGE:
            return ANY_LANGUAGE
        if isinstance(value, str) and value not in language.languages():
            near = difflib.get_close_matches(value[:40], language.languages(), 3)
            raise ValueError(
                f"{value[:40]!r} is not a language of the model; write a code such as en, de or zh, or {ANY_LANGUAGE}"
                + (f"; did you mean {' or '.join(near)}?" if near else "")
            )
        return value

    @field_validator("thresholds")
    @classmethod
    def _known_rules(cls, value: dict[str, float | None]) -> dict[str, float | None]:
        names = list(PUBLISHED)
        for name in value:
            if name not in names:
                near = difflib.get_close_matches(name, names, 1)
                raise ValueError(f"no rule is called {name}" + (f"; did you mean {near[0]}?" if near else ""))
        return value

    @model_validator(mode="after")
    def _classifier_is_asked(self) -> FilterConfig:
        if self.edu_classifier is not None and self.min_edu_score is None:
            raise ValueError("edu_classifier has no effect without min_edu_score: set both")
        return self

    def families(self, classifier: Path | None = None) -> tuple[Family, ...]:
        """The families, in the order in which they are applied."""
        asked = []
        if self.language != ANY_LANGUAGE:
            asked.append(language.family(self.language, self.min_language_score))
        if self.gopher:
            asked.append(Family(self._limited(_GOPHER)))
        if self.c4:
            asked.append(c4.family(self._c4_limits()))
        if self.fineweb:
            asked.append(Family(self._limited(fineweb.RULES)))
        if self.min_edu_score is not None:
            asked.append(education.family(self.min_edu_score, classifier))
        if self.pii == "mask":
            asked.append(pii.FAMILY)
        return tuple(asked)

    def rules(self) -> tuple[Rule, ...]:
        """The rules for whole documents, in the order of the families. The order only decides which reason is
        reported."""
        return tuple(rule for family in self.families() for rule in family.rules)

    def _limited(self, rules: Sequence[Rule]) -> tuple[Rule, ...]:
        limits = [(rule, self.thresholds.get(rule.name, rule.limit)) for rule in rules]
        return tuple(rule.at(limit) for rule, limit in limits if limit is not None)

    def _c4_limits(self) -> dict[str, float]:
        limits: dict[str, float | None] = dict(c4.LINE_RULES)
        limits |= {rule.name: rule.limit for rule in _C4_DOCUMENT_RULES}
        if self.c4_end_punctuation:
            limits["c4_lines_without_end_punctuation"] = 0
        if not self.c4_curly_brackets:
            limits["c4_curly_brackets"] = None
        limits |= {name: limit for name, limit in self.thresholds.items() if name in limits}
        return {name: limit for name, limit in limits.items() if limit is not None}


PUBLISHED: dict[str, float | None] = {
    **{rule.name: rule.limit for rule in _GOPHER},
    **c4.LINE_RULES,
    **{rule.name: rule.limit for rule in (*_C4_DOCUMENT_RULES, *fineweb.RULES)},
}
"""Every rule whose limit `thresholds` can change, with its published limit. None: off by default."""


@dataclass(frozen=True)
class FilterInputs:
    """`documents`: of a slice, from `dedup`. `classifier` and `classifier_path`: what `classifier_inputs` returns."""

    documents: Input
    classifier: str | None = None
    classifier_path: Path | None = field(default=None, metadata={"in_key": False})
    likeness: Input | None = field(default=None, metadata={"since": "0.2"})
    least_likeness: float | None = field(default=None, metadata={"since": "0.2"})


def classifier_inputs(config: FilterConfig, home: Path) -> tuple[str | None, Path | None]:
    """The stage's inputs: the digest of the classifier's files (in the key) and their directory (not in the key).

    Raises ConfigError if a file is missing.
    """
    if config.edu_classifier is None:
        return None, None
    found = education.find_classifier(home / config.edu_classifier)
    return found.digest, found.directory


def components(config: FilterConfig, inputs: FilterInputs) -> Iterator[str]:
    """The families that are asked; `classifier` where one scores documents that have no score of their own."""
    yield from families_of(config)
    if inputs.classifier is not None:
        yield "classifier"
    if inputs.likeness is not None:
        yield "likeness"


def families_of(config: FilterConfig) -> Iterator[str]:
    """The families of rules that are on, by their names in `COMPONENTS`."""
    asked = {
        "language": config.language != ANY_LANGUAGE,
        "gopher": config.gopher,
        "c4": config.c4,
        "fineweb": config.fineweb,
        "education": config.min_edu_score is not None,
        "pii": config.pii == "mask",
    }
    return (name for name, on in asked.items() if on)


@dataclass(frozen=True)
class FilterStats:
    """Counts of documents and of bytes of text. Reasons are names of rules.

    `documents_edited`: documents kept with a changed text. bytes_in = bytes_out + bytes_dropped + bytes_cut, where
    bytes_cut is what the edits removed. `edits`: in kept documents, the lines cut by each of C4's rules and the
    placeholders by kind. `documents_without_score`: documents without an education score, among those for which one
    was needed.
    """

    documents_in: int
    documents_out: int
    documents_dropped: int
    bytes_in: int
    bytes_out: int
    dropped_by_reason: dict[str, int]
    documents_edited: int
    bytes_dropped: int
    bytes_cut: int
    edits: dict[str, int]
    documents_without_score: int


def run(config: FilterConfig, inputs: FilterInputs, draft: Draft) -> FilterStats:
    """Parts: documents, dropped. In a dropped row, `value` is what the first failed rule measured, `detail` its limit."""
    if (config.edu_classifier is None) != (inputs.classifier_path is None):
        raise ConfigError(
            "corpus.filter.edu_classifier and the stage's inputs do not name the same classifier"
        )
    like = None
    if inputs.likeness is not None and inputs.least_likeness is not None:
        like = inputs.likeness.only(), inputs.least_likeness
    rules = tuple(rule for family in _families(config, None, like) for rule in family.rules)
    shards = document_shards(inputs.documents)
    jobs = {name: FilterJob(path, config, inputs.classifier_path, like) for name, path in shards.items()}
    made = list(draft.shards("documents", jobs, filter_shard, aside=(_VERDICTS,)).values())
    verdicts = [feather.read_table(draft.path / "documents" / name / _VERDICTS) for name in jobs]
    reasons = [_reasons(table, rules) for table in verdicts]
    dropped = pa.concat_tables([dropped_table([], "", STAGE, ""), *reasons])
    write_dropped(draft.path / "dropped.parquet", dropped)
    draft.part("dropped", "dropped.parquet")
    total = {name: sum(shard[name] for shard in made) for name in _COUNTED}
    edits: Counter[str] = Counter()
    for shard in made:
        edits.update(shard["edits"])
    if total["documents_without_score"] and config.edu_classifier is None:
        draft.warn(
            f"{total['documents_without_score']:,} documents carry no education score and were kept: "
            "corpus.filter.min_edu_score asks the source's own `score`, or a classifier (edu_classifier)."
        )
    return FilterStats(
        documents_dropped=len(dropped),
        bytes_cut=total["bytes_in"] - total["bytes_out"] - total["bytes_dropped"],
        dropped_by_reason=count_by(dropped["reason"].to_numpy(zero_copy_only=False)),
        edits=dict(sorted(edits.items())),
        **total,
    )


_COUNTED = (
    "documents_in",
    "documents_out",
    "bytes_in",
    "bytes_out",
    "bytes_dropped",
    "documents_edited",
    "documents_without_score",
)


@dataclass(frozen=True)
class FilterJob:
    """One file of documents to filter."""

    path: Path
    config: FilterConfig
    classifier: Path | None
    like: tuple[Path, float] | None = None
    """The model of `likeness`, and the least score."""


def _families(
    config: FilterConfig, classifier: Path | None, like: tuple[Path, float] | None
) -> tuple[Family, ...]:
    """The families, with likeness to another source before them all."""
    own = config.families(classifier)
    return own if like is None else (likeness.family(*like), *own)


def filter_shard(job: FilterJob, directory: Path) -> dict[str, Any]:
    """Shard function: writes the kept documents with their edited text.

    Beside them it writes a file about the dropped documents: id, source, number of the first failed rule, and its
    value. The stage merges these files; they are deleted at commit.
    """
    texts = pl.from_arrow(read_column(job.path, "text"))
    scored = job.config.min_edu_score is not None
    meta = pl.from_arrow(read_column(job.path, "meta")) if scored else None
    assert isinstance(texts, pl.Series) and (meta is None or isinstance(meta, pl.Series))
    judged = judge(texts, meta, _families(job.config, job.classifier, job.like))
    keep = judged.failed < 0
    unscored = 0 if meta is None else int(np.isnan(education.own_scores(meta)).sum())
    del meta
    text = judged.texts.to_arrow(compat_level=pl.CompatLevel.oldest())
    write_documents(directory / PART_FILE, read_kept(job.path, keep, text))
    gone = read_documents([job.path], ["id", "source"]).filter(pa.array(~keep))
    gone = gone.append_column("failed", pa.array(judged.failed[~keep]))
    feather.write_feather(gone.append_column("value", pa.array(judged.value[~keep])), directory / _VERDICTS)
    sizes = texts.str.len_bytes().to_numpy().astype(np.int64)
    before = texts.filter(pl.Series(keep))
    return {
        "rows": len(text),
        "documents_in": len(texts),
        "documents_out": len(text),
        "bytes_in": int(sizes.sum()),
        "bytes_out": int(judged.texts.str.len_bytes().sum()),
        "bytes_dropped": int(sizes[~keep].sum()),
        "documents_edited": int((before != judged.texts).sum()),
        "documents_without_score": unscored,
        "edits": judged.edits,
    }


@dataclass(frozen=True)
class Judged:
    """The verdicts on a batch of texts.

    failed: int64, shape (texts,), number of the first rule that the text fails (−1: none). value: float64, shape
    (texts,), what that rule measured (NaN: none). texts: the kept texts after all edits. edits: number of changes, by
    kind.
    """

    failed: np.ndarray
    value: np.ndarray
    texts: pl.Series
    edits: dict[str, int]


def judge(texts: pl.Series, meta: pl.Series | None, families: Sequence[Family]) -> Judged:
    """Apply the families in their order. A family that edits does not see texts that failed before.

    Rules measure texts with even lines (rules/lines.py). A kept text is as it was written, but for the edits.
    """
    failed, value = np.full(len(texts), -1, np.int64), np.full(len(texts), np.nan)
    kept, edits = [texts.clear()], Counter[str]()
    for offset, written in batches(texts, _BATCH_BYTES):
        rows = np.arange(offset, offset + len(written))
        batch = TextBatch(even_lines(written), None if meta is None else meta.slice(offset, len(written)))
        number = 0
        changes: list[tuple[np.ndarray, dict[str, np.ndarray]]] = []
        for family in families:
            for rule in family.rules:
                measured, good = rule.measure(batch)
                now = ~good & (failed[rows] < 0)
                failed[rows[now]], value[rows[now]] = number, measured[now]
                number += 1
            keep = failed[rows] < 0
            if family.edit is not None or keep.sum() < _WORTH_LEAVING_OUT * len(keep):
                kept_meta = None if batch.meta is None else batch.meta.filter(pl.Series(keep))
                if family.edit is not None:
                    seen = (
                        batch if family.by_line or batch.texts is written else TextBatch(written, batch.meta)
                    )
                    change = family.edit(seen, keep)
                    written = change.texts
                    changes.append((rows[keep], change.counts))
                else:
                    written = written.filter(pl.Series(keep))
                rows = rows[keep]
                batch.forget()
                batch = TextBatch(written if family.by_line else even_lines(written), kept_meta)
        batch.forget()
        kept.append(written.filter(pl.Series(failed[rows] < 0)))
        for edited_rows, counts in changes:  # a later family may have dropped some
            edits.update({name: int(each[failed[edited_rows] < 0].sum()) for name, each in counts.items()})
    return Judged(failed, value, pl.concat(kept), dict(edits))


_WORTH_LEAVING_OUT = 0.9


def _reasons(verdicts: pa.Table, rules: Sequence[Rule]) -> pa.Table:
    failed = verdicts["failed"].to_numpy()
    return dropped_table(
        verdicts["id"],
        verdicts["source"],
        STAGE,
        [rules[number].name for number in failed],
        verdicts["value"],
        [rules[number].threshold for number in failed],
    )
