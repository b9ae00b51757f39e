"""Started again by torchrun: what that can cure, and what it must not try.

When one process leaves with a code other than 0, or is killed, torchrun starts all of them again, a few times at most;
they go on from the newest checkpoint. A failure that would come again (a wrong configuration, a damaged shard, bad
steps) is written down beside the specification, under torchrun's name for the run: whoever is started again finds it
and leaves with the same words, before anything is loaded. Standard library only.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from storage.errors import StageFailed

MARKER = "failed-"
"""How the files' names begin that say why a run is not to be started again."""


class LostOthers(StageFailed):
    """Another process is gone. Started again together, they can go on from the newest checkpoint."""


def is_lost_connection(error: Exception) -> bool:
    """Whether a backend says so by itself, amid a pass through weights that are shared out."""
    return isinstance(error, RuntimeError) and any(name in str(error) for name in ("gloo", "NCCL", "by peer"))


def reason_of(error: Exception) -> str:
    """A backend's own words, without the place in its sources and its advice."""
    first = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return re.sub(r"^\[\S+\] ", "", first).split(" This is typically", 1)[0].rstrip(".")[:200]


@dataclass(frozen=True)
class TorchrunStart:
    """One of torchrun's starts of all processes: the first is number 0, the last `most`."""

    marker: Path | None
    number: int = 0
    most: int = 0

    @classmethod
    def of(cls, spec: Path, environment: Mapping[str, str]) -> TorchrunStart:
        """As torchrun's environment says; without torchrun the only one."""
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
        """Why an earlier attempt failed for good."""
        if self.marker is None or self.number == 0:
            return None
        with contextlib.suppress(OSError):
            return self.marker.read_text(encoding="utf-8")
        return None

    def fail(self, message: str) -> None:
        """No further attempt: this failure would come again. The first process to say so is believed."""
        if self.marker is None or self.number == self.most:
            return
        # where it cannot be written, the failure comes again and is said again
        with contextlib.suppress(OSError), self.marker.open("x", encoding="utf-8") as file:
            file.write(message)

    def words(self, error: Exception) -> str:
        """What to say of the others' end."""
        if self.number < self.most:
            return (
                f"warning: {error} All processes are started again ({self.number + 1} of {self.most} times)."
            )
        return f"error: {error}"
