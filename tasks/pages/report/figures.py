"""The report's figures, drawn with matplotlib's Agg. The same facts give the same bytes (no date, a fixed salt of
ids).

Matplotlib is imported only when something is drawn: every flow imports this module, and few processes draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from storage.counts import rounded_count
from tasks.pages.blocks import Picture
from tasks.pages.canvas import COLOURS, GREY, Tips, save
from tasks.pages.report.facts import (
    Curve,
    Interval,
    ModelChange,
    ReportFacts,
    ReportModel,
    ResultRow,
    Results,
    Within,
    change_of,
)
from tasks.pages.report.merges import FIGURE, merge_figure, panels_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))


def draw(facts: ReportFacts, directory: Path) -> list[Picture]:
    """Write each figure that the facts allow as SVG and PNG; returns them in order."""
    directory.mkdir(parents=True, exist_ok=True)
    pictures = []
    if any(len(curve.tokens) > 1 for curve in facts.curves):
        save(lambda tips: loss_figure(facts.curves, tips), directory, "loss")
        caption = f"Figure 1. {loss_caption(facts.curves)} Faint: each logged step; strong: running mean."
        pictures.append(Picture("loss", caption))
    if len(facts.models) > 1 and (facts.perplexity or facts.groups):
        save(lambda tips: _efficiency(facts, tips), directory, "efficiency")
        shown = []
        if facts.perplexity:
            shown.append("held-out perplexity of each source over tokens seen, relative to the base model")
        if facts.groups:
            dotted = " (dotted: chance)" if any(row.chance for row in facts.groups) else ""
            shown.append(f"the mean score of each group of benchmarks{dotted}")
        caption = f"Figure 2. Token efficiency: {', and '.join(shown)}. Bands and bars are 95 % intervals."
        pictures.append(Picture("efficiency", caption))
    if any(row.changes for row in facts.benchmarks):
        save(lambda tips: _changes(facts, tips), directory, "changes")
        caption = (
            "Figure 3. Change of each benchmark from the base model, in points, with 95 % intervals. Filled: improved or "
            "worse after correction for the number of benchmarks; hollow: no clear change."
        )
        pictures.append(Picture("changes", caption))
    if facts.merges is not None and panels_of(facts.merges):  # its section names it
        between = facts.merges
        save(lambda tips: merge_figure(between, tips), directory, FIGURE)
    return pictures


def loss_caption(curves: Sequence[Curve]) -> str:
    """What figure 1 shows of these curves: over what, and how the rate went."""
    steps = all(curve.step is not None for curve in curves)
    over = "over optimizer steps (left) and over tokens seen (right)" if steps else "over tokens seen"
    if not any(curve.kind == "branch" for curve in curves):
        return f"Training loss {over}; the rate rises and falls again for each budget."
    trunks = [curve for curve in curves if curve.kind == "trunk"]
    if not trunks:
        return f"Training loss {over}: a branch to each budget, in which the rate decays."
    rising = all(len(one.rate) > 1 and (one.rate[-1] or 0) > (one.rate[-2] or 0) for one in trunks)
    trunk = "the trunk, whose rate still rose when it ended" if rising else "the trunk at constant rate"
    return f"Training loss {over}: {trunk}, and from it a branch to each budget in which the rate decays."


def _counted(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 4, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: rounded_count(value)))


# ---- figure 1 ---------------------------------------------------------------------------------------------------


def loss_figure(curves: Sequence[Curve], tips: Tips) -> Figure:
    """Figure 1: the loss over steps and over tokens, the trunk and its branches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.7), layout="constrained")
    panels = [
        (label, places)
        for label, places in (
            ("optimizer steps", [curve.step for curve in curves]),
            ("tokens seen", [curve.tokens for curve in curves]),
        )
        if None not in places
    ]
    shared = None
    for number, (label, places) in enumerate(panels, 1):
        axes = figure.add_subplot(1, len(panels), number, sharey=shared)
        shared = shared or axes
        _losses(axes, [(curve, x or ()) for curve, x in zip(curves, places, strict=True)], tips)
        axes.set_xlabel(label)
        if number == 1:
            axes.set_ylabel("training loss (nats per token)")
            axes.legend()
        axes.set_xlim(left=0)
        _counted(axes)
    return figure


