"""A run whose text, benchmark and base model come from a hub on loopback; and what is said where there is none."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq
import pytest

from flows.config import load_config
from tests.support import ROOT
from tests.support.loopback import LoopbackHub
from tests.support.small import ONWARD, environment

CONFIG = """
name: from-the-hub
store: store
benchmark_files: null
corpus:
  sources:
    - {name: books, role: domain, weight: 1, hub: {dataset: me/books}}
  slice_bytes: 1200K
  filter: {gopher: false}
  decontaminate: {ngram: 13, benchmarks: [piqa]}
model: {base: me/stories}
packing: {sequence_length: 128, window_tokens: 10K}
training: {token_budgets: [50K], batch_tokens: 1024, learning_rate: 1.0e-3, schedule: {kind: wsd, warmup_tokens: 1K}}
evaluation: {domain: [piqa]}
"""


@pytest.fixture
def hub(shared_data: Path, tmp_path: Path) -> Iterator[LoopbackHub]:
    """Educational documents, a question of PIQA in every tenth; the first questions of PIQA; a small model."""
    questions = pyarrow.json.read_json(shared_data / "benchmarks/piqa/validation.jsonl").slice(0, 200)
    longest = max(questions["goal"].to_pylist(), key=len)
    books = pq.read_table(shared_data / "edu/part-00000.parquet").slice(0, 150).select(["text", "title"])
    texts = [
        f"{text}\n\n{longest}\n" if row % 10 == 0 else text
        for row, text in enumerate(books["text"].to_pylist())
    ]
    planted = books.set_column(0, "text", pa.array(texts))
    for name, table, file in (
        ("books", planted, "train.parquet"),
        ("piqa", questions, "validation.parquet"),
    ):
        (tmp_path / name).mkdir()
        pq.write_table(table, tmp_path / name / file, row_group_size=10)
    shutil.copytree(shared_data / "models/stories260K-hf", tmp_path / "stories")
    with LoopbackHub().running() as hub:
        hub.publish("datasets", "me/books", tmp_path / "books")
        hub.publish("datasets", "baber/piqa", tmp_path / "piqa")
        hub.publish("models", "me/stories", tmp_path / "stories")
        yield hub


def onward(hub: LoopbackHub, home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    asked = environment(home) | hub.environment(home / "hf") | {"PREFECT_LOGGING_LEVEL": "WARNING"}
    asked.pop("HF_HUB_OFFLINE")
    command = [*ONWARD, *words]
    return subprocess.run(
        command, cwd=ROOT, env=asked, capture_output=True, text=True, timeout=600, check=False
    )


@pytest.mark.slow
@pytest.mark.usefixtures("runs_share_a_server")
def test_a_run_from_the_hub_goes_on_without_it(hub: LoopbackHub, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "run.yaml").write_text(CONFIG)
    config = str(home / "run.yaml")
    done = onward(hub, home, "run", config, "--until", "tokenize", "--slices", "2", "--json")
    assert done.returncode == 0, done.stderr
    stages = stages_of(done)
    assert [one["state"] for one in stages if one["stage"] == "ingest"] == ["built", "built"]
    paths = [home / "store" / one["path"] for one in stages if one["stage"] == "decontaminate"]
    hits = [json.loads((path / "hits.json").read_text())["piqa"] for path in paths]
    assert {one["questions"] for one in hits} == {200}
    assert sum(one["documents_found"] for one in hits) >= 1, "a planted question was not found"
    planned = onward(hub, home, "plan", config, "--all")
    assert planned.returncode == 2 and "cached    ingest" in planned.stdout
    hub.stop()
    again = onward(hub, home, "run", config, "--until", "tokenize", "--slices", "2", "--json")
    assert again.returncode == 0, again.stderr
    assert {one["state"] for one in stages_of(again)} == {"cached"}
    assert [one["key"] for one in stages_of(again)] == [one["key"] for one in stages]


def stages_of(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    return list(json.loads(done.stdout)["stages"])


def test_the_example_is_planned_or_says_that_the_hub_cannot_be_reached(
    tmp_path: Path, shared_data: Path
) -> None:
    run = load_config(ROOT / "configs" / "edu-125m.yaml")
    assert [source.hub.dataset for source in run.corpus.sources if source.hub] == [
        "HuggingFaceFW/fineweb-edu",
        "HuggingFaceFW/fineweb",
    ]
    hub = LoopbackHub()
    hub.start()
    hub.stop()  # nobody listens at its port
    done = onward(hub, tmp_path, "plan", str(ROOT / "configs" / "edu-125m.yaml"))
    assert done.returncode == 1, done.stderr
    assert "hub cannot be reached" in done.stderr and "openai-community/gpt2" in done.stderr
    assert "Traceback" not in done.stderr and not done.stdout
    base = ["--set", f"model.base={shared_data / 'models' / 'stories260K-hf'}"]
    short = ["--set", "packing.sequence_length=256"]
    local = onward(hub, tmp_path, "plan", str(ROOT / "configs" / "edu-125m.yaml"), *base, *short)
    assert local.returncode == 1 and "educational: hub.dataset" in local.stderr, local.stderr


def test_what_the_hub_does_not_have_is_refused_before_any_work(hub: LoopbackHub, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "run.yaml").write_text(CONFIG)
    wrong = "corpus.sources=[{name: books, role: domain, weight: 1, hub: {dataset: me/books, split: tset}}]"
    done = onward(hub, home, "run", str(home / "run.yaml"), "--set", wrong, "--json")
    assert done.returncode == 2, done.stderr
    assert "corpus.sources: books: hub.split" in done.stderr and "'train'" in done.stderr
    assert not stages_of(done)
    assert os.listdir(home / "store") in ([".cache"], [".cache", ".lock"])
