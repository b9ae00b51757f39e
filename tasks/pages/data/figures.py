"""The data page's figures: what was dropped and why, lengths of documents, values of rules, use of tokens.

Matplotlib is imported only when something is drawn.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storage.counts import rounded_count
from tasks.pages.blocks import Picture
from tasks.pages.canvas import COLOURS, GREY, save
from tasks.pages.data.facts import (
    BINS_PER_DECADE,
    FATES,
    CopyGroups,
    DataFacts,
    GroupSize,
    Lengths,
    Reason,
    RuleValues,
)
from tasks.pages.ledger import Amounts, PackedRound, sources_of
from tasks.pages.wording import size_text, words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KEPT, _DEDUP, HELD, _DECONTAMINATE, _INGEST, _FILTER = COLOURS
STAGE_COLOURS = {"ingest": _INGEST, "dedup": _DEDUP, "filter": _FILTER, "decontaminate": _DECONTAMINATE}
_FATE_COLOURS = {
    FATES[0]: KEPT,
    FATES[1]: HELD,
    **{f"dropped by {name}": c for name, c in STAGE_COLOURS.items()},
}


_LENGTHS_RIGHT = {
    (True, True): "as they are trained on; one longer than a sequence is cut.",
    (True, False): "as they are trained on.",
    (False, True): "as they were kept.",
    (False, False): "as they were kept.",
}


def draw(facts: DataFacts, directory: Path) -> list[Picture]:
    """Write each figure that the facts allow as SVG and PNG; returns them in order."""
    directory.mkdir(parents=True, exist_ok=True)
    pictures: list[Picture] = []

    def add(name: str, build: Callable[[], Figure], caption: str) -> None:
        save(lambda _: build(), directory, name)
        pictures.append(Picture(name, caption))

    stages = [one for one in facts.flow.stages if one.stage != "extract"]  # not all sources have it
    if stages and stages[0].documents_out:
        add(
            "flow",
            lambda: _flow(stages),
            "What went on to the next stage, and what was taken out there and why: documents above, text below. "
            "The height of a band is its share.",
        )
    if any(stage.reasons for stage in stages):
        add(
            "reasons",
            lambda: _reasons(facts.reasons[:14], facts.clusters),
            reasons_caption(facts.clusters),
        )
    if facts.lengths.before:
        add(
            "lengths",
            lambda: _lengths(facts.lengths, facts.packing),
            "Left: documents as they were read, by length and what became of them. Right: documents "
            + _LENGTHS_RIGHT[bool(facts.lengths.tokens), bool(facts.packing)],
        )
    if facts.scores:
        add(
            "scores",
            lambda: _scores(facts.scores),
            "What the filter's rules measure on a sample of the documents that they were asked about: grey, "
            "all; blue, those that the filter kept; the line is the limit.",
        )
    if any(one.sources for one in facts.packing):
        add(
            "tokens",
            lambda: _tokens(facts.packing),
            "Where each source's tokens are: trained on in a round, packed and carried to a next "
            "round, or not taken yet."
            + (" Behind a bar: how often its text was read." if _read_counts(facts.packing) else ""),
        )
    return pictures


# ---- what went on from stage to stage: a band that narrows where something is taken out -----------------------------


def _flow(stages: Sequence[Amounts]) -> Figure:
    """Two pictures: documents and text."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.2, 6.0), layout="constrained")
    pictures = (
        ("Documents", [_Column.of_documents(stage) for stage in stages], rounded_count),
        ("Text", [_Column.of_text(stage) for stage in stages if stage.text_out is not None], size_text),
    )
    for place, (title, columns, shown) in enumerate(pictures):
        axes = figure.add_subplot(2, 1, place + 1)
        _sankey(axes, columns, shown)
        axes.set_xlim(-0.05, len(columns) + 0.45)
        axes.set_ylim(-0.82 if title == "Documents" else -0.52, 1.14)
        axes.set_title(title)
    return figure


