"""Stage `data`: one page about what was done to the data of a run.

A pure function of the stages' artifacts: their statistics, their `dropped.parquet`, and the text of some documents.
The pages' ledger collects the amounts, `tables` and `measured` read the tables, `examples` the excerpts. `figures`
draws, `page` words, and `tasks.pages` writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from storage.artifact import Artifact
from storage.draft import Draft
from tasks.corpus.filter import COMPONENTS as FILTER_COMPONENTS
from tasks.corpus.filter import families_of
from tasks.corpus.shares import large_shares
from tasks.pages.data.examples import Reader
from tasks.pages.data.extracted import extracted_of
from tasks.pages.data.facts import DataFacts, LargeShare, Lengths, Reason, Sample, facts_json
from tasks.pages.data.figures import draw
from tasks.pages.data.inputs import DataConfig, DataInputs, DataPack, LikenessParts, SliceParts, StageParts
from tasks.pages.data.likeness import likeness_of
from tasks.pages.data.measured import measure
from tasks.pages.data.page import blocks_of, findings
from tasks.pages.data.tables import COPIES, DROPPING, Tables
from tasks.pages.html import html_of
from tasks.pages.ledger import Amounts, Entry, amounts_of, hits_of, ledger_of, round_of
from tasks.pages.made import MadeSlice
from tasks.pages.markdown import markdown_of
from tasks.stages import CORPUS

STAGE = "data"
VERSION = 4
COMPONENTS = FILTER_COMPONENTS
"""The rules of the filter that are on are measured again, as they are now."""
_REASONS = 40
_PARTS = {
    "dropped": DROPPING,
    "documents": DROPPING[1:],
    "holdout": ("decontaminate",),
    "hits": ("decontaminate",),
    "tokens": ("tokenize",),
    "samples": ("extract",),
}


@dataclass(frozen=True)
class DataStats:
    """The findings as sentences; documents read and left, and whether everything adds up."""

    findings: tuple[str, ...]
    read: int
    left: int
    conserved: bool


def data_inputs(
    slices: Sequence[MadeSlice], packed: Sequence[Artifact], first_round: int, counted: Sequence[Artifact]
) -> DataInputs:
    """Inputs of the page: slices, artifacts of `pack` and of `contamination`."""
    models = {made.key: made for one in slices if (made := one.artifacts.get("likeness")) is not None}
    return DataInputs(
        slices=tuple(
            SliceParts(
                number=one.number,
                source=one.source,
                stages={stage: _stage(one.artifacts[stage]) for stage in CORPUS if stage in one.artifacts},
            )
            for one in slices
        ),
        packs=tuple(DataPack(number, dict(made.stats)) for number, made in enumerate(packed, first_round)),
        counted=tuple(made.part("hits") for made in counted),
        likeness=tuple(LikenessParts(dict(made.stats), made.part("examples")) for made in models.values()),
    )


def components(config: DataConfig, inputs: DataInputs) -> Iterator[str]:
    """The families of rules that are measured."""
    return families_of(config.filter)


def _stage(made: Artifact) -> StageParts:
    parts = {
        name: made.part(name) for name, stages in _PARTS.items() if made.stage in stages and made.has(name)
    }
    return StageParts(stats=dict(made.stats), **parts)


def run(config: DataConfig, inputs: DataInputs, draft: Draft) -> DataStats:
    """Part `page`: data.md, data.html, data.json and figures/ (each as SVG and PNG)."""
    facts = gather(config, inputs, draft)
    pictures = draw(facts, draft.path / "figures")
    blocks = blocks_of(facts, pictures)
    (draft.path / "data.md").write_text(markdown_of(blocks), encoding="utf-8")
    (draft.path / "data.html").write_text(html_of(blocks, draft.path), encoding="utf-8")
    (draft.path / "data.json").write_text(json.dumps(facts_json(facts), indent=1) + "\n", encoding="utf-8")
    draft.part("page", "data.md", "data.html", "data.json", *(["figures"] if pictures else []))
    for problem in facts.flow.problems:
        draft.warn(problem)
    stages = [one for one in facts.flow.stages if one.stage != "extract"]
    return DataStats(
        findings=facts.findings,
        read=stages[0].documents_in if stages else 0,
        left=stages[-1].documents_out if stages else 0,
        conserved=not facts.flow.problems,
    )


def gather(config: DataConfig, inputs: DataInputs, draft: Draft) -> DataFacts:
    """All facts of the page."""
    flow = ledger_of(
        Entry(one.number, one.source, amounts_of(stage, one.stages[stage].stats))
        for one in inputs.slices
        for stage in CORPUS
        if stage in one.stages
    )
    reasons = _reasons(flow.stages)
    spill = draft.path / "scratch" / "duckdb"
    spill.mkdir(parents=True, exist_ok=True)
    tables = Tables(inputs.slices, config.seed, spill)
    masked = config.filter.pii == "mask"
    reader = Reader(tables, masked)
    shards, in_all = tables.sampled(config.length_bytes)
    draft.progress(1, 4, "parts of the page")
    clusters = tables.clusters(5)
    lengths = Lengths(tables.lengths(shards), tables.lengths_after(shards), tables.lengths_in_tokens(shards))
    draft.progress(2, 4, "parts of the page")
    longest = config.score_bytes // 10
    drawn = tables.drawn(shards, config.score_bytes, longest)
    failed = {row.reason: row.documents for row in reasons if row.stage == "filter"}
    scores = measure(config.filter, drawn, failed, config.rules) if config.rules else ()
    draft.progress(3, 4, "parts of the page")
    facts = DataFacts(
        flow=flow,
        reasons=reasons,
        lengths=lengths,
        scores=scores,
        clusters=clusters,
        pairs=reader.of_pairs([row.kept for row in clusters.largest[:1]], config.pairs),
        contamination=hits_of(
            (one.source, own.hits)
            for one in inputs.slices
            if (own := one.stages.get("decontaminate")) is not None and own.hits is not None
        ),
        counted=hits_of((("", part) for part in inputs.counted), afterwards=True),
        packing=tuple(round_of(pack.round, pack.stats) for pack in inputs.packs),
        examples=reader.of_reasons(_shown(reasons, config.reasons), config.examples),
        sample=Sample(
            shards=len(shards),
            shards_in_all=in_all,
            masked=masked,
            longest=longest,
            longer=tables.longer(shards, longest) if scores else 0,
            classifier=config.filter.edu_classifier is not None,
        ),
        large=tuple(
            LargeShare(one.number, one.source, taken.rule, taken.documents, taken.asked)
            for one in inputs.slices
            if "filter" in one.stages
            for taken in large_shares(one.stages["filter"].stats)
        ),
        extracted=extracted_of(inputs.slices, reader.excerpt),
        likeness=likeness_of(inputs.likeness, reader.excerpt),
    )
    return replace(facts, findings=tuple(findings(facts)))


def _reasons(stages: Sequence[Amounts]) -> tuple[Reason, ...]:
    """The most frequent reasons in descending order; `asked` is the number of documents that the stage was given."""
    rows = [
        Reason(stage.stage, reason, count, stage.documents_in)
        for stage in stages
        for reason, count in stage.reasons.items()
        if count
    ]
    return tuple(sorted(rows, key=lambda row: (-row.documents, row.stage, row.reason))[:_REASONS])


def _shown(reasons: Sequence[Reason], most: int) -> list[tuple[str, str]]:
    """Reasons to show examples of: the most frequent of each stage first, then the most frequent overall.

    Copies are left out: near copies are shown in pairs, and exact copies would show nothing new.
    """
    pairs = [(row.stage, row.reason) for row in reasons if row.reason not in COPIES]
    firsts = [
        pair for place, pair in enumerate(pairs) if pair[0] not in [stage for stage, _ in pairs[:place]]
    ]
    chosen = [*firsts, *(pair for pair in pairs if pair not in firsts)][:most]
    return sorted(chosen, key=lambda pair: (CORPUS.index(pair[0]), pairs.index(pair)))
