"""Steps whose loss or gradient is not finite: skipped at once, and recorded if several come in a row.

A bad step changes no weight, so five bad steps in a row all use the weights of the step before them. Their rows are
written to `recovery.json`. Training then goes back to the newest whole checkpoint and repeats its way, but passes
over the recorded steps without computing them. Training ends if the steps after them are bad too, or if no step is
left to show that the model still works.

What must stay true: no result depends on which checkpoint training went back to. Replay repeats the same bits, and
a step is a function of the steps before it. The record is durable before anything is undone: after a kill in
between, or a second rollback, the same steps and rows are found.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from storage.errors import DamagedArtifact
from tasks.training.state.sealed import read_sealed, write_sealed

BAD_STEPS_IN_A_ROW: Final = 5
"""Bad steps in a row after which training goes back. Twice as many end it."""
MOST_ROLLBACKS: Final = 3
"""Most rollbacks in one segment. More would not be an accident of a few documents."""
RECORD = "recovery.json"
"""File in the work directory."""

JournalRow = Mapping[str, Any]
"""A line of the journal."""


@dataclass(frozen=True)
class Recovery:
    """The rows of steps that are never computed again, in groups: one group for each rollback."""

    groups: tuple[tuple[JournalRow, ...], ...] = ()

    @classmethod
    def of(cls, groups: Sequence[Sequence[JournalRow]]) -> Recovery:
        """From plain JSON."""
        return cls(tuple(tuple(rows) for rows in groups))

    def row(self, step: int) -> JournalRow | None:
        """The recorded row of a step, or None."""
        return next((row for row in self._rows() if row["step"] == step), None)

    @property
    def rollbacks(self) -> int:
        """How often training went back to a checkpoint."""
        return len(self.groups)

    @property
    def stretches(self) -> list[list[int]]:
        """First and last step of each group."""
        return [[group[0]["step"], group[-1]["step"]] for group in self.groups]

    def _rows(self) -> Iterator[JournalRow]:
        for group in self.groups:
            yield from group


def read_recovery(work: Path) -> Recovery:
    """The record in this work directory; empty if the file does not exist. Raises DamagedArtifact."""
    try:
        return Recovery.of(read_sealed(work / RECORD)["groups"])
    except FileNotFoundError:
        return Recovery()
    except (KeyError, TypeError) as error:
        raise DamagedArtifact(f"{work / RECORD} is not what was written ({error}).") from error


def record(work: Path, known: Recovery, rows: Sequence[JournalRow]) -> None:
    """Durably record that these steps must never be computed again."""
    write_sealed(work / RECORD, {"format": 1, "groups": [*map(list, known.groups), list(rows)]})
