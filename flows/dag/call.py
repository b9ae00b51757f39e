"""One stage of a run as a call: the request, its slice or round, and the result.

The DAG requests artifacts through `Build`. The code that makes stages keeps a `Call` and a `StageRecord` of each, and
informs each `Listener` and `Follower`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from storage.artifact import Artifact
from storage.store import Request

if TYPE_CHECKING:
    from prefect.client.schemas.objects import TaskRun


class Build(Protocol):
    """What the DAG needs from its caller: a function that finds or makes the artifact of a request."""

    def __call__(
        self, request: Request, *, slice: int | None = None, round: int | None = None, item: str | None = None
    ) -> Artifact:
        """Returns the artifact. `slice`, `round` and `item` only name it for people."""


@dataclass(frozen=True)
class StageRecord:
    """The result of one stage in this run. Slices and rounds count from 1; round 0 is the base."""

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
    """One stage of this run. This is a plain object, so Prefect does not look inside it."""

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
    """The task run in Prefect's engine. Its state changes after the stage has returned."""
    resumed: bool = False
    """Whether an earlier attempt had begun this stage."""
    error: BaseException | None = None
    differs: bool = False
    """Whether the stage was forced and gave other bytes than before."""

    @property
    def name(self) -> str:
        """`tokenize · slice 7`."""
        return " · ".join([self.request.stage, *named(self.slice, self.round, self.item)])

    @property
    def label(self) -> str:
        """`tokenize · slice 7 · 3f9a2c`."""
        return f"{self.name} · {self.request.key[:6]}"


def named(slice: int | None, round: int | None, item: str | None) -> list[str]:
    """Distinguishes the stages of one kind in a run: `slice 7`; `round 1`, `400M`."""
    words = [f"slice {slice}" if slice else None, f"round {round}" if round is not None else None, item]
    return [word for word in words if word]


class Listener(Protocol):
    """Is informed about stages: `begin`, then `end` or `failed`."""

    def __call__(self, event: str, call: Call, artifact: Artifact | None) -> None:
        """Called at each event. Must return at once."""


class Follower(Protocol):
    """Is informed about a stage's progress. `note` says what the stage waits for."""

    def __call__(self, call: Call, done: int, total: int | None, unit: str, note: str = "") -> None:
        """Called often. Must return at once."""
