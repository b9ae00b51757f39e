"""The picture of what went on from stage to stage: a band that narrows where something is taken out."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tasks.pages.canvas import COLOURS, GREY
from tasks.pages.wording import count_text, size_text, words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Json = dict[str, Any]
KEPT, _DEDUP, HELD, _DECONTAMINATE, _INGEST, _FILTER = COLOURS
STAGE_COLOURS = {"ingest": _INGEST, "dedup": _DEDUP, "filter": _FILTER, "decontaminate": _DECONTAMINATE}


def draw_flow(stages: Sequence[Json]) -> Figure:
    """Two pictures, of documents and of text; `stages` as of `data_page_flow.flow`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.2, 6.0), layout="constrained")
    for place, (kind, shown) in enumerate((("documents", count_text), ("text", size_text))):
        axes = figure.add_subplot(2, 1, place + 1)
        _sankey(axes, stages, kind, shown)
        axes.set_title("Documents" if kind == "documents" else "Text")
    return figure


def _sankey(axes: Axes, stages: Sequence[Json], kind: str, shown: Callable[[float], str]) -> None:
    """Bands from left to right, one column a stage; what is taken out bends down at its stage."""
    columns = [stage for stage in stages if f"{kind}_out" in stage]
    came_in = [float(stage.get(f"{kind}_in") or stage[f"{kind}_out"]) for stage in columns]
    whole = max(*came_in, 1.0)
    axes.set_axis_off()
    last = len(columns)
    for x, stage in enumerate(columns):
        out = stage[f"{kind}_out"] / whole
        came = came_in[x] / whole
        _band(axes, x, x + 1, (1 - out, 1), (1 - out, 1), KEPT, 0.62)
        bottom = 1 - came
        axes.add_patch(_bar(x, bottom, came))
        level = 1 - out
        for what, colour in (("held_out", HELD), ("dropped", STAGE_COLOURS.get(stage["stage"], GREY))):
            share = max(stage.get(f"{kind}_{what}", 0), 0) / whole
            if share <= 0:
                continue
            down = 0.16 + 0.14 * (what == "dropped" and stage.get(f"{kind}_held_out", 0) > 0)
            _band(axes, x, x + 0.34, (level - share, level), (-down - share, -down), colour, 0.75)
            words_ = f"{'held out' if what == 'held_out' else 'dropped'} {shown(stage[f'{kind}_{what}'])}"
            axes.text(x + 0.36, -down - share / 2, words_, color=colour, va="center", fontsize=8.5)
            if what == "dropped" and kind == "documents":
                _why(axes, x + 0.36, -down - share / 2, stage["reasons"])
            level -= share
        axes.text(x + 0.04, 1.03, f"{stage['stage']}", fontsize=9, fontweight="bold", color="#1f2937")
        axes.text(
            x + 0.1,
            1 - out / 2,
            shown(stage[f"{kind}_out"]),
            color="white",
            va="center",
            fontsize=9,
            fontweight="bold",
        )
    end = columns[-1][f"{kind}_out"]
    axes.text(
        last + 0.05,
        1 - end / whole / 2,
        f"{shown(end)}\n{100 * end / whole:.0f} %",
        va="center",
        fontsize=9.5,
        color=KEPT,
        fontweight="bold",
    )
    axes.set_xlim(-0.05, last + 0.45)
    axes.set_ylim(-0.82 if kind == "documents" else -0.52, 1.14)


def _why(axes: Axes, x: float, y: float, reasons: Mapping[str, int]) -> None:
    """The two commonest reasons, below what was dropped."""
    first = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    shown = [textwrap.fill(f"{words(reason)} {count_text(count)}", 29) for reason, count in first[:2]]
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
