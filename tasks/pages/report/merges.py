"""Models between the base and the last one: what each gains in the domain and loses in general, and which to take.

The domain is the mean of its benchmarks; without any, the perplexity of its held-out texts; and so is what is general
(sources of the role `replay`). A change counts as in the rest of the report: by its verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tasks.pages.blocks import Block, Cell, Heading, Picture, Table, Text
from tasks.pages.canvas import COLOURS, GREY, Tips
from tasks.pages.report.facts import (
    GROUPS,
    GroupRow,
    MergeFacts,
    MergePoint,
    ModelChange,
    Pair,
    PerplexityRow,
    ResultRow,
    change_of,
    within,
)
from tasks.pages.report.groups import group_row
from tasks.pages.report.inputs import MergedModel, ReportConfig, ReportInputs
from tasks.pages.report.results import change_cell
from tasks.pages.report.scores import add_changes, benchmark_row, perplexity_row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIGURE = "merges"
_ROLES = {"domain": "domain", "general": "replay"}
"""The role of a source whose text is of a group."""
_BESIDE = ("average", "instruct", "chat")


def gather_merges(config: ReportConfig, inputs: ReportInputs) -> MergeFacts | None:
    """The merged models with their changes from the base, from the last model, and from a chat model; None without any."""
    merging = inputs.merging
    if merging is None or len(inputs.models) < 2:
        return None
    base, trained = inputs.models[0], inputs.models[-1]
    merged = merging.models
    names = [base.name, *(one.name for one in merged), trained.name]
    joint = replace(
        inputs,
        scores={**inputs.scores, **merging.scores},
        questions={**inputs.questions, **merging.questions},
        perplexity={**inputs.perplexity, **merging.perplexity},
        documents={**inputs.documents, **merging.documents},
    )
    pairs = _pairs(base.name, trained.name, merged)
    texts = [row for name in config.sources if (row := perplexity_row(name, names, joint)) is not None]
    benchmarks = [
        asked
        for name, group in config.benchmarks
        if (asked := benchmark_row(name, group, names, joint)) is not None
    ]
    means = [mean for group in GROUPS if (mean := group_row(group, benchmarks, names)) is not None]
    points = [
        MergePoint(name=base.name, kind="base", share=0.0, stage=base.stage, key=base.key),
        *(_point(one) for one in merged),
        MergePoint(name=trained.name, kind="trained", share=1.0, stage=trained.stage, key=trained.key),
    ]
    facts = MergeFacts(
        base=base.name,
        trained=trained.name,
        points=tuple(sorted(points, key=_order)),
        perplexity=tuple(add_changes(texts, pairs)),
        benchmarks=tuple(add_changes(benchmarks, pairs)),
        groups=tuple(add_changes(means, pairs)),
        roles=merging.roles,
        chosen=None,
        chat=None,
        findings=(),
    )
    facts = replace(facts, chosen=_chosen(facts), chat=_chat(facts))
    return replace(facts, findings=tuple(_findings(facts)))


def _pairs(base: str, trained: str, merged: Sequence[MergedModel]) -> list[Pair]:
    own = [one.name for one in merged]
    chats = [
        (chat.name, one.name)
        for chat in merged
        if chat.kind == "chat"
        for one in merged
        if one.kind == "instruct"
    ]
    return [*((base, name) for name in (*own, trained)), *((trained, name) for name in own), *chats]


def _point(one: MergedModel) -> MergePoint:
    share = one.value if one.kind == "interpolate" else None
    return MergePoint(name=one.name, kind=one.kind, share=share, stage=one.stage, key=one.key)


def _order(point: MergePoint) -> tuple[int, float]:
    """The way from the base to the trained model, and then what lies beside it."""
    return (0, point.share) if point.share is not None else (1 + _BESIDE.index(point.kind), 0.0)


# ---- which to take ------------------------------------------------------------------------------------------------


def _side(facts: MergeFacts, group: str) -> list[ResultRow]:
    """The rows that say how a model does in the domain, or in general."""
    means: list[ResultRow] = [row for row in facts.groups if row.group == group]
    return means or [row for row in facts.perplexity if facts.roles.get(row.source) == _ROLES[group]]


def _changes(facts: MergeFacts, group: str, before: str, after: str) -> list[tuple[ResultRow, ModelChange]]:
    found = ((row, change_of(row, before, after)) for row in _side(facts, group))
    return [(row, change) for row, change in found if change is not None]


def _value(facts: MergeFacts, group: str, before: str, after: str) -> float:
    """The mean change, turned so that more is better: points, or the relative fall of perplexity."""
    values = [
        -change.value if isinstance(row, PerplexityRow) else change.value
        for row, change in _changes(facts, group, before, after)
    ]
    return sum(values) / len(values) if values else 0.0


def _better(facts: MergeFacts, group: str, before: str, after: str) -> bool:
    verdicts = {change.verdict for _, change in _changes(facts, group, before, after)}
    return "improved" in verdicts and "worse" not in verdicts


def _worse(facts: MergeFacts, group: str, before: str, after: str) -> bool:
    return any(change.verdict == "worse" for _, change in _changes(facts, group, before, after))


def _able(facts: MergeFacts, name: str) -> bool:
    """Whether a model is clearly better in the domain than the base, and not clearly worse in general."""
    return _better(facts, "domain", facts.base, name) and not _worse(facts, "general", facts.base, name)


def _chosen(facts: MergeFacts) -> str | None:
    way = [one.name for one in facts.points if one.kind in ("interpolate", "average")]
    able = [name for name in way if _able(facts, name)]
    if _able(facts, facts.trained):
        able = [
            name
            for name in able
            if any(_better(facts, group, facts.trained, name) for group in GROUPS)
            and not any(_worse(facts, group, facts.trained, name) for group in GROUPS)
        ]
    return max(able, key=lambda name: _values(facts, facts.base, name), default=None)


def _values(facts: MergeFacts, before: str, after: str) -> tuple[float, float]:
    return _value(facts, "domain", before, after), _value(facts, "general", before, after)


def _chat(facts: MergeFacts) -> str | None:
    before = next((one.name for one in facts.points if one.kind == "chat"), None)
    if before is None:
        return None
    able = [
        one.name
        for one in facts.points
        if one.kind == "instruct"
        and _better(facts, "domain", before, one.name)
        and not _worse(facts, "general", before, one.name)
    ]
    return max(able, key=lambda name: _values(facts, before, name), default=None)


# ---- in words -----------------------------------------------------------------------------------------------------


def _findings(facts: MergeFacts) -> list[str]:
    found = []
    way = [one for one in facts.points if one.kind in ("interpolate", "trained")]
    if len(way) > 1 and _side(facts, "general") and _side(facts, "domain"):
        found.append(_least_lost(facts, way))
    if len(way) > 1 or any(one.kind == "average" for one in facts.points):
        found.append(_to_take(facts))
    if any(one.kind == "chat" for one in facts.points):
        name = next(one.name for one in facts.points if one.kind == "chat")
        found.append(
            f"With what made the chat model added, {facts.chat} is clearly better than {name} in the domain and "
            "not clearly "
            "worse in general."
            if facts.chat is not None
            else f"With what made the chat model added, none is clearly better than {name} in the domain without being "
            "clearly worse in general."
        )
    return found


def _least_lost(facts: MergeFacts, way: Sequence[MergePoint]) -> str:
    least = max(way, key=lambda one: (_value(facts, "general", facts.base, one.name), one.share or 0.0))
    general = _told(facts, "general", facts.base, least.name)
    if least.kind == "trained":
        return f"Nothing between {facts.base} and {facts.trained} loses less than {facts.trained} itself: {general}."
    whole = _value(facts, "domain", facts.base, facts.trained)
    own = _value(facts, "domain", facts.base, least.name)
    keeps = f"keeps {100 * own / whole:.0f} % of the gain" if whole > 0 else "gains"
    return (
        f"Between {facts.base} and {facts.trained}, least is lost at α = {least.share:g}: {general}; at α = 1: "
        f"{_told(facts, 'general', facts.base, facts.trained)}. It {keeps}: "
        f"{_told(facts, 'domain', facts.base, least.name)}; at α = 1: "
        f"{_told(facts, 'domain', facts.base, facts.trained)}."
    )


def _told(facts: MergeFacts, group: str, before: str, after: str) -> str:
    """The changes of one side with their intervals: general mean −0.6 [−2.6, 1.4] points."""
    told = []
    for row, change in _changes(facts, group, before, after):
        if isinstance(row, PerplexityRow):
            told.append(f"{row.label} {within(change)} %")
        elif isinstance(row, GroupRow):
            told.append(f"{row.group} mean {within(change)} points")
    return ", ".join(told)


def _to_take(facts: MergeFacts) -> str:
    if facts.chosen is not None:
        return (
            f"Take {facts.chosen}: it is clearly better than {facts.base} in the domain and not clearly worse in general"
            + (
                f", and clearly better than {facts.trained} on one side, not clearly worse on the other."
                if _able(facts, facts.trained)
                else f", which {facts.trained} is not."
            )
        )
    if _able(facts, facts.trained):
        return (
            f"Take {facts.trained} as it was trained: no model between is clearly better on one side and not clearly worse "
            "on the other."
        )
    return f"None of them is clearly better than {facts.base} in the domain without being clearly worse in general."


# ---- on the page --------------------------------------------------------------------------------------------------


def merges(facts: MergeFacts | None) -> list[Block]:
    """What each merged model gains and loses, as a figure and a table; then how each differs from the trained one."""
    if facts is None:
        return []
    rows: list[ResultRow] = [*facts.groups, *facts.perplexity]
    head = tuple(row.label for row in rows)
    blocks: list[Block] = [Heading(2, "Weights between models"), Text(" ".join(facts.findings), "findings")]
    if panels_of(facts):
        blocks.append(Picture(FIGURE, _CAPTION))
    others = [one for one in facts.points if one.kind != "base"]
    blocks.append(
        Table(
            (f"change from {facts.base}", "α", *head),
            tuple(_row(facts, rows, facts.base, one) for one in others),
        )
    )
    beside = [one for one in others if one.kind not in ("trained", "chat")]
    blocks.append(
        Table(
            (f"change from {facts.trained}", "α", *head),
            tuple(_row(facts, rows, facts.trained, one) for one in beside),
        )
    )
    blocks.append(Text(_note(facts), "note"))
    return blocks


_CAPTION = (
    "Figure 4. What is gained in the domain and lost in general on the way from the base to the trained model, "
    "in changes from "
    "the base with 95 % intervals; up and to the right is better. The line joins the shares α that were measured."
)


def _row(facts: MergeFacts, rows: Sequence[ResultRow], before: str, point: MergePoint) -> tuple[Cell, ...]:
    share = "" if point.share is None else f"{point.share:g}"
    cells = [
        change_cell(change_of(row, before, point.name), " %" if isinstance(row, PerplexityRow) else "")
        for row in rows
    ]
    return (Cell(point.name), Cell(share), *cells)


def _note(facts: MergeFacts) -> str:
    kinds = {one.kind for one in facts.points}
    told = []
    if "interpolate" in kinds:
        told.append("Of α: (1 − α) · base + α · trained, weight by weight (arXiv 2109.01903).")
    if "average" in kinds:
        told.append(
            "Average: the mean of the last checkpoints of the trunk, whose rate never decayed (arXiv 2507.17634)."
        )
    if "instruct" in kinds:
        told.append(
            "Chat: the trained model, and added to it γ times the difference between a chat model and the base "
            "that it was made "
            "from."
        )
    told.append(
        "Nothing was trained for these models. Points of means, percent of perplexity, of which less is better."
    )
    return " ".join(told)


# ---- the figure ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Panel:
    """The domain against what is general, in one unit."""

    domain: GroupRow | PerplexityRow
    general: GroupRow | PerplexityRow

    @property
    def of_text(self) -> bool:
        """Whether it is of perplexity, of which less is better."""
        return isinstance(self.domain, PerplexityRow)


def panels_of(facts: MergeFacts) -> list[Panel]:
    """Means of benchmarks, if both groups have one; and each text of the domain against the first general one."""
    means: Mapping[str, GroupRow] = {row.group: row for row in facts.groups}
    found = [Panel(means["domain"], means["general"])] if set(GROUPS) <= means.keys() else []
    texts = {
        role: [row for row in facts.perplexity if facts.roles.get(row.source) == role]
        for role in _ROLES.values()
    }
    found += [Panel(row, texts["replay"][0]) for row in texts["domain"] if texts["replay"]]
    return found[:3]


def merge_figure(facts: MergeFacts, tips: Tips) -> Figure:
    """Figure 4: the domain over what is general, by α."""
    from matplotlib.figure import Figure

    panels = panels_of(facts)
    figure = Figure(figsize=(4.8 * max(2, len(panels)), 4.2), layout="constrained")
    for number, panel in enumerate(panels, 1):
        _draw(figure.add_subplot(1, max(2, len(panels)), number), facts, panel, tips)
    return figure


def _draw(axes: Axes, facts: MergeFacts, panel: Panel, tips: Tips) -> None:
    unit = "%" if panel.of_text else "points"
    axes.set_title(
        "Perplexity, change from base (%)" if panel.of_text else "Benchmarks, change from base (points)"
    )
    axes.set_xlabel(panel.general.label if panel.of_text else "mean of general benchmarks")
    axes.set_ylabel(panel.domain.label if panel.of_text else "mean of domain benchmarks")
    axes.axhline(0, color="#9ca3af", linewidth=1)
    axes.axvline(0, color="#9ca3af", linewidth=1)
    line: list[tuple[float, float]] = []
    for point in facts.points:
        changes = [change_of(row, facts.base, point.name) for row in (panel.general, panel.domain)]
        x, y = changes
        if point.kind == "base":
            line.append((0.0, 0.0))
            tips.point(axes, 0.0, 0.0, f"{point.name}: α 0", GREY)
            axes.annotate(point.name, (0.0, 0.0), xytext=(5, 5), textcoords="offset points", fontsize=8.5)
        elif x is not None and y is not None:
            _point_of(axes, facts, point, x, y, unit, tips)
            if point.share is not None:
                line.append((100 * x.value, 100 * y.value))
    axes.plot([x for x, _ in line], [y for _, y in line], color=COLOURS[0], linewidth=1.4, zorder=2)
    axes.margins(0.14)
    if panel.of_text:
        axes.invert_xaxis()
        axes.invert_yaxis()


def _point_of(
    axes: Axes, facts: MergeFacts, point: MergePoint, x: ModelChange, y: ModelChange, unit: str, tips: Tips
) -> None:
    colour = COLOURS[0] if point.share is not None else COLOURS[1 + _BESIDE.index(point.kind)]
    at = (100 * x.value, 100 * y.value)
    for change, draw, other in ((x, axes.hlines, at[1]), (y, axes.vlines, at[0])):
        low, high = (change.value if end is None else end for end in (change.low, change.high))
        draw(other, 100 * low, 100 * high, color=colour, linewidth=0.9, alpha=0.45, zorder=1)
    label = f"α {point.share:g}" if point.kind == "interpolate" else point.name
    told = f"{point.name}: domain {within(y)} {unit}, general {within(x)} {unit}"
    tips.point(axes, *at, told, colour, hollow=point.name not in (facts.chosen, facts.chat, facts.trained))
    axes.annotate(label, at, xytext=(5, 5), textcoords="offset points", fontsize=8.5, color=colour)
