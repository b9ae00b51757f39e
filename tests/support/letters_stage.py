"""Small real stages for the tests of the store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.artifact import Input
from storage.draft import Draft
from storage.settings import Count, Settings, execution, identity

STAGE = "letters"
VERSION = 1


class LettersConfig(Settings):
    """How many shards of how many letters."""

    shards: Count = identity(3, description="shards")
    letter: str = identity("a", description="the letter")
    speed: int = execution(1, description="has no effect on bytes")


@dataclass(frozen=True)
class LettersInputs:
    """Nothing, or the letters of another artifact."""

    before: Input | None = None


@dataclass(frozen=True)
class LettersStats:
    """Letters written."""

    letters: int


def make_letters(job: tuple[str, int], directory: Path) -> dict[str, Any]:
    letter, count = job
    (directory / "letters.txt").write_text(letter * count)
    return {"rows": count}


def run(config: LettersConfig, inputs: LettersInputs, draft: Draft) -> LettersStats:
    jobs = {f"{number:05d}": (config.letter, number + 1) for number in range(config.shards)}
    made = draft.shards("letters", jobs, make_letters)
    (draft.path / "summary.json").write_text(f'{{"letter": "{config.letter}"}}')
    (draft.path / "scratch.tmp").write_text("not part of anything")
    (draft.path / "clock.txt").write_text("noon")
    draft.part("summary", "summary.json")
    draft.volatile("clock.txt")
    return LettersStats(sum(stats["rows"] for stats in made.values()))
