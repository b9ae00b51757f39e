"""A real stage that reports, one unit at a time, for as long as a file `go` is missing beside the store; then it is made,
or fails where the configuration says so."""

from __future__ import annotations

import time
from dataclasses import dataclass

from storage.artifact import Input
from storage.draft import Draft
from storage.errors import StageFailed
from storage.settings import Settings, execution, identity

STAGE = "slow"
VERSION = 1


class SlowConfig(Settings):
    """What decides the bytes, and what is waited for."""

    letter: str = identity("a", description="what is written")
    fails: str = execution("", description="what it fails with")
    total: int = execution(1000, description="units")


@dataclass(frozen=True)
class SlowInputs:
    """Nothing, or what another one wrote."""

    before: Input | None = None


@dataclass(frozen=True)
class SlowStats:
    """As a stage of the corpus counts."""

    documents_in: int
    documents_out: int


def run(config: SlowConfig, inputs: SlowInputs, draft: Draft) -> SlowStats:
    go = draft.path.parents[2] / "go"
    done = 0
    while not go.exists():
        done = min(done + 1, config.total)
        draft.progress(done, config.total, "documents")
        time.sleep(0.01)
    if config.fails:
        raise StageFailed(config.fails)
    (draft.path / "letter.txt").write_text(config.letter)
    draft.part("letter", "letter.txt")
    return SlowStats(3, 2)
