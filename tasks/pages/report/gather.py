"""Gathers the report's facts from parts of the store, and states the findings in sentences.

`scores` and `groups` read the measurements, the pages' ledger the documents and tokens. This module joins them with
the training segments and samples.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow.parquet as pq

from storage.artifact import Input
from storage.counts import rounded_count
from tasks.pages.ledger import BenchmarkHits, Entry, amounts_of, hits_of, ledger_of, round_of
from tasks.pages.report.answers import answer_rows
from tasks.pages.report.facts import (
    GROUPS,
    AnswerRow,
    Curve,
    ModelChange,
    PackedBy,
    Pair,
    PerplexityRow,
    ReportFacts,
    Results,
    SampleRow,
    TrainedSegment,
    change_of,
    within,
)
from tasks.pages.report.groups import group_row
from tasks.pages.report.inputs import JournalSegment, ReportConfig, ReportInputs
from tasks.pages.report.merges import gather_merges
from tasks.pages.report.scores import add_changes, benchmark_row, pairs_of, perplexity_row


def gather(config: ReportConfig, inputs: ReportInputs, pairs: Sequence[Pair] | None = None) -> ReportFacts:
    """All facts of the report.

    `pairs` are the comparisons, (from, to) by the models' names. By default each model is compared with the base
    and with the model before it.
    """
    names = [model.name for model in inputs.models]
    pairs = pairs_of(names) if pairs is None else pairs
    texts = [text for name in config.sources if (text := perplexity_row(name, names, inputs)) is not None]
    benchmarks = [
        asked
        for name, group in config.benchmarks
        if (asked := benchmark_row(name, group, names, inputs)) is not None
    ]
    means = [mean for group in GROUPS if (mean := group_row(group, benchmarks, names)) is not None]
    answers, of_groups = answer_rows(benchmarks, names, inputs)
    facts = ReportFacts(
        models=inputs.models,
        pairs=tuple(pairs),
        computed=sum(segment.computed for segment in inputs.journals),
        segments=tuple(_segment(segment) for segment in inputs.journals),
        measured=_measured(inputs),
        perplexity=tuple(add_changes(texts, pairs)),
        benchmarks=tuple(add_changes(benchmarks, pairs)),
        groups=tuple(add_changes(means, pairs)),
        answers=(*add_changes(answers, pairs), *add_changes(of_groups, pairs)),
        samples=_samples(inputs.samples),
        data=ledger_of(
            Entry(one.slice, one.source, amounts_of(one.stage, one.stats)) for one in inputs.corpus
        ),
        contamination=_contamination(inputs.hits, inputs.counted),
        packing=tuple(
            PackedBy(pack.key, round_of(number, pack.stats)) for number, pack in enumerate(inputs.packs, 1)
        ),
        curves=tuple(_curve(segment) for segment in inputs.journals),
    )
    between = gather_merges(config, inputs)
    stopped = stopped_early(inputs.journals)
    merged = between.findings if between else ()
    told = (*findings(facts), *merged, *stopped, *never_reached(facts.curves))
    return replace(facts, findings=told, merges=between)


def _segment(segment: JournalSegment) -> TrainedSegment:
    return TrainedSegment(
        name=segment.name,
        kind=segment.kind,
        computed=segment.computed,
        stage=segment.journal.stage,
        key=segment.journal.key,
    )


def _measured(inputs: ReportInputs) -> tuple[tuple[str, str], ...]:
    parts = [*inputs.scores.values(), *inputs.perplexity.values()]
    if inputs.merging is not None:
        parts += [*inputs.merging.scores.values(), *inputs.merging.perplexity.values()]
    return tuple(sorted({(part.stage, part.key) for one in parts for part in one.values()}))


def _samples(samples: Mapping[str, Input]) -> tuple[SampleRow, ...]:
    """Each prompt by decoding method, with the continuation of every model."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for model, part in samples.items():
        for row in json.loads(part.only().read_bytes()):
            asked = (row["prompt"], str(row.get("decoding", "")))
            found.setdefault(asked, {})[model] = row["continuation"]
    return tuple(SampleRow(prompt, decoding, models) for (prompt, decoding), models in found.items())


def _contamination(hits: Sequence[Input], counted: Sequence[Input]) -> tuple[BenchmarkHits, ...]:
    """By benchmark: hits of the decontamination, summed over slices; then hits counted afterwards for other
    benchmarks.
    """
    found = hits_of(("", part) for part in hits)
    known = {row.benchmark for row in found}
    afterwards = hits_of((("", part) for part in counted), afterwards=True)
    return (*found, *(row for row in afterwards if row.benchmark not in known))


def _curve(segment: JournalSegment) -> Curve:
    path = segment.journal.only()
    names = [name for name in ("step", "tokens", "loss", "lr") if name in pq.read_schema(path).names]
    table = pq.read_table(path, columns=names)
    return Curve(
        name=segment.name,
        kind=segment.kind,
        series=segment.series,
        tokens=table["tokens"].to_pylist(),
        loss=table["loss"].to_pylist(),
        step=table["step"].to_pylist() if "step" in names else None,
        rate=table["lr"].to_pylist() if "lr" in names else (),
        peak=segment.peak,
    )


_REACHED = 0.99  # share of the asked rate that counts as reached


# ---- findings -----------------------------------------------------------------------------------------------------


