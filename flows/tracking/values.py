"""Converts artifacts and journals for MLflow: params, numbers, tags, and metrics by the tokens seen."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from flows.tracking.runs import Point
from storage.artifact import Artifact
from tasks.models.heldout import measured
from tasks.training.state.heldout import PREFIX


def scores_of(artifact: Artifact, item: str) -> dict[str, float]:
    """The results of one artifact, under the names that MLflow shows."""
    stats = artifact.stats
    if artifact.stage == "perplexity":
        return {
            f"{name}/{item}": float(stats[name]) for name in ("perplexity", "bits_per_byte") if name in stats
        }
    return {f"eval/{item}/{metric}": float(value) for metric, value in stats["metrics"].items()}


def flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Leaves of nested plain data as (dotted name, text)."""
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from flat(item, f"{prefix}.{name}" if prefix else str(name))
    elif prefix:
        yield prefix, value if isinstance(value, str) else json.dumps(value)


def numbers(value: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Numeric leaves (no booleans) of nested plain data as (path with slashes, number)."""
    if isinstance(value, bool):
        return
    if isinstance(value, int | float):
        yield prefix, float(value)
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from numbers(item, f"{prefix}/{name}" if prefix else str(name))


def facts_of(artifact: Artifact) -> dict[str, str]:
    """Facts of the attempt that made the artifact. They are not part of its identity."""
    known = artifact.manifest.provenance
    names = ("code", "git", "host", "python", "seconds", "flow_run")
    found = {f"made.{name}": str(known[name]) for name in names if known.get(name) is not None}
    execution = known.get("execution") or {}
    found |= {f"execution.{name}": value for name, value in flat(execution) if "." not in name}
    return found | {f"digest.{name}": part.digest for name, part in artifact.manifest.parts.items()}


def moment(artifact: Artifact, which: str) -> int | None:
    """When making the artifact `started` or `ended`, in milliseconds since 1970."""
    text = artifact.manifest.provenance.get(which)
    return int(datetime.fromisoformat(text).timestamp() * 1000) if text else None


def journal_of(artifact: Artifact) -> list[dict[str, Any]]:
    """The rows of a finished training, with the clock-dependent columns if they still exist."""
    import pyarrow.parquet as pq

    rows = pq.read_table(artifact.part("journal").only()).to_pylist()
    clock = artifact.path / "clock.parquet"
    if clock.exists():
        by_step = {row["step"]: row for row in pq.read_table(clock).to_pylist()}
        rows = [row | by_step.get(row["step"], {}) for row in rows]
    return _with_heldout(rows, artifact.path)


def lines_of(journal: Path) -> list[dict[str, Any]]:
    """The complete lines of a journal that is being written."""
    rows = [json.loads(line) for line in journal.read_bytes().split(b"\n")[:-1] if line.strip()]
    return _with_heldout(rows, journal.parent)


def _with_heldout(rows: list[dict[str, Any]], directory: Path) -> list[dict[str, Any]]:
    """The rows with the losses on held-out text in those of their steps; before the first, that of the start."""
    held = {
        int(line["step"]): {
            name: value for name, value in line.items() if name == "tokens" or name.startswith(PREFIX)
        }
        for line in measured(directory)
    }
    if not held or not rows:
        return rows
    start = min(held)
    found = [row | held.get(int(row["step"]), {}) for row in rows]
    return [{"step": start, **held[start]}, *found] if start < int(rows[0]["step"]) else found


def anchored(segments: list[Artifact]) -> list[tuple[list[dict[str, Any]], int]]:
    """(rows, start of the first row in milliseconds since 1970) of trainings' journals, oldest first.

    The manifest of an interrupted training gives the start of its last attempt only, but its end is certain. So each
    journal is placed to end before its own end and before the start of the next one. No step lies before an earlier step.
    """
    found: list[tuple[list[dict[str, Any]], int]] = []
    for artifact in reversed(segments):
        rows = journal_of(artifact)
        end = moment(artifact, "ended") or 0
        end = min(end, found[-1][1]) if found else end
        spent = sum(float(row.get("seconds") or 0.0) for row in rows)
        found.append((rows, end - math.ceil(spent * 1000)))
    return found[::-1]


def rows_of(
    rows: list[dict[str, Any]],
    prefix: str,
    anchor: int,
    after: int,
    until: int | None = None,
    wanted: Callable[[Mapping[str, Any]], bool] = lambda row: True,
    columns: Sequence[str] | None = None,
) -> Iterator[list[Point]]:
    """A journal's steps as points, after `after` tokens and up to the step `until`.

    The time of a point is `anchor` plus the seconds of all steps up to it, so that every publisher writes the same time.
    `wanted` chooses rows, `columns` what is taken of them.
    """
    spent = 0.0
    for row in rows:
        spent += float(row.get("seconds") or 0.0)
        if int(row["tokens"]) <= after or (until is not None and int(row["step"]) > until) or not wanted(row):
            continue
        yield [
            Point(f"{prefix}/{name}", float(value), int(row["tokens"]), anchor + int(spent * 1000))
            for name, value in row.items()
            if name not in ("step", "tokens")
            and (columns is None or name in columns)
            and isinstance(value, int | float)
            and not isinstance(value, bool)
        ]


CURVE = ("loss", "lr", "tokens_per_second", "grad_norm")
"""What the flow run's own charts show of training."""
_MOST = 200
"""Steps of a segment that they show."""


def curve_of(
    segment: Mapping[str, Any],
    rows: list[dict[str, Any]],
    anchor: int,
    last: Callable[[str], int],
    until: int | None = None,
) -> Iterator[list[Point]]:
    """The training curve of a segment for the flow run: about 200 steps of it, and each with a loss on held-out text.
    `segment` is its configuration.

    Trunk and rounds are `train/…`, the branches, whose tokens the trunk goes through too, `decay/…`. `last` gives the last
    tokens that a metric has already.
    """
    if segment["kind"] == "pretrain":
        return iter(())
    prefix = "decay" if segment["kind"] == "decay" else "train"
    end = int(segment["last_step"])
    every = max(1, -(-(end - int(segment["first_step"])) // _MOST))

    def wanted(row: Mapping[str, Any]) -> bool:
        step = int(row["step"])
        return step % every == 0 or step == end or any(name.startswith(PREFIX) for name in row)

    columns = [*CURVE, *{name for row in rows for name in row if name.startswith(PREFIX)}]
    return rows_of(rows, prefix, anchor, last(f"{prefix}/loss"), until, wanted, columns)