def _losses(axes: Axes, curves: Sequence[tuple[Curve, Sequence[int]]], tips: Tips) -> None:
    """Loss curves over the given x values: one line for the trunk of each run, and the branches to the budgets."""
    series = list(dict.fromkeys(curve.series for curve, _ in curves))
    branches = [(curve, x) for curve, x in curves if curve.kind == "branch"]
    budgets = list(dict.fromkeys(curve.name for curve, _ in branches))
    for place, run in enumerate(series):
        dashes = _DASHES[place % len(_DASHES)]
        trunk = [(curve, x) for curve, x in curves if curve.kind == "trunk" and curve.series == run]
        places = [value for _, x in trunk for value in x]
        loss = [value for curve, _ in trunk for value in curve.loss]
        label = " · ".join(filter(None, (run, "trunk" if branches else "training")))
        if loss:
            colour = GREY if len(series) == 1 else COLOURS[place % len(COLOURS)]
            _curve(axes, places, loss, colour, dashes, label, tips)
    for curve, x in branches:
        colour = COLOURS[budgets.index(curve.name) % len(COLOURS)]
        dashes = _DASHES[series.index(curve.series) % len(_DASHES)]
        label = " · ".join(filter(None, (curve.series, f"branch to {curve.name}")))
        _curve(axes, x, curve.loss, colour, dashes, label, tips)


