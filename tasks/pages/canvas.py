"""How figures look and are saved: one style, the same bytes for the same facts, tooltips on points.

A browser shows a `<title>` inside an SVG when the pointer rests on its element; no script is needed.
"""

from __future__ import annotations

import contextlib
import html
import io
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#1f5a99", "#c2571a", "#3d7f3d", "#8a4f9e", "#8c6d1f", "#a03050")
GREY = "#6b7280"
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
    "figure.facecolor": "white",
    "svg.fonttype": "path",
}


class Tips:
    """Points of a figure, each with a tooltip."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.texts: dict[str, str] = {}

    def point(
        self,
        axes: Axes,
        x: float,
        y: float,
        text: str,
        colour: str,
        *,
        hollow: bool = False,
        hidden: bool = False,
    ) -> None:
        """Draw a point. `hollow`: only its rim is drawn; `hidden`: it is invisible, but has a tooltip."""
        [line] = axes.plot(
            [x],
            [y],
            marker="o",
            linestyle="none",
            markersize=7 if hidden else 5,
            color=colour,
            markerfacecolor="white" if hollow else colour,
            markeredgewidth=0 if hidden else 1.2,
            alpha=0.004 if hidden else 1.0,
            zorder=4,
        )
        mark = f"tip-{self._name}-{len(self.texts)}"
        line.set_gid(mark)
        self.texts[mark] = text

    def write_into(self, svg: str) -> str:
        """The SVG with a `<title>` in each point, and without matplotlib's metadata."""
        svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
        return re.sub(
            r'<g id="(tip-[a-z]+-\d+)">',
            lambda found: f"{found.group(0)}<title>{html.escape(self.texts[found.group(1)])}</title>",
            svg,
        )


_DRAWING = threading.Lock()
"""Matplotlib's settings belong to the process: two threads must not draw at once."""


def save(build: Callable[[Tips], Figure], directory: Path, name: str) -> None:
    """Save the figure that `build` makes as <name>.svg and <name>.png."""
    with _styled(name):
        figure, svg = _drawn(build, name)
        (directory / f"{name}.svg").write_text(svg, encoding="utf-8")
        figure.set_layout_engine("none")  # keep the layout just computed
        figure.savefig(directory / f"{name}.png", format="png", dpi=150, metadata={"Software": None})


def as_svg(build: Callable[[Tips], Figure], name: str) -> str:
    """The figure that `build` makes, as the text of an SVG."""
    with _styled(name):
        return _drawn(build, name)[1]


@contextlib.contextmanager
def _styled(name: str) -> Iterator[None]:
    import matplotlib

    with _DRAWING, matplotlib.rc_context({**_STYLE, "svg.hashsalt": f"onward-{name}"}):
        yield


def _drawn(build: Callable[[Tips], Figure], name: str) -> tuple[Figure, str]:
    tips, drawn = Tips(name), io.StringIO()
    figure = build(tips)
    figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
    return figure, tips.write_into(drawn.getvalue())
