"""Restarts by torchrun: which failures they can cure, and which must not be tried again.

If one process is killed or leaves with a code other than 0, torchrun restarts all of them, a few times at most.
They go on from the newest checkpoint. A failure that would come again (a wrong configuration, a damaged shard, bad
steps) is written to a file beside the specification, under torchrun's name for the run. A restarted process finds
the file and leaves with the same message before it loads anything. Standard library only.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from storage.errors import StageFailed

MARKER = "failed-"
"""Prefix of the files that say why a run must not be restarted."""


class LostOthers(StageFailed):
    """Another process is gone. After a common restart, all can go on from the newest checkpoint."""


def is_lost_connection(error: Exception) -> bool:
    """Whether this is a backend's own error for a lost connection, raised in a pass through sharded weights."""
    return isinstance(error, RuntimeError) and any(name in str(error) for name in ("gloo", "NCCL", "by peer"))


def reason_of(error: Exception) -> str:
    """A backend's message without its source location and its advice."""
    first = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return re.sub(r"^\[\S+\] ", "", first).split(" This is typically", 1)[0].rstrip(".")[:200]


@dataclass(frozen=True)
class TorchrunStart:
    """One of torchrun's starts of all processes. The first is number 0, the last is number `most`."""

    marker: Path | None
    number: int = 0
    most: int = 0

    @classmethod
    def of(cls, spec: Path, environment: Mapping[str, str]) -> TorchrunStart:
        """Read it from torchrun's environment. Without torchrun it is the only start."""
        run = environment.get("TORCHELASTIC_RUN_ID")
        if run is None:
            return cls(None)
        number = int(environment.get("TORCHELASTIC_RESTART_COUNT", "0"))
        name = "".join(letter if letter.isalnum() else "-" for letter in run)
        return cls(
            spec.parent / f"{MARKER}{name}", number, int(environment.get("TORCHELASTIC_MAX_RESTARTS", "0"))
        )

    @property
    def launched(self) -> bool:
        """Whether torchrun started this process."""
        return self.marker is not None

    def failed_before(self) -> str | None:
        """Why an earlier start failed for good, or None."""
        if self.marker is None or self.number == 0:
            return None
        with contextlib.suppress(OSError):
            return self.marker.read_text(encoding="utf-8")
        return None

    def fail(self, message: str) -> None:
        """Prevent further starts, because this failure would come again. The message of the first process wins."""
        if self.marker is None or self.number == self.most:
            return
        # if it cannot be written, the next start fails and reports again
        with contextlib.suppress(OSError), self.marker.open("x", encoding="utf-8") as file:
            file.write(message)

    def words(self, error: Exception) -> str:
        """The message for the loss of another process."""
        if self.number < self.most:
            return (
                f"warning: {error} All processes are started again ({self.number + 1} of {self.most} times)."
            )
        return f"error: {error}"
