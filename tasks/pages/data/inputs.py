"""The data page's inputs: its configuration, and the stages' parts and statistics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from storage.artifact import Input
from storage.settings import Count, Settings, identity
from tasks.corpus.filter import FilterConfig


class DataConfig(Settings):
    """What to show of a corpus, and how much of it."""

    seed: int = identity(0, description="Seed of what is drawn.")
    filter: FilterConfig = identity(FilterConfig(), description="The filter whose rules are measured again.")
    reasons: int = identity(8, ge=0, le=100, description="Reasons for dropping that are shown with examples.")
    examples: int = identity(2, ge=1, le=20, description="Examples of each of them.")
    pairs: int = identity(3, ge=0, le=20, description="Near-duplicates that are shown beside what was kept.")
    rules: int = identity(8, ge=0, le=40, description="Rules of the filter whose values are shown.")
    length_bytes: Count = identity(
        256_000_000,
        ge=1,
        description="Documents of which lengths are counted, in bytes of their files; evenly over all.",
    )
    score_bytes: Count = identity(
        3_000_000, ge=1, description="Text that the filter's rules measure again, in bytes."
    )


@dataclass(frozen=True, kw_only=True)
class StageParts:
    """One stage's results for one slice: its statistics, and the parts that the page reads."""

    stats: Mapping[str, Any]
    dropped: Input | None = None
    documents: Input | None = None
    holdout: Input | None = None
    hits: Input | None = None
    tokens: Input | None = None
    samples: Input | None = None


@dataclass(frozen=True)
class SliceParts:
    """One slice: the results of each of its stages."""

    number: int
    source: str
    stages: Mapping[str, StageParts]


@dataclass(frozen=True)
class DataPack:
    """The statistics of one round of packing."""

    round: int
    stats: Mapping[str, Any]


@dataclass(frozen=True)
class LikenessParts:
    """A model of `likeness`: its statistics, and documents near the limit."""

    stats: Mapping[str, Any]
    examples: Input


@dataclass(frozen=True)
class DataInputs:
    """slices: in order; packs: oldest first; counted: parts `hits` of `contamination`."""

    slices: tuple[SliceParts, ...]
    packs: tuple[DataPack, ...] = ()
    counted: tuple[Input, ...] = ()
    likeness: tuple[LikenessParts, ...] = field(default=(), metadata={"since": "0.2"})