def findings(facts: Results) -> list[str]:
    """The main findings, in sentences: the last model against the base, what is clear first; then against the model
    before it."""
    if not facts.pairs:
        return [f"Only the model {facts.names[0]} was measured: there is nothing to compare yet."]
    base, last = facts.names[0], facts.names[-1]
    found = [
        (change.clear, _perplexity_sentence(row, change, base, last))
        for row in facts.perplexity
        if (change := change_of(row, base, last))
    ]
    found += [
        (change.clear, _answers_sentence(row, change, facts))
        for row in means_of_answers(facts)
        if (change := change_of(row, base, last))
    ]
    found += [
        (
            change.clear,
            f"The mean of the {row.group} benchmarks went from {100 * row.models[base].score:.1f} to "
            f"{100 * row.models[last].score:.1f} ({within(change)} points): {verdict_words(change)}.",
        )
        for row in facts.groups
        if (change := change_of(row, base, last))
    ]
    sentences = [*_clear_first(found), *_last_step(facts)]
    return sentences or [f"Nothing was measured on both {base} and {last}."]


def stopped_early(segments: Sequence[JournalSegment]) -> list[str]:
    """That training ended before its budget by rule, where, and which weights it went back to."""
    return [
        f"Training was stopped by rule before {one.name}, at {rounded_count(end['at'])} tokens: the loss on held-out "
        f"text of {end['source']} had been lowest at {rounded_count(end['lowest_tokens'])} ({end['lowest']:.3f} nats per "
        f"token). The model {one.name} goes on from {_weights_of_then(end)}, and no later budget is trained."
        for one in segments
        if (end := one.stopped)
    ]


def _weights_of_then(end: Mapping[str, Any]) -> str:
    if end["tokens"] == end["lowest_tokens"]:
        return "the weights of then"
    return f"the lowest of its own trunk, at {rounded_count(end['tokens'])} ({end['loss']:.3f})"


def means_of_answers(facts: Results) -> list[AnswerRow]:
    """The bits per byte of each group of benchmarks: their mean, or those of its only benchmark."""
    found = {row.group: row for row in facts.answers if row.benchmark is None}
    rows = [
        [found[group]] if group in found else [row for row in facts.answers if row.group == group]
        for group in GROUPS
    ]
    return [own[0] for own in rows if len(own) == 1]


def _answers_sentence(row: AnswerRow, change: ModelChange, facts: Results) -> str:
    """How well the right answers are foreseen, and of how many benchmarks the accuracy says nothing."""
    chance = [
        one.benchmark
        for one in facts.benchmarks
        if one.benchmark in row.benchmarks
        and all((score := one.models.get(name)) and score.at_chance for name in (change.before, change.after))
    ]
    at_chance = (
        f" The accuracy of {len(chance)} of {len(row.benchmarks)} is at chance in both." if chance else ""
    )
    before, after = (row.models[name].score for name in (change.before, change.after))
    return (
        f"The right answers of the {row.group} benchmarks went from {before:.4f} to {after:.4f} bits per byte "
        f"({within(change, 1, 4)}; less is better): {change.verdict}.{at_chance}"
    )


def never_reached(curves: Sequence[Curve]) -> list[str]:
    """That the learning rate never was what was asked: the warm-up was longer than the training."""
    found = []
    for run in dict.fromkeys(curve.series for curve in curves):
        own = [curve for curve in curves if curve.series == run]
        peak = max((curve.peak for curve in own if curve.peak is not None), default=None)
        highest = max((rate for curve in own for rate in curve.rate if rate is not None), default=None)
        if peak is not None and highest is not None and highest < _REACHED * peak:
            found.append(
                f"The learning rate never reached the {peak:.3g} that was asked for: its highest was {highest:.3g} "
                f"({100 * highest / peak:.2g} %), as the warm-up is longer than the training."
            )
    return found


def _clear_first(told: Sequence[tuple[bool, str]]) -> list[str]:
    return [text for _, text in sorted(told, key=lambda one: not one[0])]


def _last_step(facts: Results) -> list[str]:
    """Whether training from the last budget but one to the last was worth it: what is clear first."""
    if len(facts.names) < 3:
        return []
    before, after = facts.names[-2:]
    said = [
        (change.clear, f"{row.group} {within(change)} points, {change.verdict}")
        for row in facts.groups
        if (change := change_of(row, before, after))
    ]
    said += [
        (
            change.clear,
            f"right answers of the {row.group} benchmarks {within(change, 1, 4)} bits per byte, {change.verdict}",
        )
        for row in means_of_answers(facts)
        if (change := change_of(row, before, after))
    ]
    said += [
        (change.clear, f"perplexity on {row.source} {within(change)} %, {change.verdict}")
        for row in facts.perplexity
        if (change := change_of(row, before, after))
    ]
    return [f"Going on from {before} to {after}: {'; '.join(_clear_first(said))}."] if said else []


def _perplexity_sentence(row: PerplexityRow, change: ModelChange, base: str, last: str) -> str:
    before, after = (row.models[name].perplexity for name in (base, last))
    how = ("fell" if change.value < 0 else "rose") if change.clear else "went"
    moved = f"Perplexity on {row.source} {how} from {before:.4g} to {after:.4g} ({within(change)} %)"
    return f"{moved}." if change.clear else f"{moved}: {verdict_words(change, ' %')}."


def verdict_words(change: ModelChange, unit: str = " points") -> str:
    """The verdict; if there is none, what would have been seen, or why nothing can be."""
    if change.few:
        more = ", and of one no interval can be given" if change.count < 2 else ""
        return f"{change.verdict} for a verdict ({change.count}{more})"
    if change.clear or change.seen is None:
        return change.verdict
    return f"{change.verdict} (a change of {100 * change.seen:.1f}{unit} would have been seen)"
