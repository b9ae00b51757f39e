"""The tokens of an evaluation, counted beforehand: as many as it computes, which are fewer where questions begin alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from storage.testing import artifact_of
from tasks.evaluation import evaluate
from tasks.evaluation.amount import tokens_of
from tests.support.evaluation.cases import Case
from tests.support.evaluation.cases import case as case


def test_as_many_tokens_are_counted_as_are_computed(case: Case, tmp_path: Path) -> None:
    directory = case.data / "benchmarks"
    inputs = evaluate.harness_inputs(case.base.part("export"), "arc_easy", directory)

    def counted(limit: int) -> tuple[int, int]:
        return tokens_of(evaluate.evaluate_config("arc_easy", limit, 0, 128, "cpu"), inputs, tmp_path)

    config: Any = evaluate.evaluate_config("arc_easy", 12, 0, 128, "cpu")
    made = artifact_of(evaluate, config, inputs, case.store)
    execution = made.manifest.provenance["execution"]
    assert counted(12) == (execution["tokens_computed"], made.stats["questions"])
    few, many = counted(12), counted(60)
    assert many[1] == 60 and 3 < many[0] / few[0] < 8
