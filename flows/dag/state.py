"""State that the DAG carries from step to step: slices read, models made, the state of training, and the outcome."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from storage.artifact import Artifact, Input
from storage.errors import StageFailed, said


@dataclass(frozen=True)
class Slice:
    """One slice of one source, with the artifacts made so far."""

    number: int
    source: str
    artifacts: Mapping[str, Artifact]

    @property
    def tokens(self) -> Input:
        """Its token shards."""
        return self.artifacts["tokenize"].part("tokens")


@dataclass
class Model:
    """A model of the run: the base, or the model of a budget. `scores` and `perplexity` are filled as results arrive."""

    name: str
    tokens: int
    export: Artifact
    round: int
    scores: dict[str, Artifact] = field(default_factory=dict)
    perplexity: dict[str, Artifact] = field(default_factory=dict)
    samples: Artifact | None = None
    """Its continuations of the run's prompts."""
    journals: list[Artifact] = field(default_factory=list)
    """Journals of the training segments that made the model, oldest first."""


@dataclass
class Outcome:
    """The results of a run."""

    models: list[Model] = field(default_factory=list)
    slices: list[Slice] = field(default_factory=list)
    """All slices read, in order. Filled along the way."""
    packed: list[Artifact] = field(default_factory=list)
    counted: dict[str, Artifact] = field(default_factory=dict)
    """For each benchmark that decontamination did not look for: how much of it is in the corpus."""
    data: Artifact | None = None
    """The page about the data."""
    report: Artifact | None = None
    between: list[Model] = field(default_factory=list)
    """Checkpoints that trunks kept, if they are to be measured too, named by tokens: `500M trunk`."""
    merged: list[Model] = field(default_factory=list)
    """Models of weights between models (tasks/models/merge.py), and the chat model that one of them is made of."""
    failed: dict[str, Exception] = field(default_factory=dict)
    """Failed measures by name, such as `arc_easy of 400M`. Each fails alone."""

    def settle(self) -> None:
        """Raise the failures: a single error itself, or StageFailed that lists several."""
        errors = list(self.failed.values())
        if len(errors) > 1:
            words = "; ".join(f"{name}: {said(error)}" for name, error in self.failed.items())
            again = all(isinstance(error, OSError) or getattr(error, "passing", None) for error in errors)
            raise StageFailed(
                f"{len(errors)} measures failed, all others are kept: {words}", passing=again
            ) from errors[0]
        if errors:
            raise errors[0]


@dataclass(frozen=True)
class TrainingState:
    """The state of training: the part it continues from, manifests so far, state of packing, tokens that round 0 took."""

    start: Input
    tokenizer: Input
    manifests: tuple[Input, ...] = ()
    state: Input | None = None
    trunks: tuple[Artifact, ...] = ()
    taken: Mapping[str, int] = field(default_factory=dict)
    base: Input | None = None
    """The base model's export. Weights may be pulled towards it."""
    readers: Input | None = None
    """What exports say for other readers than this project's, if the base has such a part."""
