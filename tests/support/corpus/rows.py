"""A whole file as the readers give it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from tasks.corpus.reading.batches import Fault, Unit
from tasks.corpus.reading.origins import survey_file
from tasks.corpus.reading.readers import read_unit


def read(path: Path, text_field: str = "text") -> tuple[list[str], list[Fault], list[dict]]:
    """Texts, faults and metas of a whole file, all of its units, with conservation checked for each batch."""
    member = survey_file(path, text_field)
    texts: list[str] = []
    faults: list[Fault] = []
    metas: list[dict] = []
    for piece in range(len(member.estimates)):
        following = 0
        for batch in read_unit(Unit(0, path.name, member.kind, piece, path), text_field):
            rows_aside = [fault.row for fault in batch.faults if fault.row is not None]
            assert sorted([*batch.rows.tolist(), *rows_aside]) == list(
                range(batch.first, batch.first + batch.count)
            )
            if batch.count:
                assert batch.first == following
                following += batch.count
            texts += batch.texts.to_pylist()
            metas += [json.loads(meta) for meta in batch.metas.to_pylist()]
            faults += batch.faults
    return texts, faults, metas


def reasons(faults: list[Fault]) -> dict[str, int]:
    return dict(Counter(fault.reason for fault in faults))
