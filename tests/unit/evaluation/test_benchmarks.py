from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import lm_eval
import polars as pl
import pytest
import torch

from storage.artifact import Input
from storage.errors import BadInput, ConfigError
from storage.keys import difference, key_inputs
from storage.testing import artifact_of, draft_in
from tasks.evaluation import evaluate
from tasks.evaluation.model import SLOW, slow_in
from tests.support.evaluation.cases import LENGTH, Case, scores


def measure(
    case: Case,
    model: Input,
    name: str,
    rows: int,
    limit: int | None = None,
    seed: int = 0,
    split: str = "test",
):
    inputs = evaluate.harness_inputs(model, name, case.benchmark_files(name, rows, split))
    return artifact_of(
        evaluate, evaluate.evaluate_config(name, limit, seed, LENGTH, "cpu"), inputs, case.store
    )


def test_questions_are_kept_and_add_up_to_the_scores(case: Case) -> None:
    made = measure(case, case.base.part("export"), "openbookqa", 30)
    table, found = pl.read_parquet(made.part("questions").only()), scores(made)
    assert found["questions"] == len(table) == 30 and found["chance"] == 0.25 and found["split"] == "test"
    for metric in ("acc", "acc_norm"):
        assert table[metric].mean() == pytest.approx(found["metrics"][metric])
    right = [
        float(values.index(max(values)) == target)
        for values, target in zip(table["loglikelihoods"].to_list(), table["target"].to_list(), strict=True)
    ]
    assert right == table["acc"].to_list()
    assert made.stats["metrics"] == found["metrics"]


def test_the_same_inputs_give_the_same_bytes(case: Case, tmp_path: Path) -> None:
    made = measure(case, case.base.part("export"), "openbookqa", 30)
    inputs = evaluate.harness_inputs(
        case.base.part("export"), "openbookqa", case.benchmark_files("openbookqa", 30)
    )
    draft = draft_in(tmp_path)
    evaluate.run(evaluate.evaluate_config("openbookqa", None, 0, LENGTH, "cpu"), inputs, draft)
    for name in ("scores.json", "questions.parquet"):
        assert (draft.path / name).read_bytes() == (made.path / name).read_bytes()


