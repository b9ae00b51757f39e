"""The training curve of a run at work, as a page of Markdown: figure 1 of the report, of the journals so far.

A segment at work is read from its `journal.jsonl`, a finished one from its artifact. Long journals are thinned.
"""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storage.artifact import Artifact
from storage.counts import rounded_count
from tasks.models.heldout import measured, sources_of
from tasks.pages.canvas import COLOURS, Tips, as_svg
from tasks.pages.report.facts import Curve
from tasks.pages.report.figures import loss_caption, loss_figure
from tasks.training.state.heldout import PREFIX

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_POINTS = 2_000
"""Points of a segment that are drawn."""
_COLUMNS = ("step", "tokens", "loss", "lr")


@dataclass(frozen=True)
class Segment:
    """A training segment: the model it is for, and where its journal is: in its artifact, or in its work directory."""

    name: str
    stage: str
    work: Path
    artifact: Artifact | None = None
    peak: float | None = None

    def rows(self) -> list[dict[str, Any]]:
        """The logged steps, oldest first."""
        if self.artifact is not None:
            import pyarrow.parquet as pq

            rows: list[dict[str, Any]] = pq.read_table(self.artifact.part("journal").only()).to_pylist()
            return rows
        found = []
        with contextlib.suppress(OSError, ValueError):
            for line in (self.work / "journal.jsonl").read_bytes().split(b"\n")[:-1]:
                found.append(json.loads(line))
        return [row for row in found if "step" in row]

    def held_out(self) -> list[dict[str, Any]]:
        """What was measured on held-out text so far, oldest first."""
        return measured(self.work if self.artifact is None else self.artifact.path)


def training_page(segments: Sequence[Segment]) -> str | None:
    """What training shows so far, in Markdown; None before two steps were logged."""
    read = [(segment, segment.rows()) for segment in segments]
    read = [(segment, rows) for segment, rows in read if rows]
    curves = [_curve(segment, _thinned(rows)) for segment, rows in read]
    if not any(len(curve.tokens) > 1 for curve in curves):
        return None
    held = [segment.held_out() for segment, _ in read]
    sources = sources_of([line for lines in held for line in lines])

    def figure(tips: Tips) -> Figure:
        made = loss_figure(curves, tips)
        _draw_held_out(made, held, sources, tips)
        return made

    svg = as_svg(figure, "loss")
    caption = loss_caption(curves)
    if sources:
        caption += " Dots: the loss on a fixed part of each source's held-out text."
    lines = [f"![{caption}]({picture('svg', svg.encode())})", "", caption, ""]
    columns = ["segment", "step", "tokens seen", "loss", *(f"held out: {name}" for name in sources)]
    columns += ["rate", "tokens/s", "gradient norm", "skipped"]
    lines += [f"| {' | '.join(columns)} |", "| --- " + "| ---: " * (len(columns) - 1) + "|"]
    for (segment, rows), measurements in zip(read, held, strict=True):
        newest = measurements[-1] if measurements else {}
        last, skipped = rows[-1], sum(bool(row.get("skipped")) for row in rows)
        cells = [
            f"{segment.stage} {segment.name}",
            f"{last['step']:,}",
            rounded_count(last.get("tokens") or 0),
            _number(last.get("loss"), ".3f"),
            *(_number(newest.get(f"{PREFIX}{name}"), ".3f") for name in sources),
            _number(last.get("lr"), ".3g"),
            _number(last.get("tokens_per_second"), ",.0f"),
            _number(last.get("grad_norm"), ".2f"),
            f"{skipped:,}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def picture(kind: str, data: bytes) -> str:
    """A picture as an address that holds all of it, for pages that cannot reach files."""
    kinds = {"svg": "image/svg+xml", "png": "image/png"}
    return f"data:{kinds[kind]};base64,{base64.b64encode(data).decode()}"


def _curve(segment: Segment, rows: Sequence[dict[str, Any]]) -> Curve:
    columns: dict[str, list[Any]] = {name: [row.get(name) for row in rows] for name in _COLUMNS}
    return Curve(
        name=segment.name,
        kind="branch" if segment.stage == "decay" else "trunk",
        series="",
        tokens=columns["tokens"],
        loss=columns["loss"],
        step=columns["step"],
        rate=columns["lr"],
        peak=segment.peak,
    )


def _draw_held_out(
    figure: Figure, held: Sequence[Sequence[dict[str, Any]]], sources: Sequence[str], tips: Tips
) -> None:
    """Draw what was measured of each segment into both panels of figure 1: a line with dots for each source."""
    for axes in figure.axes:
        place = "step" if axes.get_xlabel() == "optimizer steps" else "tokens"
        for number, source in enumerate(sources):
            colour = COLOURS[-1 - number % len(COLOURS)]
            label = f"held out: {source}"
            for measurements in held:
                points = [
                    (line[place], line[f"{PREFIX}{source}"])
                    for line in measurements
                    if line.get(f"{PREFIX}{source}") is not None
                ]
                if points:
                    x, y = zip(*points, strict=True)
                    axes.plot(x, y, color=colour, linewidth=1.0, linestyle=":", label=label)
                    label = ""
                for x_, y_ in points:
                    words = f"held out, {source}: {y_:.3f} at {rounded_count(x_)}"
                    tips.point(axes, x_, y_, words, colour)
        if sources and axes.get_legend() is not None:
            axes.legend()


def _thinned(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every n-th row and the last."""
    every = -(-len(rows) // _MOST_POINTS)
    return rows if every <= 1 else [*rows[:-1:every], rows[-1]]


def _number(value: Any, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else ""
