"""What the DAG carries from step to step: slices read, models made, where training stands, and what a run came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from storage.artifact import Artifact, Input
from storage.errors import StageFailed, said


@dataclass(frozen=True)
class Slice:
    """One slice of one source, as far as it was made."""

    number: int
    source: str
    artifacts: Mapping[str, Artifact]

    @property
    def tokens(self) -> Input:
        """Its token shards."""
        return self.artifacts["tokenize"].part("tokens")


@dataclass
class Model:
    """A model of the run: the base, or what a budget made of it. `scores` and `perplexity` as they come in."""

    name: str
    tokens: int
    export: Artifact
    round: int
    scores: dict[str, Artifact] = field(default_factory=dict)
    perplexity: dict[str, Artifact] = field(default_factory=dict)
    samples: Artifact | None = None
    """What it writes after the run's prompts."""
    journals: list[Artifact] = field(default_factory=list)
    """Of the training segments that made it, oldest first."""


@dataclass
class Outcome:
    """What a run came to."""

    models: list[Model] = field(default_factory=list)
    slices: list[Slice] = field(default_factory=list)
    """All that was read, in order; filled on the way."""
    packed: list[Artifact] = field(default_factory=list)
    counted: dict[str, Artifact] = field(default_factory=dict)
    """Of each benchmark that was not looked for when the corpus was made, how much of it stands there."""
    data: Artifact | None = None
    """The page that says what was done to the data."""
    report: Artifact | None = None
    between: list[Model] = field(default_factory=list)
    """Checkpoints that trunks kept on their way, where they are to be measured too, by tokens: `500M trunk`."""
    failed: dict[str, Exception] = field(default_factory=dict)
    """Measures that failed, each alone: `arc_easy of 400M` and why."""

    def settle(self) -> None:
        """Raise what failed: the error itself where it is one, StageFailed with all of them where they are several."""
        errors = list(self.failed.values())
        if len(errors) > 1:
            words = "; ".join(f"{name}: {said(error)}" for name, error in self.failed.items())
            raise StageFailed(f"{len(errors)} measures failed, all others are kept: {words}") from errors[0]
        if errors:
            raise errors[0]


@dataclass(frozen=True)
class TrainingState:
    """Where training stands: the part it goes on from, the manifests so far, the packing's state, tokens taken before."""

    start: Input
    tokenizer: Input
    manifests: tuple[Input, ...] = ()
    state: Input | None = None
    trunks: tuple[Artifact, ...] = ()
    taken: Mapping[str, int] = field(default_factory=dict)
    base: Input | None = None
    """The base model's export, which weights may be pulled to."""
