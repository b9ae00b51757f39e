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
from typing import Any

from storage.artifact import Artifact
from storage.counts import rounded_count
from tasks.pages.canvas import as_svg
from tasks.pages.report.facts import Curve
from tasks.pages.report.figures import loss_caption, loss_figure

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


def training_page(segments: Sequence[Segment]) -> str | None:
    """What training shows so far, in Markdown; None before two steps were logged."""
    read = [(segment, segment.rows()) for segment in segments]
    read = [(segment, rows) for segment, rows in read if rows]
    curves = [_curve(segment, _thinned(rows)) for segment, rows in read]
    if not any(len(curve.tokens) > 1 for curve in curves):
        return None
    svg = as_svg(lambda tips: loss_figure(curves, tips), "loss")
    lines = [f"![{loss_caption(curves)}]({picture('svg', svg.encode())})", "", loss_caption(curves), ""]
    lines += [
        "| segment | step | tokens seen | loss | rate | tokens/s | gradient norm | skipped |",
        "| --- " + "| ---: " * 7 + "|",
    ]
    for segment, rows in read:
        last, skipped = rows[-1], sum(bool(row.get("skipped")) for row in rows)
        cells = [
            f"{segment.stage} {segment.name}",
            f"{last['step']:,}",
            rounded_count(last.get("tokens") or 0),
            _number(last.get("loss"), ".3f"),
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


def _thinned(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every n-th row and the last."""
    every = -(-len(rows) // _MOST_POINTS)
    return rows if every <= 1 else [*rows[:-1:every], rows[-1]]


def _number(value: Any, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else ""
