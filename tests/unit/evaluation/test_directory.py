"""A user's directory of task files: what is read of it, and that nothing of it is run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from storage.artifact import Input
from storage.errors import BadInput, ConfigError
from storage.testing import artifact_of, draft_in
from tasks.evaluation import evaluate
from tasks.evaluation.catalog import EvaluationConfig, OwnBenchmark, check_benchmarks
from tasks.evaluation.directory import read_task_directory
from tests.support.evaluation.cases import LENGTH, Case, scores

TASK: dict[str, Any] = {
    "task": "mine",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{q}}",
    "doc_to_choice": "{{options}}",
    "doc_to_target": "right",
}
ROWS = [
    {"q": "Once upon a time, there was a little", "options": ["girl named Lily", "of the the"], "right": 0},
    {"q": "They went to the park to", "options": ["zinc", "play"], "right": 1},
]


def directory(root: Path, **over: Any) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    task = {name: value for name, value in {**TASK, **over}.items() if value is not None}
    (root / "mine.yaml").write_text(yaml.safe_dump(task))
    return root


def measured(case: Case, path: Path, limit: int | None = None):
    inputs = evaluate.own_directory_inputs(case.base.part("export"), path)
    config = evaluate.evaluate_config("mine", limit, 0, LENGTH, "cpu")
    return artifact_of(evaluate, config, inputs, case.store)


def test_a_task_over_a_local_file_is_measured_wherever_it_lies(case: Case, tmp_path: Path) -> None:
    made = [measured(case, directory(tmp_path / side)) for side in "ab"]
    assert made[0].key == made[1].key
    found = scores(made[0])
    assert found["metrics"] == {"acc": 1.0, "acc_norm": 1.0} and found["questions"] == 2
    assert "subjects" not in found and found["main"] == "acc_norm"
    assert not (made[0].path / "data").exists()  # what the reader of the data wrote on its way


def test_its_bytes_decide_not_its_names(case: Case, tmp_path: Path) -> None:
    first = measured(case, directory(tmp_path / "a")).key
    (directory(tmp_path / "b") / "rows.jsonl").write_text(
        json.dumps(ROWS[0]) + "\n" + json.dumps(ROWS[0]) + "\n"
    )
    (directory(tmp_path / "c") / "template.yaml").write_text("doc_to_text: '{{q}}'\n")  # nobody includes it
    assert measured(case, tmp_path / "b").key != first == measured(case, tmp_path / "c").key


def test_data_files_of_one_name_outside_of_the_directory_are_all_in_the_key(tmp_path: Path) -> None:
    found = []
    for side, last in (("a", "play"), ("b", "sleep")):
        given: dict[str, Any] = {}
        for split, row in (("test", ROWS[0]), ("shown", {**ROWS[1], "options": ["zinc", last]})):
            file = tmp_path / side / "data" / split / "rows.jsonl"
            file.parent.mkdir(parents=True)
            file.write_text(json.dumps(row) + "\n")
            given[split] = f"../data/{split}/rows.jsonl"
        root = directory(
            tmp_path / side / "mine", dataset_kwargs={"data_files": given}, fewshot_split="shown"
        )
        found.append(
            evaluate.own_directory_inputs(Input("base", "0", "export", "0", tmp_path, ()), root).files
        )
    names = [[one["name"] for one in files] for files in found]
    assert names == [["../mine/shown/0", "../mine/test/0", "mine.yaml"]] * 2
    differ = [one["name"] for one, two in zip(*found, strict=True) if one["sha256"] != two["sha256"]]
    assert differ == ["../mine/shown/0"]


def test_task_files_of_one_name_that_are_links_are_all_in_the_key(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    for name in ("a", "b"):
        made = directory(tmp_path / "elsewhere" / name, task=name)
        (root / name).mkdir(parents=True)
        (root / name / "task.yaml").symlink_to(made / "mine.yaml")
        (root / name / "rows.jsonl").symlink_to(made / "rows.jsonl")
    found = read_task_directory(root)
    assert set(found.files) == {"a/task.yaml", "b/task.yaml", "../a/test/0", "../b/test/0"}


def test_splits_includes_and_groups_are_read_as_the_harness_reads_them(tmp_path: Path) -> None:
    root = directory(tmp_path / "mine", include="deep/base.yaml", doc_to_text=None, num_fewshot=0)
    (root / "deep").mkdir()
    (root / "deep" / "base.yaml").write_text("doc_to_text: from below\nnum_fewshot: 3\n")
    group = {"group": "all", "task": ["mine"], "aggregate_metric_list": [{"metric": "acc"}]}
    (root / "all.yaml").write_text(yaml.safe_dump(group))
    found = read_task_directory(root)
    assert list(found.tasks) == ["mine"] and set(found.files) == {"mine.yaml", "deep/base.yaml", "rows.jsonl"}
    assert found.tasks["mine"]["doc_to_text"] == "from below" and found.tasks["mine"]["num_fewshot"] == 0


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"process_docs": "anything"}, "process_docs: not supported"),
        ({"unsafe_code": True}, "unsafe_code: not supported"),
        ({"custom_dataset": "x"}, "custom_dataset: not supported"),
        ({"use_prompt": "promptsource:x"}, "use_prompt: not supported"),
        ({"dataset_kwargs": {"trust_remote_code": True}}, "dataset_kwargs.trust_remote_code: not supported"),
        ({"dataset_path": "someone/something"}, "local files are read, as json, csv, parquet"),
        ({"dataset_kwargs": None}, "None is no local file"),
        ({"dataset_kwargs": {"data_files": {"test": "https://x.org/a.json"}}}, "is no local file"),
        ({"dataset_kwargs": {"data_files": {"test": "*.jsonl"}}}, "is no local file"),
        ({"test_split": "validation"}, "validation is not in dataset_kwargs.data_files"),
        ({"test_split": None}, "neither test_split nor validation_split"),
        ({"output_type": "generate_until"}, "measured here are multiple_choice and loglikelihood"),
        ({"metric_list": [{"metric": "bleu"}]}, "metric_list: bleu: measured here are acc"),
        ({"metric_list": [{"metric": "acc", "hf_evaluate": True}]}, "metric_list.hf_evaluate: not supported"),
        ({"metric_list": [{"metric": "acc", "aggregation": "median"}]}, "acc is aggregated by mean"),
        ({"repeats": 3}, "repeats"),
        (
            {"output_type": "loglikelihood", "metric_list": [{"metric": "perplexity"}]},
            "the task mine has perplexity alone",
        ),
        ({"include": "../other.yaml"}, "no file of"),
        ({"include": "mine.yaml"}, "includes itself"),
        ({"task": None}, "holds no task"),
    ],
)
def test_what_is_not_measured_is_refused_by_name(tmp_path: Path, over: dict[str, Any], said: str) -> None:
    (tmp_path / "other.yaml").write_text("doc_to_text: x\n")
    root = directory(tmp_path / "mine", **over)
    with pytest.raises(ConfigError) as caught:
        read_task_directory(root)
    assert said in str(caught.value) and str(root) in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "metrics", "main"),
    [
        ("loglikelihood", [], "acc"),
        ("loglikelihood", ["perplexity", "acc"], "acc"),
        ("multiple_choice", [], "acc_norm"),
        ("multiple_choice", ["acc", "acc_norm"], "acc_norm"),
        ("multiple_choice", ["acc_bytes", "acc"], "acc"),
        ("multiple_choice", ["acc_mutual_info"], "acc_mutual_info"),
    ],
)
def test_the_score_shown_first_is_a_share_of_right_answers(
    tmp_path: Path, kind: str, metrics: list[str], main: str
) -> None:
    listed = [{"metric": name} for name in metrics] or None
    assert read_task_directory(directory(tmp_path, output_type=kind, metric_list=listed)).main == main


def test_the_last_word_of_a_passage_is_scored_as_right_or_wrong(case: Case, tmp_path: Path) -> None:
    root = directory(
        tmp_path / "mine",
        output_type="loglikelihood",
        doc_to_choice=None,
        doc_to_target="{{' ' + options[right]}}",
    )
    found = scores(measured(case, root))
    assert found["main"] == "acc" and 0 <= found["metrics"]["acc"] <= 1 < found["metrics"]["perplexity"]


@pytest.mark.parametrize(
    "line",
    [
        "process_docs: !function utils.process",
        "doc_to_text: !function utils.text",
        "metric_list: [{metric: !function utils.metric}]",
        "doc_to_text: !!python/object/apply:os.system ['touch ran']",
    ],
)
def test_no_code_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    root = directory(tmp_path / "mine", **{line.partition(":")[0]: None})
    monkeypatch.chdir(tmp_path)
    (root / "utils.py").write_text("open('ran', 'w')\n")
    (root / "mine.yaml").write_text(f"{(root / 'mine.yaml').read_text()}{line}\n")
    config = EvaluationConfig(own=(OwnBenchmark(name="mine", tasks=str(root)),))
    with pytest.raises(ConfigError) as caught:
        check_benchmarks(config, None)
    assert "own benchmark mine" in str(caught.value)
    assert ("!function" in line) == ("no code of a task directory is run" in str(caught.value))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("template", ["{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ not_there }}"])
def test_a_template_reaches_values_alone(case: Case, tmp_path: Path, template: str) -> None:
    root = directory(tmp_path / "mine", doc_to_text=template)
    inputs = evaluate.own_directory_inputs(case.base.part("export"), root)
    with pytest.raises(BadInput, match="template"):
        evaluate.run(evaluate.evaluate_config("mine", None, 0, LENGTH), inputs, draft_in(tmp_path))


def test_two_tasks_of_one_name_are_refused(tmp_path: Path) -> None:
    root = directory(tmp_path / "mine")
    (root / "again.yaml").write_text((root / "mine.yaml").read_text())
    with pytest.raises(ConfigError, match="the task mine stands in another file too"):
        read_task_directory(root)


def test_a_directory_that_changed_since_it_was_named_is_refused(case: Case, tmp_path: Path) -> None:
    root = directory(tmp_path / "mine")
    inputs = evaluate.own_directory_inputs(case.base.part("export"), root)
    (root / "rows.jsonl").write_text(json.dumps(ROWS[0]) + "\n")
    with pytest.raises(BadInput, match="changed since"):
        evaluate.run(evaluate.evaluate_config("mine", None, 0, LENGTH), inputs, draft_in(tmp_path))


def test_an_unweighted_group_is_refused(tmp_path: Path) -> None:
    root = directory(tmp_path / "mine")
    metric = [{"metric": "acc", "weight_by_size": False}]
    (root / "all.yaml").write_text(
        yaml.safe_dump({"group": "all", "task": ["mine"], "aggregate_metric_list": metric})
    )
    with pytest.raises(ConfigError, match="weighted by size"):
        read_task_directory(root)
