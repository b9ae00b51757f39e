"""One stage of a run as a call: what was asked, for which slice or round, and what became of it.

The DAG asks through `Build`. Who makes stages keeps a `Call` and a `StageRecord` of each, and tells each `Listener` and
`Follower`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from storage.artifact import Artifact
from storage.store import Request

if TYPE_CHECKING:
    from prefect.client.schemas.objects import TaskRun


class Build(Protocol):
    """What the DAG needs of its surroundings: the artifact of a request, found or made."""

    def __call__(
        self, request: Request, *, slice: int | None = None, round: int | None = None, item: str | None = None
    ) -> Artifact:
        """The artifact; `slice`, `round` and `item` only name it for people."""


@dataclass(frozen=True)
class StageRecord:
    """What became of one stage in this run. Counts from 1; round 0 is the base."""

    stage: str
    slice: int | None
    round: int | None
    item: str | None
    key: str
    state: str
    path: str | None
    seconds: float
    documents_in: int | None = None
    documents_out: int | None = None
    tokens: int | None = None


@dataclass
class Call:
    """One stage of this run. A plain object, so that Prefect does not look through it."""

    request: Request
    slice: int | None
    round: int | None
    item: str | None
    state: str = "running"
    seconds: float = 0.0
    artifact: Artifact | None = None
    began: float = 0.0
    """Seconds since 1970."""
    task_run: TaskRun | None = None
    """As the engine knows it: its state changes after the stage has returned."""
    resumed: bool = False
    """An earlier attempt had begun it."""
    error: BaseException | None = None
    differs: bool = False
    """It was forced, and gave other bytes than before."""

    @property
    def name(self) -> str:
        """`tokenize · slice 7`."""
        return " · ".join([self.request.stage, *named(self.slice, self.round, self.item)])

    @property
    def label(self) -> str:
        """`tokenize · slice 7 · 3f9a2c`."""
        return f"{self.name} · {self.request.key[:6]}"


def named(slice: int | None, round: int | None, item: str | None) -> list[str]:
    """Which one of a run's stages of one kind: `slice 7`; `round 1`, `400M`."""
    words = [f"slice {slice}" if slice else None, f"round {round}" if round is not None else None, item]
    return [word for word in words if word]


class Listener(Protocol):
    """What is told of stages: `begin`, then `end` or `failed`."""

    def __call__(self, event: str, call: Call, artifact: Artifact | None) -> None:
        """Must return at once."""


class Follower(Protocol):
    """What is told how far a stage is; `note` is what it waits for."""

    def __call__(self, call: Call, done: int, total: int | None, unit: str, note: str = "") -> None:
        """Must return at once; may be called often."""
