"""What documents begin with goes from the configuration into manifests and measures, and is told once the base is there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from flows.config import RunConfig
from flows.dag.pretrain import adapt
from flows.dag.requests import Requests
from flows.runs.evaluate import Evaluation, begin_of
from storage.artifact import Artifact
from storage.errors import ConfigError
from storage.packing import PackingManifest
from storage.runs import RunRecord, write_record
from storage.store import Making, Request, Store

PROSE = "The cart with number {n} was driven to the mill and back, and nobody had seen it on the road since then. "
OPEN = {"language": "any", "gopher": False, "c4": False, "fineweb": False, "pii": "off"}


def run_of(home: Path, base: Path, begin: str) -> RunConfig:
    rows = "".join(json.dumps({"text": PROSE.format(n=n) * 3}) + "\n" for n in range(20))
    (home / "notes.jsonl").write_text(rows)
    source = {"name": "notes", "role": "domain", "weight": 1, "files": [str(home / "notes.jsonl")]}
    return RunConfig.model_validate(
        {
            "name": "begun",
            "store": str(home / "store"),
            "corpus": {"sources": [source], "slice_bytes": "1M", "holdout_fraction": 0, "filter": OPEN},
            "model": {"base": str(base)},
            "packing": {"sequence_length": 64, "window_tokens": 4096, "begin": begin},
            "training": {"token_budgets": ["2K"], "batch_tokens": 256, "learning_rate": 1e-3},
        }
    )


def packed(run: RunConfig) -> tuple[list[str], list[Request], list[Artifact]]:
    """What is told, and the stages up to packing."""
    store, said, asked, made = Store(run.store_path), list[str](), list[Request](), list[Artifact]()

    def build(request: Request, **_: Any) -> Artifact:
        asked.append(request)
        made.append(store.ensure(request, Making()).artifact)
        return made[-1]

    adapt(Requests(run, store, warn=said.append), build, until="pack")
    return said, asked, made


@pytest.fixture
def base(tmp_path: Path, shared_data: Path) -> Path:
    return Path(shutil.copytree(shared_data / "models" / "stories260K-hf", tmp_path / "base"))


def test_both_ways_of_one_run(tmp_path: Path, base: Path) -> None:
    """Only packing is made again; the line says what training and benchmarks begin with."""
    begun = {}
    for begin, words in (
        ("eos", "documents begin after </s> in training"),
        ("bos", "documents begin with <s>"),
    ):
        said, asked, made = packed(run_of(tmp_path, base, begin))
        assert [line for line in said if words in line]
        begun[begin] = {request.stage: request.key for request in asked}
        assert PackingManifest.open(made[-1].part("manifest").only()).begin == (1 if begin == "bos" else None)
        assert made[0].manifest.provenance["execution"]["text"] == {
            "eos": "</s>",
            "bos": "<s>",
            "added": True,
        }
    assert [stage for stage, key in begun["eos"].items() if begun["bos"][stage] != key] == ["pack"]


def test_measures_begin_as_training_does(tmp_path: Path, base: Path) -> None:
    run = run_of(tmp_path, base, "bos")
    _, _, made = packed(run)
    ask = Requests(run, Store(run.store_path), warn=print)
    export = made[0].part("export")
    assert ask.perplexity(export, export).config.begin == "bos"
    samples = ask.samples(export)
    assert samples is not None and samples.config.begin == "bos"


def test_a_base_without_such_a_token_is_refused_before_anything_is_read(tmp_path: Path, base: Path) -> None:
    path = base / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"bos_token": "</s>"}))
    with pytest.raises(ConfigError, match=r"packing\.begin is bos, but .* leave it at eos"):
        packed(run_of(tmp_path, base, "bos"))
    assert not (tmp_path / "store" / "ingest").exists()


@pytest.mark.parametrize(
    ("of_run", "asked", "expected"),
    [
        ("bos", None, "bos"),
        ("bos", "eos", "eos"),
        ("eos", None, "eos"),
        (None, None, "eos"),
        (None, "bos", "bos"),
    ],
)
def test_a_given_model_is_asked_as_the_run_was(
    tmp_path: Path, base: Path, of_run: str | None, asked: str | None, expected: str
) -> None:
    """The run whose held-out text it is measured on."""
    store = Store(tmp_path / "store")
    if of_run is not None:
        config = run_of(tmp_path, base, of_run).model_dump(mode="json")
        write_record(store, RunRecord("begun-abcdef", "begun", config, ()))
    wanted = Evaluation.model_validate(
        {
            "model": "base/0123",
            "benchmarks": {},
            "run": "begun" if of_run else None,
            "sequence_length": 64,
            "seed": 0,
            "begin": asked,
            "device": "cpu",
            "benchmark_files": None,
            "store": str(store.root),
            "name": "evaluation",
            "tracking": {},
        }
    )
    assert begin_of(store, wanted) == expected


def test_runs_of_one_name_that_differ_are_not_guessed(tmp_path: Path, base: Path) -> None:
    store = Store(tmp_path / "store")
    for begin in ("eos", "bos"):
        config = run_of(tmp_path, base, begin).model_dump(mode="json")
        write_record(store, RunRecord(f"begun-{begin}", "begun", config, ()))
    of_both, of_one = (Evaluation.model_construct(run=name, begin=None) for name in ("begun", "begun-bos"))
    with pytest.raises(ConfigError, match="begin: runs of the name begun differ"):
        begin_of(store, of_both)
    assert begin_of(store, of_one) == "bos"