@dataclass(frozen=True)
class _Column:
    """What came into a stage, went on, and was taken out; `reasons` only if they are shown."""

    stage: str
    came: float
    out: int
    held_out: int
    dropped: int
    reasons: Mapping[str, int] | None = None

    @staticmethod
    def of_documents(own: Amounts) -> _Column:
        came = own.documents_in or own.documents_out
        held = own.documents_held_out or 0
        return _Column(own.stage, came, own.documents_out, held, own.documents_dropped, own.reasons)

    @staticmethod
    def of_text(own: Amounts) -> _Column:
        out = own.text_out or 0
        return _Column(own.stage, own.text_in or out, out, own.text_held_out or 0, own.text_dropped or 0)


def _sankey(axes: Axes, columns: Sequence[_Column], shown: Callable[[float], str]) -> None:
    """Bands from left to right, one column per stage. What is taken out bends down at its stage."""
    whole = max(*(float(one.came) for one in columns), 1.0)
    axes.set_axis_off()
    for x, one in enumerate(columns):
        out, came = one.out / whole, one.came / whole
        _band(axes, x, x + 1, (1 - out, 1), (1 - out, 1), KEPT, 0.62)
        axes.add_patch(_bar(x, 1 - came, came))
        level = 1 - out
        for word, amount, colour in (
            ("held out", one.held_out, HELD),
            ("dropped", one.dropped, STAGE_COLOURS.get(one.stage, GREY)),
        ):
            share = max(amount, 0) / whole
            if share <= 0:
                continue
            down = 0.16 + 0.14 * (word == "dropped" and one.held_out > 0)
            _band(axes, x, x + 0.34, (level - share, level), (-down - share, -down), colour, 0.75)
            middle = -down - share / 2
            axes.text(x + 0.36, middle, f"{word} {shown(amount)}", color=colour, va="center", fontsize=8.5)
            if word == "dropped" and one.reasons is not None:
                _why(axes, x + 0.36, middle, one.reasons)
            level -= share
        axes.text(x + 0.04, 1.03, one.stage, fontsize=9, fontweight="bold", color="#1f2937")
        axes.text(
            x + 0.1,
            1 - out / 2,
            shown(one.out),
            color="white",
            va="center",
            fontsize=9,
            fontweight="bold",
        )
    end = columns[-1].out
    axes.text(
        len(columns) + 0.05,
        1 - end / whole / 2,
        f"{shown(end)}\n{100 * end / whole:.0f} %",
        va="center",
        fontsize=9.5,
        color=KEPT,
        fontweight="bold",
    )


def _why(axes: Axes, x: float, y: float, reasons: Mapping[str, int]) -> None:
    """The two most frequent reasons, below the dropped amount."""
    first = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    shown = [textwrap.fill(f"{words(reason)} {rounded_count(count)}", 29) for reason, count in first[:2]]
    shown += [f"and {len(first) - 2} more"] if len(first) > 2 else []
    axes.text(x, y - 0.07, "\n".join(shown), color="#4b5563", va="top", fontsize=6.8, linespacing=1.25)


def _bar(x: float, bottom: float, height: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.012, bottom), 0.024, max(height, 0.002), color="#1f2937", linewidth=0)


def _band(
    axes: Axes,
    left: float,
    right: float,
    at_left: tuple[float, float],
    at_right: tuple[float, float],
    colour: str,
    alpha: float,
) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Line

    middle = (left + right) / 2
    points = [
        (left, at_left[0]), (middle, at_left[0]), (middle, at_right[0]), (right, at_right[0]),
        (right, at_right[1]), (middle, at_right[1]), (middle, at_left[1]), (left, at_left[1]), (left, at_left[0]),
    ]  # fmt: skip
    codes = [Line.MOVETO, *[Line.CURVE4] * 3, Line.LINETO, *[Line.CURVE4] * 3, Line.CLOSEPOLY]
    axes.add_patch(PathPatch(Line(points, codes), facecolor=colour, alpha=alpha, linewidth=0))