def test_another_version_of_the_harness_is_another_key(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    made = measure(case, case.base.part("export"), "openbookqa", 30)
    assert made.manifest.inputs["harness"] == scores(made)["harness"] == lm_eval.__version__
    files, rows = case.benchmark_files("openbookqa", 30), case.root / "rows.jsonl"
    rows.write_text('{"question": "One", "choices": ["a", "b"], "answer": 0}\n')
    export = case.base.part("export")

    def inputs() -> list[evaluate.EvaluateInputs]:
        return [
            evaluate.harness_inputs(export, "openbookqa", files),
            evaluate.own_file_inputs(export, rows),
            evaluate.own_held_out_inputs(export, export),
        ]

    before = [key_inputs(one) for one in inputs()]
    monkeypatch.setattr(importlib.metadata, "version", lambda name: {"lm_eval": "0.5.0"}[name])
    assert [str(*difference(one, key_inputs(two))) for one, two in zip(before, inputs(), strict=True)] == [
        f"harness: {lm_eval.__version__} → 0.5.0"
    ] * 3


def test_a_limit_draws_by_seed_and_not_the_first_rows(case: Case) -> None:
    drawn = {}
    for seed in (0, 1):
        made = measure(case, case.base.part("export"), "openbookqa", 30, limit=8, seed=seed)
        drawn[seed] = pl.read_parquet(made.part("questions").only())["doc"].to_list()
        assert scores(made)["questions"] == 8 and scores(made)["available"] == 30
    assert drawn[0] != drawn[1] and drawn[0] != list(range(8)) and drawn[0] == sorted(set(drawn[0]))
    whole = pl.read_parquet(
        measure(case, case.base.part("export"), "openbookqa", 30).part("questions").only()
    )
    few = pl.read_parquet(
        measure(case, case.base.part("export"), "openbookqa", 30, 8).part("questions").only()
    )
    picked = whole.filter(pl.col("doc").is_in(drawn[0]))
    assert picked["acc"].to_list() == few["acc"].to_list()


def test_without_a_limit_the_seed_is_not_in_the_key() -> None:
    assert evaluate.evaluate_config("piqa", None, 7, 128) == evaluate.evaluate_config("piqa", None, 0, 128)
    assert evaluate.evaluate_config("piqa", 10, 7, 128) != evaluate.evaluate_config("piqa", 10, 0, 128)


def test_mmlu_is_measured_by_subject_and_as_a_whole(case: Case) -> None:
    rows = [json.loads(line) for line in (case.data / "benchmarks/mmlu/test.jsonl").open()]
    some = [row for row in rows if row["subject"] in ("anatomy", "virology")]
    directory = case.root / "few_subjects"
    (directory / "mmlu").mkdir(parents=True)
    chosen = some[:12] + some[-6:]
    (directory / "mmlu/test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chosen))
    inputs = evaluate.harness_inputs(case.base.part("export"), "mmlu", directory)
    made = artifact_of(evaluate, evaluate.evaluate_config("mmlu", None, 0, LENGTH, "cpu"), inputs, case.store)
    found = scores(made)
    assert {name: one["questions"] for name, one in found["subjects"].items()} == {
        "anatomy": 12,
        "virology": 6,
    }
    weighted = sum(one["questions"] * one["acc"] for one in found["subjects"].values()) / 18
    assert found["metrics"]["acc"] == pytest.approx(weighted)


@pytest.mark.parametrize(
    ("name", "split", "metrics"),
    [
        ("winogrande", "validation", {"acc"}),
        ("boolq", "validation", {"acc"}),
        ("piqa", "validation", {"acc", "acc_norm"}),
        ("sciq", "validation", {"acc", "acc_norm"}),
        ("social_iqa", "validation", {"acc"}),
        ("commonsense_qa", "validation", {"acc"}),
        ("arc_challenge", "test", {"acc", "acc_norm"}),
        ("lambada_openai", "test", {"acc", "perplexity"}),
    ],
)
def test_every_form_of_benchmark_is_measured(case: Case, name: str, split: str, metrics: set[str]) -> None:
    found = scores(measure(case, case.base.part("export"), name, 6, split=split))
    assert set(found["metrics"]) == metrics and set(found["stderr"]) == metrics and found["questions"] == 6


def test_hellaswag_is_read_from_a_compressed_file(case: Case) -> None:
    inputs = evaluate.harness_inputs(case.base.part("export"), "hellaswag", case.data / "benchmarks")
    config = evaluate.evaluate_config("hellaswag", 4, 0, LENGTH, "cpu")
    found = scores(artifact_of(evaluate, config, inputs, case.store))
    assert found["available"] == 10_042 and set(found["metrics"]) == {"acc", "acc_norm"}


def test_an_answer_longer_than_the_window_is_scored_in_pieces(case: Case, tmp_path: Path) -> None:
    row = {
        "question": "Once upon a time",
        "choices": ["there was a little girl " * 40, "a dog ran"],
        "answer": 0,
    }
    file = tmp_path / "long.jsonl"
    file.write_text(
        json.dumps(row) + "\n" + json.dumps({**row, "choices": ["a cat sat", "a dog ran"]}) + "\n"
    )
    inputs = evaluate.own_file_inputs(case.base.part("export"), file)
    made = artifact_of(evaluate, evaluate.evaluate_config("long", None, 0, 64, "cpu"), inputs, case.store)
    assert scores(made)["answers_over_max_length"] == 2  # after the question, and alone
    long, short = pl.read_parquet(made.part("questions").only())["loglikelihoods"].to_list()
    assert long[0] < 10 * short[0] < 0 and long[1] == pytest.approx(short[1], abs=1e-3)


def test_nothing_is_written_to_standard_output(
    case: Case, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    inputs = evaluate.harness_inputs(
        case.base.part("export"), "openbookqa", case.benchmark_files("openbookqa", 30)
    )
    evaluate.run(evaluate.evaluate_config("openbookqa", 3, 5, LENGTH, "cpu"), inputs, draft_in(tmp_path))
    assert capfd.readouterr().out == ""


def test_a_file_that_changed_since_it_was_named_is_refused(case: Case, tmp_path: Path) -> None:
    (tmp_path / "sciq").mkdir()
    file = tmp_path / "sciq" / "test.jsonl"
    file.write_text((case.data / "benchmarks/sciq/validation.jsonl").read_text())
    inputs = evaluate.harness_inputs(case.base.part("export"), "sciq", tmp_path)
    file.write_text(file.read_text() + "\n")
    with pytest.raises(BadInput, match="changed since"):
        evaluate.run(evaluate.evaluate_config("sciq", None, 0, LENGTH), inputs, draft_in(tmp_path))


def test_the_precision_is_told_with_the_scores_where_it_is_not_fp32(case: Case, tmp_path: Path) -> None:
    inputs = evaluate.harness_inputs(
        case.base.part("export"), "openbookqa", case.benchmark_files("openbookqa", 30)
    )
    config = evaluate.evaluate_config("openbookqa", 5, 0, LENGTH, "cpu", precision="bf16")
    said: list[str] = []
    draft = draft_in(tmp_path)
    draft._warn = said.append
    evaluate.run(config, inputs, draft)
    found = json.loads((draft.path / "scores.json").read_text())
    assert found["precision"] == "bf16" and found["questions"] == 5
    slow = slow_in("bf16", torch.device("cpu"))
    assert said == ([SLOW] if slow else []) and not slow_in("fp32", torch.device("cpu"))
    plain = draft_in(tmp_path / "plain")
    evaluate.run(evaluate.evaluate_config("openbookqa", 5, 0, LENGTH, "cpu"), inputs, plain)
    assert "precision" not in json.loads((plain.path / "scores.json").read_text())


def test_a_length_beyond_the_models_positions_is_an_error(case: Case, tmp_path: Path) -> None:
    inputs = evaluate.harness_inputs(
        case.base.part("export"), "openbookqa", case.benchmark_files("openbookqa", 30)
    )
    with pytest.raises(ConfigError, match="512 positions"):
        evaluate.run(evaluate.evaluate_config("openbookqa", 2, 0, 1024, "cpu"), inputs, draft_in(tmp_path))
