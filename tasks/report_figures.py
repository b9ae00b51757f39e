"""The report's figures, drawn with matplotlib's Agg: the same facts give the same bytes (no date, a fixed salt of ids).

Matplotlib is imported when something is drawn: every flow imports this module, and few processes draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Json = dict[str, Any]
_COLOURS = ("#1f5a99", "#c2571a", "#3d7f3d", "#8a4f9e", "#8c6d1f", "#a03050")
_TRUNK = "#6b7280"
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e7eb",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.edgecolor": "#9ca3af",
    "axes.labelcolor": "#374151",
    "xtick.color": "#4b5563",
    "ytick.color": "#4b5563",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "svg.fonttype": "path",
}


def draw(facts: Json, directory: Path) -> list[Json]:
    """Write each figure that the facts allow as SVG and PNG; returns [{name, caption}] in order."""
    directory.mkdir(parents=True, exist_ok=True)
    figures = []
    if any(len(curve["tokens"]) > 1 for curve in facts["curves"]):
        _save(_loss(facts["curves"]), directory, "loss")
        caption = (
            "Training loss over tokens seen: the trunk at constant rate, and from it a branch to each budget in which the "
            "rate decays. Faint: each logged step; strong: running mean."
        )
        figures.append({"name": "loss", "caption": caption})
    if len(facts["models"]) > 1 and (facts["perplexity"] or facts["groups"]):
        _save(_efficiency(facts), directory, "efficiency")
        caption = (
            "Left: held-out perplexity of each source over tokens seen, relative to the base model. Right: mean score of "
            "each group of benchmarks. Bands and bars are two standard errors."
        )
        figures.append({"name": "efficiency", "caption": caption})
    return figures


def _save(build: Any, directory: Path, name: str) -> None:
    import matplotlib

    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": f"onward-{name}"}):
        figure = build()
        figure.savefig(directory / f"{name}.svg", format="svg", metadata={"Date": None, "Creator": None})
        figure.savefig(directory / f"{name}.png", format="png", dpi=150, metadata={"Software": None})


def count_text(value: float) -> str:
    """A count as a reader says it: 400K, 1M, 1.5B."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"


def _loss(curves: Sequence[Json]) -> Any:
    def build() -> Figure:
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter

        figure = Figure(figsize=(8.4, 3.6), layout="constrained")
        axes = figure.add_subplot()
        branches = [curve for curve in curves if curve["kind"] == "branch"]
        trunk = [curve for curve in curves if curve["kind"] == "trunk"]
        tokens = [token for curve in trunk for token in curve["tokens"]]
        loss = [value for curve in trunk for value in curve["loss"]]
        _curve(axes, tokens, loss, _TRUNK, "trunk" if branches else "training")
        for number, curve in enumerate(branches):
            colour = _COLOURS[number % len(_COLOURS)]
            _curve(axes, curve["tokens"], curve["loss"], colour, f"branch to {curve['name']}")
        axes.set_xlabel("tokens seen")
        axes.set_ylabel("training loss (nats per token)")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count_text(value)))
        axes.set_xlim(left=0)
        axes.legend()
        return figure

    return build


def _curve(
    axes: Axes, tokens: Sequence[float], loss: Sequence[float | None], colour: str, label: str
) -> None:
    values = np.array([np.nan if value is None else value for value in loss], dtype=float)
    width = max(1, len(values) // 50)
    if width == 1:
        axes.plot(tokens, values, color=colour, linewidth=1.2, label=label)
    else:
        axes.plot(tokens, values, color=colour, linewidth=0.8, alpha=0.35)
        smooth = np.convolve(
            np.nan_to_num(values, nan=float(np.nanmean(values))), np.ones(width) / width, mode="valid"
        )
        centres = np.asarray(tokens, dtype=float)[(width - 1) // 2 :][: len(smooth)]
        axes.plot(centres, smooth, color=colour, linewidth=1.8, label=label)


def _efficiency(facts: Json) -> Any:
    def build() -> Figure:
        from matplotlib.figure import Figure
        from matplotlib.ticker import FuncFormatter

        panels = [
            panel
            for panel, rows in ((_perplexities, facts["perplexity"]), (_groups, facts["groups"]))
            if rows
        ]
        figure = Figure(figsize=(8.4, 3.7), layout="constrained")
        for number, panel in enumerate(panels, 1):
            axes = figure.add_subplot(1, len(panels), number)
            panel(axes, facts)
            axes.set_xlabel("tokens seen")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count_text(value)))
            axes.margins(y=0.12)
            axes.legend(
                fontsize=8.5, loc="upper center", bbox_to_anchor=(0.5, -0.19), ncols=4, columnspacing=1.2
            )
        return figure

    return build


def _perplexities(axes: Axes, facts: Json) -> None:
    axes.set_title("Perplexity, change from base (%)")
    axes.axhline(0, color="#9ca3af", linewidth=1)
    seen = {model["name"]: model["seen"] for model in facts["models"]}
    for number, row in enumerate(facts["perplexity"]):
        names = [name for name in seen if name in row["models"]]
        changes = [row["models"][name]["change"] or {"value": 0.0, "stderr": 0.0} for name in names]
        middle = np.array([100 * change["value"] for change in changes])
        error = np.array([200 * change["stderr"] for change in changes])
        _band(
            axes,
            [seen[name] for name in names],
            middle,
            error,
            _COLOURS[number % len(_COLOURS)],
            row["source"],
        )


def _groups(axes: Axes, facts: Json) -> None:
    axes.set_title("Mean benchmark score (%)")
    seen = {model["name"]: model["seen"] for model in facts["models"]}
    for number, row in enumerate(facts["groups"]):
        colour = _COLOURS[number % len(_COLOURS)]
        values = [row["models"][name] for name in seen]
        middle = np.array([100 * value["score"] for value in values])
        error = np.array([200 * value["stderr"] for value in values])
        _band(axes, list(seen.values()), middle, error, colour, row["group"])
        axes.axhline(
            100 * row["chance"],
            color=colour,
            linewidth=1,
            linestyle=(0, (2, 3)),
            label="chance" if number == 0 else None,
        )


def _band(
    axes: Axes, x: Sequence[float], middle: np.ndarray, error: np.ndarray, colour: str, label: str
) -> None:
    axes.fill_between(x, middle - error, middle + error, color=colour, alpha=0.14, linewidth=0)
    axes.errorbar(
        x, middle, yerr=error, color=colour, linewidth=1.6, marker="o", markersize=4, capsize=2.5, label=label
    )