# ---- reasons and clusters -----------------------------------------------------------------------------------------


def reasons_caption(copies: CopyGroups) -> str:
    """What the figure of reasons shows: groups of copies only where there are any."""
    if not copies.sizes:
        return "The reasons for which most documents were dropped, by stage."
    return (
        "Left: the reasons for which most documents were dropped, by stage. Right: groups of "
        "documents that dedup took for one, by size; one of each group stayed."
    )


def _reasons(rows: Sequence[Reason], copies: CopyGroups) -> Figure:
    from matplotlib.figure import Figure

    clusters = copies.sizes
    figure = Figure(figsize=(9.2, 1.3 + 0.23 * max(len(rows), 7)), layout="constrained")
    grid = figure.add_gridspec(1, 2 if clusters else 1, width_ratios=(1.9, 1) if clusters else (1,))
    axes = figure.add_subplot(grid[0, 0])
    axes.set_title("Dropped documents, by reason")
    counts = [row.documents for row in rows]
    axes.barh(
        range(len(rows)),
        counts,
        color=[STAGE_COLOURS.get(row.stage, GREY) for row in rows],
        height=0.72,
    )
    axes.set_yticks(range(len(rows)), [words(row.reason) for row in rows])
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    for place, count in enumerate(counts):
        axes.text(count, place, f" {rounded_count(count)}", va="center", fontsize=8.5, color="#374151")
    axes.set_xlim(0, max(counts) * 1.12)
    stages = [name for name in STAGE_COLOURS if any(row.stage == name for row in rows)]
    axes.legend(handles=[_swatch(STAGE_COLOURS[name], name) for name in stages], loc="lower right")
    if clusters:
        _clusters(figure.add_subplot(grid[0, 1]), clusters)
    return figure


def _clusters(axes: Axes, sizes: Sequence[GroupSize]) -> None:
    axes.set_title("Groups of copies")
    axes.grid(visible=False)
    bins = dict.fromkeys(_SIZES, 0)
    for row in sizes:
        bins[next(label for label, most in _SIZES.items() if row.size <= most)] += row.clusters
    while list(bins.values())[-1] == 0:
        bins.popitem()
    axes.bar(list(bins), list(bins.values()), color=STAGE_COLOURS["dedup"], width=0.72)
    for place, count in enumerate(bins.values()):
        if count:
            axes.text(
                place, count, rounded_count(count), ha="center", va="bottom", fontsize=8.5, color="#374151"
            )
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.margins(y=0.12)
    axes.set_xlabel("documents in a group")


_SIZES = {"2": 2, "3": 3, "4–5": 5, "6–10": 10, "11–99": 99, "100+": float("inf")}


def _swatch(colour: str, label: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=colour, label=label)


# ---- lengths ------------------------------------------------------------------------------------------------------


def _lengths(lengths: Lengths, rounds: Sequence[PackedRound]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.2, 3.3), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.set_title("As read, in characters")
    bins = sorted({row.bin for row in lengths.before})
    places = list(range(bins[0], bins[-1] + 1))
    bottom = [0] * len(places)
    for fate in FATES:
        found = {row.bin: row.documents for row in lengths.before if row.fate == fate}
        if found:
            heights = [found.get(place, 0) for place in places]
            left.bar(
                places, heights, bottom=bottom, width=1.0, align="edge", color=_FATE_COLOURS[fate], label=fate
            )
            bottom = [a + b for a, b in zip(bottom, heights, strict=True)]
    left.legend(fontsize=8)
    right.set_title("As trained on, in tokens")
    tokens = {row.bin: row.documents for row in lengths.tokens}
    shown, unit = (
        (tokens, "tokens") if tokens else ({row.bin: row.documents for row in lengths.after}, "characters")
    )
    if shown:
        right.bar(list(shown), list(shown.values()), width=1.0, align="edge", color=KEPT)
    if unit == "characters":
        right.set_title("As kept, in characters")
    _mark_sequence(right, rounds, unit)
    for axes in (left, right):
        _decades(axes)
        axes.grid(visible=False, axis="x")
        axes.set_ylabel("documents")
    return figure


