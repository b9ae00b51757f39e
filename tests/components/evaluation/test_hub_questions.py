"""Benchmarks from a hub on loopback: the questions and scores that local copies give, and the rows the harness reads."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.testing import artifact_of
from tasks.corpus.benchmarks.questions import benchmark_inputs, read_questions
from tasks.evaluation import evaluate, hub_questions
from tasks.evaluation.catalog import BENCHMARKS
from tests.support import ROOT
from tests.support.evaluation.cases import LENGTH, Case, scores
from tests.support.loopback import LoopbackHub

ROWS = 40
NAMES = ("arc_easy", "piqa", "mmlu")
FETCH = """
import json, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from storage.errors import OnwardError
from tasks.evaluation import hub_questions
from tasks.corpus.reading.hub import remembered_in
names, store = json.loads(sys.argv[1]), Path(sys.argv[2])
try:
    print(hub_questions.fetch(names, store / ".cache" / "benchmarks", remembered_in(store), "evaluation"))
except OnwardError as error:
    print(type(error).__name__, error)
"""
THEIRS = """
import json, sys
from pathlib import Path
import lm_eval
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml
definition = Path(lm_eval.__file__).parent / "tasks" / sys.argv[1]
task = ConfigurableTask(config=load_yaml(definition))
rows = task.test_docs() if task.has_test_docs() else task.validation_docs()
json.dump(list(rows), sys.stdout)
"""


@pytest.fixture
def hub(case: Case, tmp_path: Path) -> Iterator[LoopbackHub]:
    """The first rows of three benchmarks as Parquet, in the repositories that the harness names."""
    with LoopbackHub().running() as hub:
        for name in NAMES:
            known = BENCHMARKS[name]
            rows = local_rows(case, name)
            dataset, configuration = known.dataset
            configuration = "all" if name == "mmlu" else configuration or "default"
            directory = tmp_path / "published" / name
            (directory / configuration).mkdir(parents=True)
            splits = {
                known.split: rows,
                "train": rows[:3],
            }  # the harness asks for examples too, where there are any
            for split, some in splits.items():
                pq.write_table(pa.Table.from_pylist(some), directory / configuration / f"{split}-0.parquet")
            data = [{"split": split, "path": f"{configuration}/{split}-*.parquet"} for split in splits]
            card = {"configs": [{"config_name": configuration, "data_files": data}]}
            (directory / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n")
            hub.publish("datasets", dataset, directory)
        yield hub


def local_rows(case: Case, name: str) -> list[dict[str, Any]]:
    split = BENCHMARKS[name].split
    path = case.benchmark_files(name, ROWS, split) / name / f"{split}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def fetch(hub: LoopbackHub, names: tuple[str, ...], store: Path) -> str:
    code = FETCH.format(root=str(ROOT))
    command = [sys.executable, "-c", code, json.dumps(names), str(store)]
    environment = hub.environment(store.parent / "hf")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


@pytest.mark.slow
def test_questions_and_scores_are_those_of_local_copies(case: Case, hub: LoopbackHub, tmp_path: Path) -> None:
    directory = Path(fetch(hub, NAMES, tmp_path / "store"))
    files = case.root / "benchmarks"
    _, local = benchmark_inputs(files, NAMES)
    _, fetched = benchmark_inputs(directory, NAMES)
    for name, here, there in zip(NAMES, local, fetched, strict=True):
        assert read_questions(name, here) == read_questions(name, there)
        assert read_questions(name, there)[1] == ROWS
    export = case.base.part("export")
    for name in NAMES:
        made = []
        for copies, store in ((files, case.store), (directory, tmp_path / "measured")):
            inputs = evaluate.harness_inputs(export, name, copies)
            config = evaluate.evaluate_config(name, None, 0, LENGTH, "cpu")
            made.append(artifact_of(evaluate, config, inputs, store))
        assert scores(made[0]) == scores(made[1])
        assert made[0].part("questions").digest == made[1].part("questions").digest


@pytest.mark.parametrize("name", ["arc_easy", "piqa"])
def test_rows_are_those_that_the_harness_itself_reads(hub: LoopbackHub, tmp_path: Path, name: str) -> None:
    directory = Path(fetch(hub, (name,), tmp_path / "store"))
    path = directory / name / f"{BENCHMARKS[name].split}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    command = [sys.executable, "-c", THEIRS, BENCHMARKS[name].definition]
    environment = hub.environment(tmp_path / "theirs")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert rows == json.loads(done.stdout[done.stdout.index("[") :])
    origin = json.loads(path.with_name(f"{BENCHMARKS[name].split}.origin.json").read_text())
    dataset = BENCHMARKS[name].dataset[0]
    assert origin["commit"] == hub.repositories["datasets", dataset].main and origin["dataset"] == dataset


def test_what_was_fetched_stays_and_a_silent_hub_is_no_matter_then(hub: LoopbackHub, tmp_path: Path) -> None:
    store = tmp_path / "store"
    first = Path(fetch(hub, ("piqa",), store)) / "piqa" / "validation.jsonl"
    before = first.read_bytes()
    hub.stop()
    assert fetch(hub, ("piqa",), store) == str(store / ".cache" / "benchmarks")
    assert first.read_bytes() == before
    said = fetch(hub, ("arc_easy",), store)
    assert said.startswith("HubUnreachable evaluation") and "allenai/ai2_arc" in said


def test_a_benchmark_that_the_hub_has_not_is_named(hub: LoopbackHub, tmp_path: Path) -> None:
    said = fetch(hub, ("sciq",), tmp_path / "store")
    assert said.startswith("ConfigError evaluation") and "allenai/sciq" in said


def test_a_continuation_form_reads_the_same_file(hub: LoopbackHub, tmp_path: Path) -> None:
    directory = Path(fetch(hub, ("mmlu_continuation",), tmp_path / "store"))
    assert [path.name for path in directory.iterdir()] == ["mmlu"]
    hub.stop()
    assert fetch(hub, ("mmlu",), tmp_path / "store") == str(directory)
    assert (
        hub_questions.origins(directory, ("mmlu", "mmlu_continuation"))["mmlu_continuation"]["split"]
        == "test"
    )
