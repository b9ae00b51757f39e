"""A training without a model: it takes its time, keeps a journal with its clock, and may be killed on its way once."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from storage.artifact import Input
from storage.draft import Draft
from storage.errors import StageFailed
from storage.settings import Settings, execution, identity

STAGE = "train"
VERSION = 1


class SegmentConfig(Settings):
    """Steps `first` to `last`."""

    first: int = identity(1, description="first step")
    last: int = identity(4, description="last step")
    killed_at: int = execution(0, description="step before which it ends badly, where it has just begun")


@dataclass(frozen=True)
class SegmentInputs:
    """What a training lists."""

    manifests: tuple[Input, ...] = ()


@dataclass(frozen=True)
class SegmentStats:
    """Tokens seen."""

    tokens_seen: int


def run(config: SegmentConfig, inputs: SegmentInputs, draft: Draft) -> SegmentStats:
    journal = draft.path / "journal.jsonl"
    rows = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
    resumed = bool(rows)
    for step in range(config.first + len(rows), config.last + 1):
        if step == config.killed_at and not resumed:
            raise StageFailed("killed")
        began = time.monotonic()
        time.sleep(0.2)
        rows.append(
            {"step": step, "tokens": 100 * step, "loss": 1 / step, "seconds": time.monotonic() - began}
        )
        journal.write_text("".join(json.dumps(row) + "\n" for row in rows))
    known = ("step", "tokens", "loss")
    pq.write_table(
        pa.Table.from_pylist([{n: row[n] for n in known} for row in rows]), draft.path / "journal.parquet"
    )
    clock = [{"step": row["step"], "seconds": row["seconds"]} for row in rows]
    pq.write_table(pa.Table.from_pylist(clock), draft.path / "clock.parquet")
    (draft.path / "export").mkdir(exist_ok=True)
    (draft.path / "export" / "weights").write_text(str(config.last))
    draft.part("journal", "journal.parquet")
    draft.part("export", "export")
    draft.volatile("clock.parquet", "journal.jsonl")
    return SegmentStats(100 * config.last)