def _mark_sequence(axes: Axes, rounds: Sequence[PackedRound], unit: str) -> None:
    if not rounds or unit != "tokens":
        return
    from math import log10

    length = rounds[-1].sequence_length
    place = log10(max(length, 1)) * BINS_PER_DECADE
    axes.axvline(place, color="#1f2937", linewidth=1, linestyle=(0, (3, 2)))
    axes.text(place, axes.get_ylim()[1], f" a sequence: {length:,}", fontsize=8, va="top", color="#1f2937")


def _decades(axes: Axes) -> None:
    low, high = axes.get_xlim()
    decades = range(int(max(low, 0)) // BINS_PER_DECADE, int(high) // BINS_PER_DECADE + 2)
    axes.set_xticks([one * BINS_PER_DECADE for one in decades], [rounded_count(10**one) for one in decades])
    axes.set_xlim(max(low, 0), high)


# ---- scores and tokens --------------------------------------------------------------------------------------------


def _scores(scores: Sequence[RuleValues]) -> Figure:
    from matplotlib.figure import Figure

    columns = min(len(scores), 4)
    rows = -(-len(scores) // columns)
    figure = Figure(figsize=(9.2, 0.4 + 1.7 * rows), layout="constrained")
    for place, score in enumerate(scores):
        axes = figure.add_subplot(rows, columns, place + 1)
        axes.set_title(words(score.rule), fontsize=8, fontweight="normal")
        edges = score.edges
        axes.stairs(score.before, edges, fill=True, color="#cbd0d8")
        axes.stairs(score.after, edges, fill=True, color=KEPT, alpha=0.85)
        if score.limit is not None:
            axes.axvline(score.limit, color=STAGE_COLOURS["filter"], linewidth=1.2)
        axes.set_yscale("symlog", linthresh=10)
        axes.tick_params(labelsize=7.5)
        axes.yaxis.set_visible(False)
        axes.grid(visible=False)
        axes.spines["left"].set_visible(False)
        axes.locator_params(axis="x", nbins=4)
    return figure


def _read_counts(rounds: Sequence[PackedRound]) -> bool:
    return any(source.epochs is not None for one in rounds for source in one.sources)


def _tokens(rounds: Sequence[PackedRound]) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    sources = sources_of(rounds)
    figure = Figure(figsize=(9.2, 1.1 + 0.5 * len(sources)), layout="constrained")
    axes = figure.add_subplot()
    left = [0.0] * len(sources)

    def stack(label: str, widths: Sequence[float], colour: str) -> None:
        axes.barh(range(len(sources)), widths, left=left, color=colour, label=label, height=0.62)
        left[:] = [a + b for a, b in zip(left, widths, strict=True)]

    for place, number in enumerate(one.round for one in rounds):
        taken = [sum(tokens for own, tokens in packed if own == number) for _, packed in sources]
        stack(f"round {number}", taken, _BLUES[place % len(_BLUES)])
    stack("carried", [last.tokens_carried or 0 for last, _ in sources], "#8c6d1f")
    stack("not taken", [last.tokens_not_taken or 0 for last, _ in sources], "#d6dae0")
    for place, (last, _) in enumerate(sources):
        axes.text(
            left[place],
            place,
            "" if last.epochs is None else f"  read {last.epochs:.2f} ×",
            va="center",
            fontsize=8.5,
        )
    axes.set_yticks(range(len(sources)), [last.source for last, _ in sources])
    axes.invert_yaxis()
    axes.grid(visible=True, axis="x")
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, max([*left, 1.0]) * 1.12)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: rounded_count(value)))
    axes.set_xlabel("tokens")
    axes.legend(ncols=len(rounds) + 2, loc="lower left", bbox_to_anchor=(0, 1), fontsize=8.5)
    return figure


_BLUES = ("#9fbfe0", "#5b8fc7", "#1f5a99", "#123a66")
