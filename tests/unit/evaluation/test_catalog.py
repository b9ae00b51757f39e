from __future__ import annotations

from pathlib import Path

import pytest

from storage.errors import ConfigError
from tasks.evaluation.catalog import (
    BENCHMARKS,
    EvaluationConfig,
    OwnBenchmark,
    benchmark_files_of,
    check_benchmarks,
    file_identity,
)


def copies(directory: Path, *names: str) -> Path:
    for name in names:
        path = directory / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}\n")
    return directory


def test_all_that_is_wrong_is_named_at_once_with_what_is_supported(tmp_path: Path) -> None:
    config = EvaluationConfig(
        domain=("arc_easi", "sciq"),
        general=("sciq", "piqa"),
        own=(OwnBenchmark(name="mine", file=str(tmp_path / "no.jsonl")), OwnBenchmark(name="both")),
    )
    with pytest.raises(ConfigError) as caught:
        check_benchmarks(config, copies(tmp_path, "sciq/validation"))
    text = str(caught.value)
    assert "arc_easi is not supported (nearest: arc_easy)" in text and "sciq stands more than once" in text
    assert "piqa has no file" in text and "no.jsonl is not a file" in text and "both needs one of" in text
    assert all(name in text for name in BENCHMARKS)


def test_a_sound_configuration_passes(tmp_path: Path) -> None:
    mine = tmp_path / "mine.jsonl"
    mine.write_text("{}\n")
    own = (
        OwnBenchmark(name="mine", file=str(mine)),
        OwnBenchmark(name="made", held_out="edu", group="general"),
    )
    config = EvaluationConfig(domain=("arc_easy",), own=own)
    check_benchmarks(config, copies(tmp_path, "arc_easy/test"), ["edu"])
    check_benchmarks(config, None, ["edu"])
    assert config.groups() == {"arc_easy": "domain", "mine": "domain", "made": "general"}


def test_questions_of_an_unknown_source_are_refused() -> None:
    config = EvaluationConfig(own=(OwnBenchmark(name="made", held_out="education"),))
    with pytest.raises(ConfigError, match="no source is named education"):
        check_benchmarks(config, None, ["educational"])


def test_the_files_that_decide_are_the_scored_split_and_the_examples(tmp_path: Path) -> None:
    copies(tmp_path, "mmlu/test", "mmlu/dev", "mmlu/validation", "sciq/validation")
    assert [path.name for path in benchmark_files_of("mmlu", tmp_path)] == ["test.jsonl"]
    assert [path.name for path in benchmark_files_of("mmlu", tmp_path, shots=5)] == [
        "test.jsonl",
        "dev.jsonl",
    ]
    assert [path.name for path in benchmark_files_of("sciq", tmp_path)] == ["validation.jsonl"]
    with pytest.raises(ConfigError, match="sciq with 2 shots needs"):
        benchmark_files_of("sciq", tmp_path, shots=2)
    with pytest.raises(ConfigError, match="piqa has no file"):
        benchmark_files_of("piqa", tmp_path)


def test_the_continuation_forms_ask_the_same_files(tmp_path: Path) -> None:
    copies(tmp_path, "mmlu/test", "commonsense_qa/validation")
    for name, other in (("mmlu_continuation", "mmlu"), ("commonsense_qa_continuation", "commonsense_qa")):
        assert benchmark_files_of(name, tmp_path) == benchmark_files_of(other, tmp_path)
    check_benchmarks(EvaluationConfig(domain=("mmlu_continuation",), general=("mmlu",)), tmp_path)


def test_paths_of_own_benchmarks_are_taken_from_a_directory(tmp_path: Path) -> None:
    given = (
        OwnBenchmark(name="one", file="a.jsonl"),
        OwnBenchmark(name="two", tasks="b"),
        OwnBenchmark(name="three", held_out="edu"),
    )
    one, two, three = EvaluationConfig(own=given).below(tmp_path).own
    assert (one.file, two.tasks, three) == (str(tmp_path / "a.jsonl"), str(tmp_path / "b"), given[2])


def test_a_file_is_known_by_its_bytes_alone(tmp_path: Path) -> None:
    copies(tmp_path / "a", "piqa/validation")
    copies(tmp_path / "b", "piqa/validation")
    here, there = (file_identity(benchmark_files_of("piqa", tmp_path / side)[0]) for side in "ab")
    assert here == there and here["bytes"] == 3
