"""Steps whose loss or gradient is not finite: passed over at once, and for good where several come in a row.

A bad step changes no weight, so five in a row are found with the weights of the step before them. They are written to
`recovery.json`, rows and all; training goes back to the newest whole checkpoint and comes again to where it was, but
passes the recorded steps over without computing them. If the steps after them are bad too, or there are none to show
that the model still works, it ends.

What must stay true: no result depends on the checkpoint that was gone back to. Replay repeats the same bits, what
happens at a step is a function of the steps before it, and the record is durable before anything is undone: a kill
between the two, or a second way back, finds the same steps and the same rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from storage.errors import DamagedArtifact
from tasks.training.state.checkpoint import write_json

BAD_STEPS_IN_A_ROW: Final = 5
"""Bad steps after which training goes back; twice as many end it."""
MOST_ROLLBACKS: Final = 3
"""In one segment: what goes wrong more often is no accident of a few documents."""
RECORD = "recovery.json"
"""In the work directory."""

JournalRow = Mapping[str, Any]
"""A line of the journal."""


@dataclass(frozen=True)
class Recovery:
    """The rows of the steps that are never computed again, in groups: one for each time that training went back."""

    groups: tuple[tuple[JournalRow, ...], ...] = ()

    @classmethod
    def of(cls, groups: Sequence[Sequence[JournalRow]]) -> Recovery:
        """From plain JSON."""
        return cls(tuple(tuple(rows) for rows in groups))

    def row(self, step: int) -> JournalRow | None:
        """The recorded row of a step, where it is one of them."""
        return next((row for row in self._rows() if row["step"] == step), None)

    @property
    def rollbacks(self) -> int:
        """How often training went back."""
        return len(self.groups)

    @property
    def stretches(self) -> list[list[int]]:
        """First and last step of each group."""
        return [[group[0]["step"], group[-1]["step"]] for group in self.groups]

    def _rows(self) -> Iterator[JournalRow]:
        for group in self.groups:
            yield from group


def read_recovery(work: Path) -> Recovery:
    """The record in this work directory; an empty one where there is none. Raises DamagedArtifact."""
    try:
        return Recovery.of(json.loads((work / RECORD).read_text(encoding="utf-8"))["groups"])
    except FileNotFoundError:
        return Recovery()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedArtifact(
            f"{work / RECORD} is not what was written ({error}). Without it the bad steps are computed once more: remove "
            "it, and start again."
        ) from error


def record(work: Path, known: Recovery, rows: Sequence[JournalRow]) -> None:
    """Make it durable that these steps are never to be computed again."""
    write_json(work / RECORD, {"format": 1, "groups": [*map(list, known.groups), list(rows)]})
