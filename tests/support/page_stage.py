"""A stage that writes a page as the report does, in no time."""

from __future__ import annotations

from dataclasses import dataclass

from storage.draft import Draft
from storage.settings import Settings, identity

STAGE = "report"
VERSION = 1


class PageConfig(Settings):
    """What is written."""

    text: str = identity("a page", description="what is written")


@dataclass(frozen=True)
class PageInputs:
    """Nothing."""


@dataclass(frozen=True)
class PageStats:
    """Nothing is counted."""


def run(config: PageConfig, inputs: PageInputs, draft: Draft) -> PageStats:
    (draft.path / "report.md").write_text(config.text)
    draft.part("report", "report.md")
    return PageStats()
