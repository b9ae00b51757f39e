"""The report's order: from what a reader wants to know first to what stands behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tasks.pages.blocks import Block, Heading, Picture, Place, Text
from tasks.pages.report.corpus import contamination, data, packing
from tasks.pages.report.models import models, samples
from tasks.pages.report.results import benchmarks, every_metric, forgetting, gain, perplexity, sureness

Json = dict[str, Any]
COST = Place("cost")
"""Where the page says what it cost, once it is published."""


def blocks_of(facts: Json, figures: Sequence[Json], first: Sequence[Block] = ()) -> list[Block]:
    """The page, from top to bottom; `first` stands above the results."""
    blocks: list[Block] = [Heading(1, _title(facts)), Text(" ".join(facts["findings"]), "findings"), *first]
    blocks += perplexity(facts) + benchmarks(facts)
    if figures:
        blocks.append(Heading(2, "Along the way"))
        blocks += [Picture(figure["name"], figure["caption"]) for figure in figures]
    blocks += forgetting(facts) + gain(facts)
    blocks.append(COST)
    blocks += samples(facts) + sureness(facts)
    blocks += data(facts) + contamination(facts) + packing(facts) + models(facts) + every_metric(facts)
    return blocks


def _title(facts: Json) -> str:
    if "title" in facts:
        return str(facts["title"])
    names = [model["name"] for model in facts["models"]]
    return f"What {names[-1]} tokens did to the model" if len(names) > 1 else "The base model"
