"""What a run has made, as the pages ask for it. The DAG's own dataclasses have these attributes (`flows/dag/state.py`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from storage.artifact import Artifact


class MadeSlice(Protocol):
    """One slice of one source, with its artifacts by stage. `number` counts from 1."""

    @property
    def number(self) -> int: ...
    @property
    def source(self) -> str: ...
    @property
    def artifacts(self) -> Mapping[str, Artifact]: ...


class MadeModel(Protocol):
    """A model, its `tokens` seen, its scores by benchmark, perplexity by source, and segments, oldest first."""

    @property
    def name(self) -> str: ...
    @property
    def tokens(self) -> int: ...
    @property
    def export(self) -> Artifact: ...
    @property
    def scores(self) -> Mapping[str, Artifact]: ...
    @property
    def perplexity(self) -> Mapping[str, Artifact]: ...
    @property
    def samples(self) -> Artifact | None: ...
    @property
    def journals(self) -> Sequence[Artifact]: ...


class MadeRun(Protocol):
    """A run: its models, the base first; models between them; what was read and packed, oldest first; benchmarks counted
    afterwards.
    """

    @property
    def models(self) -> Sequence[MadeModel]: ...
    @property
    def merged(self) -> Sequence[MadeModel]: ...
    @property
    def slices(self) -> Sequence[MadeSlice]: ...
    @property
    def packed(self) -> Sequence[Artifact]: ...
    @property
    def counted(self) -> Mapping[str, Artifact]: ...
