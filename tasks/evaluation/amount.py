"""How many tokens an evaluation computes, counted by its own plan of work, without computing them.

A rehearsal asks a few questions, and the real run many: where questions of a subject begin with the same examples, many
take less each than few do, because that beginning is computed once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from storage.draft import Draft
from tasks.evaluation import harness
from tasks.evaluation.batches import Unit
from tasks.evaluation.evaluate import EvaluateConfig, EvaluateInputs, requests_of
from tasks.evaluation.model import device_of, export_directory, load_model, quiet
from tasks.evaluation.scorer import Scorer


class _Counting(Scorer):
    """Plans as the scorer does. Each answer gets the same value in place of the model's."""

    def _of_units(self, units: list[Unit]) -> Iterator[tuple[Unit, Sequence[Sequence[Any]], bool]]:
        for unit in units:
            yield unit, [(0.0, False) for batch in unit.batches for row in batch for _ in row.answers], False


def tokens_of(config: EvaluateConfig, inputs: EvaluateInputs, scratch: Path) -> tuple[int, int]:
    """(tokens, questions) of an evaluation. `scratch`: a directory for files that tasks need."""
    with quiet(), harness.templates():
        built = requests_of(config, inputs, Draft(scratch))
        export = export_directory(inputs.model)
        model = load_model(export, device_of(config.device), config.max_length, config.precision)
        counting = _Counting(model, export, config.max_length, lambda done, total, unit: None, config.begin)
        answers = harness.answer(counting, built)
    return counting.computed, len(answers)
