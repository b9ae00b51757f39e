"""Every benchmark of the catalog scores what the harness's own command line scores on the same model and rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from storage.artifact import Artifact
from storage.testing import artifact_of
from tasks.evaluation import evaluate
from tasks.evaluation.catalog import BENCHMARKS, COMMONSENSE_QA_CONTINUATION
from tests.support.evaluation import command_line
from tests.support.evaluation.cases import Case, scores
from tests.support.evaluation.command_line import DEFINITIONS, SUBJECTS
from tests.support.evaluation.own_tasks import write_tasks

pytestmark = pytest.mark.slow
ROWS = 40
LENGTH = 320
"""Some contexts are longer, no answer is: the harness stops there."""
WITHOUT_HARNESS = "commonsense_qa_continuation"


@pytest.fixture(scope="module")
def rows(case: Case) -> Path:
    directory = case.root / "some"
    for name in (*DEFINITIONS, "mmlu"):
        command_line.copy_rows(case.data / "benchmarks", directory, name, 6 if name == "mmlu" else ROWS)
    return directory


@pytest.fixture(scope="module")
def theirs(case: Case, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One run of the command line over all benchmarks, and over a task directory of a user's."""
    include = tmp_path_factory.mktemp("include")
    names = [command_line.define(include, name, next((rows / name).glob("*.jsonl"))) for name in DEFINITIONS]
    mmlu = rows / "mmlu" / "test.jsonl"
    for form in ("default", "continuation"):
        names.append(command_line.define_mmlu(include, form, mmlu))
    csqa = command_line.define_fields(
        include, COMMONSENSE_QA_CONTINUATION, next((rows / "commonsense_qa").glob("*.jsonl"))
    )
    names += [csqa, *write_tasks(include / "mine", case)]
    work = tmp_path_factory.mktemp("command_line")
    return command_line.measure(case.base.path / "export", names, include, LENGTH, work)


def ours(case: Case, name: str, rows: Path) -> Artifact:
    inputs = evaluate.harness_inputs(case.base.part("export"), name, rows)
    config = evaluate.evaluate_config(name, None, 0, LENGTH, "cpu")
    return artifact_of(evaluate, config, inputs, case.store)


def test_all_of_the_catalog_is_compared() -> None:
    assert {*DEFINITIONS, "mmlu", "mmlu_continuation", WITHOUT_HARNESS} == set(BENCHMARKS)


@pytest.mark.parametrize("name", [*DEFINITIONS, WITHOUT_HARNESS])
def test_scores_and_likelihoods_equal_those_of_the_command_line(
    case: Case, rows: Path, theirs: dict[str, Any], name: str
) -> None:
    made = ours(case, name, rows)
    found, expected = scores(made), theirs["results"][f"cli_{name}"]
    metrics = {
        key.removesuffix(",none") for key in expected if key.endswith(",none") and "_stderr" not in key
    }
    assert set(found["metrics"]) == metrics and found["questions"] == ROWS
    for metric in metrics:
        tolerance = {"rel": 1e-4} if metric == "perplexity" else {"abs": 1e-9}
        assert found["metrics"][metric] == pytest.approx(expected[f"{metric},none"], **tolerance)
        if metric != "perplexity":  # the harness draws that one's error
            assert found["stderr"][metric] == pytest.approx(expected[f"{metric}_stderr,none"], abs=1e-9)
    same_likelihoods(made, theirs["samples"][f"cli_{name}"])


def same_likelihoods(made: Artifact, samples: list[dict[str, Any]]) -> None:
    table = pl.read_parquet(made.part("questions").only())
    assert table["doc"].to_list() == [sample["doc_id"] for sample in samples]
    for our, sample in zip(table["loglikelihoods"].to_list(), samples, strict=True):
        their = [float(value) for value, _ in sample["filtered_resps"]]
        assert our == pytest.approx(their, abs=2e-3)


@pytest.mark.parametrize("name", ["mmlu", "mmlu_continuation"])
def test_mmlu_s_subjects_and_groups_are_the_harness_s(
    case: Case, rows: Path, theirs: dict[str, Any], name: str
) -> None:
    found, whole = scores(ours(case, name, rows)), f"cli_{name}"
    suffix = name.removeprefix("mmlu")
    assert found["metrics"]["acc"] == pytest.approx(theirs["groups"][whole]["acc,none"], abs=1e-9)
    assert set(found["groups"]) == set(SUBJECTS)
    for group, subjects in SUBJECTS.items():
        expected = theirs["groups"][f"{whole}_{group.replace(' ', '_')}"]
        assert found["groups"][group]["acc"] == pytest.approx(expected["acc,none"], abs=1e-9)
        assert found["groups"][group]["stderr"]["acc"] == pytest.approx(expected["acc_stderr,none"], abs=1e-9)
        assert found["groups"][group]["subjects"] == len(subjects)
        for subject in subjects:
            result = theirs["results"][f"cli_{subject}{suffix}"]
            assert found["subjects"][subject]["acc"] == pytest.approx(result["acc,none"], abs=1e-9)
            if suffix:
                assert found["subjects"][subject]["acc_norm"] == pytest.approx(
                    result["acc_norm,none"], abs=1e-9
                )


def test_a_task_directory_scores_as_the_command_line_does(
    case: Case, theirs: dict[str, Any], tmp_path: Path
) -> None:
    names = write_tasks(tmp_path / "mine", case)
    inputs = evaluate.own_directory_inputs(case.base.part("export"), tmp_path / "mine")
    config = evaluate.evaluate_config("mine", None, 0, LENGTH, "cpu")
    made = artifact_of(evaluate, config, inputs, case.store)
    found = scores(made)
    assert set(found["subjects"]) == set(names) and found["main"] == "acc_norm" and found["split"] == "test"
    table = pl.read_parquet(made.part("questions").only())
    for name in names:
        expected = theirs["results"][name]
        for metric in ("acc", "acc_norm"):
            assert found["subjects"][name][metric] == pytest.approx(expected[f"{metric},none"], abs=1e-9)
        likelihoods = table.filter(pl.col("subject") == name)["loglikelihoods"].to_list()
        for our, sample in zip(likelihoods, theirs["samples"][name], strict=True):
            assert our == pytest.approx([float(value) for value, _ in sample["filtered_resps"]], abs=2e-3)