def _curve(
    axes: Axes,
    places: Sequence[float],
    loss: Sequence[float | None],
    colour: str,
    dashes: Any,
    label: str,
    tips: Tips,
) -> None:
    values = np.array([np.nan if value is None else value for value in loss], dtype=float)
    width = max(1, len(values) // 50)
    x, y = np.asarray(places, dtype=float), values
    if width > 1:
        axes.plot(places, values, color=colour, linewidth=0.7, alpha=0.3)
        filled = np.nan_to_num(values, nan=float(np.nanmean(values)))
        y = np.convolve(filled, np.ones(width) / width, mode="valid")
        x = x[(width - 1) // 2 :][: len(y)]
    axes.plot(x, y, color=colour, linewidth=1.7, linestyle=dashes, label=label)
    chosen = np.unique(np.linspace(0, len(x) - 1, min(len(x), 24)).astype(int))
    for k in chosen:  # unseen, but the pointer finds them
        tips.point(
            axes, x[k], y[k], f"{label}: loss {y[k]:.3f} at {rounded_count(x[k])}", colour, hidden=True
        )


# ---- figure 2 ---------------------------------------------------------------------------------------------------


def _efficiency(facts: Results, tips: Tips) -> Figure:
    from matplotlib.figure import Figure

    panels = [panel for panel, rows in ((_perplexities, facts.perplexity), (_groups, facts.groups)) if rows]
    figure = Figure(figsize=(9.6, 3.9), layout="constrained")
    for number, panel in enumerate(panels, 1):
        axes = figure.add_subplot(1, len(panels), number)
        panel(axes, facts, tips)
        axes.set_xlabel("tokens seen")
        _counted(axes)
        axes.margins(y=0.12)
        axes.legend(fontsize=8.5, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=3, columnspacing=1.2)
    return figure


def _lines(facts: Results) -> dict[str, list[ReportModel]]:
    """The models of each run, in order of tokens; a single run has the empty name."""
    found: dict[str, list[ReportModel]] = {}
    for model in facts.models:
        for run in model.series or ("",):
            found.setdefault(run, []).append(model)
    return found


def _perplexities(axes: Axes, facts: Results, tips: Tips) -> None:
    axes.set_title("Perplexity, change from base (%)")
    axes.axhline(0, color="#9ca3af", linewidth=1)
    for place, (run, models) in enumerate(_lines(facts).items()):
        for number, row in enumerate(facts.perplexity):
            base = models[0].name
            points: list[tuple[ReportModel, Interval]] = [(models[0], Within(0.0, 0.0, 0.0))]
            points += [
                (model, change) for model in models[1:] if (change := change_of(row, base, model.name))
            ]
            label = " · ".join(filter(None, (run, row.source)))
            _band(axes, points, COLOURS[number % len(COLOURS)], place, label, tips)


def _groups(axes: Axes, facts: Results, tips: Tips) -> None:
    axes.set_title("Mean benchmark score (%)")
    for number, row in enumerate(facts.groups):
        colour = COLOURS[number % len(COLOURS)]
        for place, (run, models) in enumerate(_lines(facts).items()):
            scores = [(model, row.models[model.name]) for model in models]
            points = [(model, Within(one.score, one.low, one.high)) for model, one in scores]
            label = " · ".join(filter(None, (run, row.group)))
            _band(axes, points, colour, place, label, tips)
        if row.chance:
            axes.axhline(100 * row.chance, color=colour, linewidth=1, linestyle=(0, (1, 2.5)))


def _band(
    axes: Axes,
    points: Sequence[tuple[ReportModel, Interval]],
    colour: str,
    place: int,
    label: str,
    tips: Tips,
) -> None:
    x = [model.seen for model, _ in points]
    middle, low, high = zip(*(_percents(value) for _, value in points), strict=True)
    axes.fill_between(x, low, high, color=colour, alpha=0.14, linewidth=0)
    axes.plot(x, middle, color=colour, linewidth=1.7, linestyle=_DASHES[place % len(_DASHES)], label=label)
    axes.vlines(x, low, high, color=colour, linewidth=1.2)
    for k, (model, _) in enumerate(points):
        text = f"{label}, {model.name}: {middle[k]:.1f} [{low[k]:.1f}, {high[k]:.1f}]"
        tips.point(axes, x[k], middle[k], text, colour)


def _percents(one: Interval) -> tuple[float, float, float]:
    """A value and the ends of its interval in percent. Missing ends equal the value."""
    low, high = (one.value if end is None else end for end in (one.low, one.high))
    return 100 * one.value, 100 * low, 100 * high


# ---- figure 3 ---------------------------------------------------------------------------------------------------


def _changes(facts: Results, tips: Tips) -> Figure:
    from matplotlib.figure import Figure

    base = facts.names[0]
    pairs = [pair for pair in facts.pairs if pair[0] == base] or facts.pairs
    rows: list[ResultRow] = [*facts.benchmarks, *facts.means]
    figure = Figure(figsize=(9.6, 1.3 + 0.24 * len(rows) * (0.6 + 0.4 * len(pairs))), layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(0, color="#9ca3af", linewidth=1)
    step = 0.7 / max(1, len(pairs))
    for number, (before, after) in enumerate(pairs):
        colour = COLOURS[number % len(COLOURS)]
        label = after if before == base else f"{before} → {after}"
        for place, row in enumerate(rows):
            if change := change_of(row, before, after):
                y = place + (number - (len(pairs) - 1) / 2) * step
                _interval(axes, change, y, colour, f"{row.label}, {label}", tips)
        axes.plot([], [], color=colour, marker="o", markersize=4.5, linewidth=1.4, label=label)
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("change (points)")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _interval(axes: Axes, change: ModelChange, y: float, colour: str, label: str, tips: Tips) -> None:
    value, low, high = _percents(change)
    axes.hlines(y, low, high, color=colour, linewidth=1.4)
    text = f"{label}: {value:+.1f} [{low:.1f}, {high:.1f}], {change.verdict}"
    tips.point(axes, value, y, text, colour, hollow=not change.clear)
