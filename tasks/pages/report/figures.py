"""The report's figures, drawn with matplotlib's Agg: the same facts give the same bytes (no date, a fixed salt of ids).

Matplotlib is imported when something is drawn: every flow imports this module, and few processes draw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.pages.canvas import COLOURS, GREY, Tips, save
from tasks.pages.wording import count_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Json = dict[str, Any]
_DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))


def draw(facts: Json, directory: Path) -> list[Json]:
    """Write each figure that the facts allow as SVG and PNG; returns [{name, caption}] in order."""
    directory.mkdir(parents=True, exist_ok=True)
    figures = []
    if any(len(curve["tokens"]) > 1 for curve in facts["curves"]):
        save(lambda tips: _loss(facts["curves"], tips), directory, "loss")
        caption = (
            "Figure 1. Training loss over optimizer steps (left) and over tokens seen (right): the trunk at constant rate, "
            "and from it a branch to each budget in which the rate decays. Faint: each logged step; strong: running mean."
        )
        figures.append({"name": "loss", "caption": caption})
    if len(facts["models"]) > 1 and (facts["perplexity"] or facts["groups"]):
        save(lambda tips: _efficiency(facts, tips), directory, "efficiency")
        caption = (
            "Figure 2. Token efficiency. Held-out perplexity of each source over tokens seen, relative to the base model, "
            "and the mean score of each group of benchmarks (dotted: chance). Bands and bars are 95 % intervals."
        )
        figures.append({"name": "efficiency", "caption": caption})
    if any(row["changes"] for row in facts["benchmarks"]):
        save(lambda tips: _changes(facts, tips), directory, "changes")
        caption = (
            "Figure 3. Change of each benchmark from the base model, in points, with 95 % intervals. Filled: improved or "
            "worse after correction for the number of benchmarks; hollow: no clear change."
        )
        figures.append({"name": "changes", "caption": caption})
    return figures


def _counted(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 4, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count_text(value)))


# ---- figure 1 ---------------------------------------------------------------------------------------------------


def _loss(curves: Sequence[Json], tips: Tips) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.7), layout="constrained")
    panels = [("step", "optimizer steps"), ("tokens", "tokens seen")]
    panels = [panel for panel in panels if all(panel[0] in curve for curve in curves)]
    shared = None
    for number, (column, label) in enumerate(panels, 1):
        axes = figure.add_subplot(1, len(panels), number, sharey=shared)
        shared = shared or axes
        _losses(axes, curves, column, tips)
        axes.set_xlabel(label)
        if number == 1:
            axes.set_ylabel("training loss (nats per token)")
            axes.legend()
        axes.set_xlim(left=0)
        _counted(axes)
    return figure


def _losses(axes: Axes, curves: Sequence[Json], column: str, tips: Tips) -> None:
    series = list(dict.fromkeys(curve.get("series", "") for curve in curves))
    branches = [curve for curve in curves if curve["kind"] == "branch"]
    budgets = list(dict.fromkeys(curve["name"] for curve in branches))
    for place, run in enumerate(series):
        dashes = _DASHES[place % len(_DASHES)]
        trunk = [c for c in curves if c["kind"] == "trunk" and c.get("series", "") == run]
        points = {name: [v for c in trunk for v in c[name]] for name in (column, "loss")}
        label = " · ".join(filter(None, (run, "trunk" if branches else "training")))
        if points["loss"]:
            colour = GREY if len(series) == 1 else COLOURS[place % len(COLOURS)]
            _curve(axes, points[column], points["loss"], colour, dashes, label, tips)
    for curve in branches:
        colour = COLOURS[budgets.index(curve["name"]) % len(COLOURS)]
        dashes = _DASHES[series.index(curve.get("series", "")) % len(_DASHES)]
        _curve(
            axes,
            curve[column],
            curve["loss"],
            colour,
            dashes,
            " · ".join(filter(None, (curve.get("series"), f"branch to {curve['name']}"))),
            tips,
        )


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
        tips.point(axes, x[k], y[k], f"{label}: loss {y[k]:.3f} at {count_text(x[k])}", colour, hidden=True)


# ---- figure 2 ---------------------------------------------------------------------------------------------------


def _efficiency(facts: Json, tips: Tips) -> Figure:
    from matplotlib.figure import Figure

    panels = [
        panel for panel, rows in ((_perplexities, facts["perplexity"]), (_groups, facts["groups"])) if rows
    ]
    figure = Figure(figsize=(9.6, 3.9), layout="constrained")
    for number, panel in enumerate(panels, 1):
        axes = figure.add_subplot(1, len(panels), number)
        panel(axes, facts, tips)
        axes.set_xlabel("tokens seen")
        _counted(axes)
        axes.margins(y=0.12)
        axes.legend(fontsize=8.5, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=3, columnspacing=1.2)
    return figure


def _lines(facts: Json) -> dict[str, list[Json]]:
    """The models of each run, in order of tokens; one nameless run where they are all of one."""
    found: dict[str, list[Json]] = {}
    for model in facts["models"]:
        for run in model.get("series", [""]):
            found.setdefault(run, []).append(model)
    return found


def _perplexities(axes: Axes, facts: Json, tips: Tips) -> None:
    axes.set_title("Perplexity, change from base (%)")
    axes.axhline(0, color="#9ca3af", linewidth=1)
    for place, (run, models) in enumerate(_lines(facts).items()):
        for number, row in enumerate(facts["perplexity"]):
            changes = {
                change["to"]: change for change in row["changes"] if change["from"] == models[0]["name"]
            }
            nothing = {"value": 0.0, "low": 0.0, "high": 0.0}
            chosen = [model for model in models if model["name"] in changes or model is models[0]]
            values = [changes.get(model["name"], nothing) for model in chosen]
            label = " · ".join(filter(None, (run, row["source"])))
            _band(axes, chosen, values, "value", COLOURS[number % len(COLOURS)], place, label, tips)


def _groups(axes: Axes, facts: Json, tips: Tips) -> None:
    axes.set_title("Mean benchmark score (%)")
    for number, row in enumerate(facts["groups"]):
        colour = COLOURS[number % len(COLOURS)]
        for place, (run, models) in enumerate(_lines(facts).items()):
            values = [row["models"][model["name"]] for model in models]
            label = " · ".join(filter(None, (run, row["group"])))
            _band(axes, models, values, "score", colour, place, label, tips)
        if row["chance"]:
            axes.axhline(100 * row["chance"], color=colour, linewidth=1, linestyle=(0, (1, 2.5)))


def _band(
    axes: Axes,
    models: Sequence[Json],
    values: Sequence[Mapping[str, Any]],
    key: str,
    colour: str,
    place: int,
    label: str,
    tips: Tips,
) -> None:
    x = [model["seen"] for model in models]
    middle = [100 * value[key] for value in values]
    low, high = (
        [100 * (value[key] if value[end] is None else value[end]) for value in values]
        for end in ("low", "high")
    )
    axes.fill_between(x, low, high, color=colour, alpha=0.14, linewidth=0)
    axes.plot(x, middle, color=colour, linewidth=1.7, linestyle=_DASHES[place % len(_DASHES)], label=label)
    axes.vlines(x, low, high, color=colour, linewidth=1.2)
    for k, model in enumerate(models):
        text = f"{label}, {model['name']}: {middle[k]:.1f} [{low[k]:.1f}, {high[k]:.1f}]"
        tips.point(axes, x[k], middle[k], text, colour)


# ---- figure 3 ---------------------------------------------------------------------------------------------------


def _changes(facts: Json, tips: Tips) -> Figure:
    from matplotlib.figure import Figure

    base = facts["models"][0]["name"]
    pairs = [pair for pair in facts["pairs"] if pair[0] == base] or facts["pairs"]
    rows = [(row["benchmark"], row) for row in facts["benchmarks"]]
    rows += [(f"mean, {row['group']}", row) for row in facts["groups"] if len(row["benchmarks"]) > 1]
    figure = Figure(figsize=(9.6, 1.3 + 0.24 * len(rows) * (0.6 + 0.4 * len(pairs))), layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(0, color="#9ca3af", linewidth=1)
    step = 0.7 / max(1, len(pairs))
    for number, pair in enumerate(pairs):
        colour = COLOURS[number % len(COLOURS)]
        label = pair[1] if pair[0] == base else f"{pair[0]} → {pair[1]}"
        for place, (name, row) in enumerate(rows):
            found = [change for change in row["changes"] if [change["from"], change["to"]] == list(pair)]
            if found:
                _interval(
                    axes,
                    found[0],
                    place + (number - (len(pairs) - 1) / 2) * step,
                    colour,
                    f"{name}, {label}",
                    tips,
                )
        axes.plot([], [], color=colour, marker="o", markersize=4.5, linewidth=1.4, label=label)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("change (points)")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _interval(axes: Axes, change: Json, y: float, colour: str, label: str, tips: Tips) -> None:
    value = 100 * change["value"]
    low, high = (value if change[end] is None else 100 * change[end] for end in ("low", "high"))
    axes.hlines(y, low, high, color=colour, linewidth=1.4)
    text = f"{label}: {value:+.1f} [{low:.1f}, {high:.1f}], {change['verdict']}"
    tips.point(axes, value, y, text, colour, hollow=change["verdict"] == "no clear change")
