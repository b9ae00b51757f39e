"""Stage `data`: what was done to the data of a run, on one page.

A pure function of what the stages left: their statistics, their `dropped.parquet` and, of some documents, the text.
Numbers are gathered in `data_page_flow`, `data_page_tables` and `data_page_scores`, excerpts in `data_page_examples`,
drawn in `data_page_figures`, said in `data_page_text` and written by `tasks.pages`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from storage.artifact import Artifact, Input
from storage.draft import Draft
from storage.settings import Count, Settings, identity
from tasks.corpus.filter import FilterConfig
from tasks.pages.data.examples import Reader
from tasks.pages.data.figures import draw
from tasks.pages.data.flow import STAGES, contamination, flow, packing
from tasks.pages.data.measured import measure
from tasks.pages.data.page import blocks_of, findings
from tasks.pages.data.tables import COPIES, Tables
from tasks.pages.html import html_of
from tasks.pages.markdown import markdown_of

STAGE = "data"
VERSION = 2
Json = dict[str, Any]
_REASONS = 40
_PARTS = {
    "dropped": STAGES[:4],
    "documents": STAGES[:4],
    "holdout": ("decontaminate",),
    "hits": ("decontaminate",),
    "tokens": ("tokenize",),
}


class DataConfig(Settings):
    """What is shown of a corpus, and of how much of it."""

    seed: int = identity(0, description="Of what is drawn.")
    filter: FilterConfig = identity(FilterConfig(), description="The filter whose rules are measured again.")
    reasons: int = identity(8, ge=0, le=100, description="Reasons for dropping that are shown with examples.")
    examples: int = identity(2, ge=1, le=20, description="Examples of each of them.")
    pairs: int = identity(3, ge=0, le=20, description="Near-duplicates that are shown beside what was kept.")
    rules: int = identity(8, ge=0, le=40, description="Rules of the filter whose values are shown.")
    length_bytes: Count = identity(
        256_000_000,
        ge=1,
        description="Documents of which lengths are counted, in bytes of their files; evenly over all.",
    )
    score_bytes: Count = identity(
        3_000_000, ge=1, description="Text that the filter's rules measure again, in bytes."
    )


@dataclass(frozen=True)
class DataInputs:
    """slices: {number, source, stages: {stage: {stats, and the parts documents, dropped, holdout, hits, tokens}}};
    packs: {round, stats}, oldest first; counted: parts `hits` of `contamination`."""

    slices: tuple[Mapping[str, Any], ...]
    packs: tuple[Mapping[str, Any], ...] = ()
    counted: tuple[Input, ...] = ()


@dataclass(frozen=True)
class DataStats:
    """The sentences of findings; documents that were read and that are left, and whether all adds up."""

    findings: tuple[str, ...]
    read: int
    left: int
    conserved: bool


def data_inputs(
    slices: Sequence[Any], packed: Sequence[Artifact], first_round: int, counted: Sequence[Artifact]
) -> DataInputs:
    """Inputs of the page: slices (number, source, artifacts by stage), artifacts of `pack` and of `contamination`."""
    return DataInputs(
        slices=tuple(
            {
                "number": one.number,
                "source": one.source,
                "stages": {stage: _stage(one.artifacts[stage]) for stage in STAGES if stage in one.artifacts},
            }
            for one in slices
        ),
        packs=tuple(
            {"round": first_round + place, "stats": dict(made.stats)} for place, made in enumerate(packed)
        ),
        counted=tuple(made.part("hits") for made in counted),
    )


def _stage(made: Artifact) -> dict[str, Any]:
    parts = {
        name: made.part(name) for name, stages in _PARTS.items() if made.stage in stages and made.has(name)
    }
    return {"stats": dict(made.stats), **parts}


def run(config: DataConfig, inputs: DataInputs, draft: Draft) -> DataStats:
    """Part `page`: data.md, data.html, data.json and figures/ (each as SVG and PNG)."""
    facts = gather(config, inputs, draft)
    figures = draw(facts, draft.path / "figures")
    blocks = blocks_of(facts, figures)
    (draft.path / "data.md").write_text(markdown_of(blocks), encoding="utf-8")
    (draft.path / "data.html").write_text(html_of(blocks, draft.path), encoding="utf-8")
    (draft.path / "data.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    draft.part("page", "data.md", "data.html", "data.json", *(["figures"] if figures else []))
    for problem in facts["flow"]["problems"]:
        draft.warn(problem)
    stages = facts["flow"]["stages"]
    return DataStats(
        findings=tuple(facts["findings"]),
        read=stages[0]["documents_in"] if stages else 0,
        left=stages[-1]["documents_out"] if stages else 0,
        conserved=not facts["flow"]["problems"],
    )


def gather(config: DataConfig, inputs: DataInputs, draft: Draft) -> Json:
    """All that the page says, as plain JSON."""
    flowed = flow(inputs.slices)
    reasons = _reasons(flowed["stages"])
    spill = draft.path / "scratch" / "duckdb"
    spill.mkdir(parents=True, exist_ok=True)
    tables = Tables(inputs.slices, config.seed, spill)
    masked = config.filter.pii == "mask"
    reader = Reader(tables, masked)
    shards, in_all = tables.sampled(config.length_bytes)
    draft.progress(1, 4, "parts of the page")
    clusters = tables.clusters(5)
    lengths = {
        "before": tables.lengths(shards),
        "after": tables.lengths_after(shards),
        "tokens": tables.lengths_in_tokens(shards),
    }
    draft.progress(2, 4, "parts of the page")
    longest = config.score_bytes // 10
    drawn = tables.drawn(shards, config.score_bytes, longest)
    failed = {row["reason"]: row["documents"] for row in reasons if row["stage"] == "filter"}
    scores = measure(config.filter, drawn, failed, config.rules) if config.rules else []
    draft.progress(3, 4, "parts of the page")
    facts: Json = {
        "flow": flowed,
        "reasons": reasons,
        "lengths": lengths,
        "scores": scores,
        "clusters": clusters,
        "pairs": reader.of_pairs([row["kept"] for row in clusters["largest"][:1]], config.pairs),
        "contamination": contamination(inputs.slices, _read),
        "counted": [
            {"benchmark": name, **entry} for part in inputs.counted for name, entry in _read(part).items()
        ],
        "packing": packing(inputs.packs),
        "examples": reader.of_reasons(_shown(reasons, config.reasons), config.examples),
        "sample": {
            "shards": len(shards),
            "shards_in_all": in_all,
            "masked": masked,
            "longest": longest,
            "longer": tables.longer(shards, longest) if scores else 0,
            "classifier": config.filter.edu_classifier is not None,
        },
    }
    facts["findings"] = findings(facts)
    return facts


def _read(part: Input) -> Json:
    return dict(json.loads(part.only().read_bytes()))


def _reasons(stages: Sequence[Json]) -> list[Json]:
    """The commonest reasons, most first: {stage, reason, documents, asked}; `asked` is what the stage was given."""
    rows = [
        {"stage": stage["stage"], "reason": reason, "documents": count, "asked": stage["documents_in"]}
        for stage in stages
        for reason, count in stage["reasons"].items()
        if count
    ]
    return sorted(rows, key=lambda row: (-row["documents"], row["stage"], row["reason"]))[:_REASONS]


def _shown(reasons: Sequence[Json], most: int) -> list[tuple[str, str]]:
    """Reasons to show examples of: the commonest of each stage first, then the commonest of all; near-copies are shown in
    pairs, and exact ones are no news."""
    pairs = [(row["stage"], row["reason"]) for row in reasons if row["reason"] not in COPIES]
    firsts = [
        pair for place, pair in enumerate(pairs) if pair[0] not in [stage for stage, _ in pairs[:place]]
    ]
    chosen = [*firsts, *(pair for pair in pairs if pair not in firsts)][:most]
    return sorted(chosen, key=lambda pair: (STAGES.index(pair[0]), pairs.index(pair)))
