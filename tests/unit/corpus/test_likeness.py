"""Likeness: documents are told by examples, the same in any order of batches, and a source is filtered by it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from flows.config import RunConfig, parse_config
from flows.dag.plan import planned
from flows.dag.pretrain import _Tokenizer, adapt
from flows.dag.requests import Requests
from flows.dag.slices import SliceReader
from flows.dag.state import Outcome, Slice
from flows.runs.checks import check
from storage.artifact import Artifact, Input
from storage.errors import ConfigError
from storage.store import Making, Request, Store
from tasks.corpus.documents import read_documents
from tasks.corpus.rules import likeness

SEA = "ship sail wind harbour tide rope deck captain storm anchor mast crew gull wave keel".split()  # noqa: SIM905
FARM = "barn wheat plough field cow hay tractor seed fence hen orchard soil mill calf sheep".split()  # noqa: SIM905
BOTH = "the of and a in to was that it on with as his they at by".split()  # noqa: SIM905


def texts(words: list[str], count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(words + BOTH, k=80)).capitalize() + "." for _ in range(count)]


def test_a_piece_is_counted_in_its_own_text_alone():
    some = pl.Series(["abcdef", "", "abc", "ABCDE", "äöü" * 2])
    each = [int(likeness.counts(some.slice(place, 1)).sum()) for place in range(5)]
    assert each == [2, 0, 0, 1, 8] and likeness.counts(some).sum() == sum(each)
    assert (likeness.counts(pl.Series(["abcde"])) == likeness.counts(pl.Series(["ABCDE"]))).all()
    weights = np.random.default_rng(0).normal(size=1 << likeness.BUCKETS_LOG).astype(np.float32)
    whole = likeness.means(pl.concat([some] * 99), weights)
    alone = np.concatenate([likeness.means(some.slice(place, 1), weights) for place in range(5)])
    assert np.array_equal(whole, np.tile(alone, 99)), "whatever the batch"


def test_what_is_like_the_examples_has_a_high_score(tmp_path: Path):
    weights = likeness.weights_of(*(likeness.counts(pl.Series(texts(w, 80, 1))) for w in (SEA, FARM)))
    sides = [likeness.means(pl.Series(texts(w, 20, 2)), weights) for w in (SEA, FARM)]
    model = likeness.fitted(weights, *sides)
    model.save(tmp_path / "model")
    again = likeness.Model.read(tmp_path / "model")
    sea, farm = (again.scores(pl.Series(texts(w, 50, 3))) for w in (SEA, FARM))
    assert sea.min() > 0.7 and farm.max() < 0.3
    assert 0.2 < float(again.scores(pl.Series(texts(SEA + FARM, 50, 4))).mean()) < 0.8


def run_of(home: Path, shared_data: Path, like: dict[str, Any]) -> RunConfig:
    given = {
        "mine": texts(SEA, 60, 5),
        "web": [*texts(SEA, 40, 6), *texts(FARM, 60, 7)],
        "general": texts(FARM, 60, 8),
    }
    for name, some in given.items():
        (home / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in some))
    sources = [
        {"name": "web", "role": "domain", "weight": 0.8, "files": [str(home / "web.jsonl")], "like": like},
        {"name": "mine", "role": "domain", "weight": 0, "files": [str(home / "mine.jsonl")]},
        {"name": "general", "role": "replay", "weight": 0.2, "files": [str(home / "general.jsonl")]},
    ]
    off = {"language": "any", "gopher": False, "c4": False, "fineweb": False, "pii": "off"}
    return RunConfig.model_validate(
        {
            "name": "like",
            "store": str(home / "store"),
            "corpus": {"sources": sources, "slice_bytes": "1M", "holdout_fraction": 0, "filter": off},
            "model": {"base": str(shared_data / "models" / "stories260K-hf")},
            "packing": {"sequence_length": 64, "window_tokens": 4096},
            "training": {"token_budgets": ["4K"], "batch_tokens": 256, "learning_rate": 1e-3},
        }
    )


def test_a_source_is_filtered_by_what_another_is_like(tmp_path: Path, shared_data: Path):
    run = run_of(tmp_path, shared_data, {"source": "mine"})
    store, outcome = Store(run.store_path), Outcome()

    def build(request: Request, **_: Any) -> Artifact:
        return store.ensure(request, Making()).artifact

    before = planned(run)
    assert [row.state for row in before.rows if row.stage == "likeness"] == ["open"]
    adapt(Requests(run, store, warn=print), build, until="data", outcome=outcome)
    assert [one.source for one in outcome.slices][:3] == ["mine", "general", "web"]
    web = outcome.slices[2].artifacts
    kept = read_documents(web["filter"].part("documents").paths)["text"].to_pylist()
    assert sorted(kept) == sorted(texts(SEA, 40, 6))
    assert web["filter"].stats["dropped_by_reason"] == {"likeness": 60}
    assert "likeness" not in outcome.slices[0].artifacts["filter"].manifest.inputs
    assert web["likeness"].stats["auc"] == 1.0 and list(web["likeness"].stats["kept"]["0.5"]) == [1.0, 0.0]
    assert outcome.data is not None
    page = next(path for path in outcome.data.part("page").paths if path.name == "data.md").read_text()
    assert "## What is like the examples" in page and "left out at 0.5" in page and "kept at 0.5" in page
    assert all(row.state == "cached" for row in planned(run).rows if row.stage == "likeness")


@pytest.mark.parametrize(
    ("like", "words"),
    [
        ({"source": "nobody"}, "'nobody' is no other source (there are: mine, general)"),
        ({"source": "web"}, "'web' is no other source"),
        ({"source": "general"}, "'general' cannot be both"),
        ({"source": "mine", "unlike": "mine"}, "cannot be both"),
    ],
)
def test_examples_that_are_none_are_refused(
    tmp_path: Path, shared_data: Path, like: dict[str, str], words: str
):
    with pytest.raises((ConfigError, ValueError), match="like") as refused:
        run_of(tmp_path, shared_data, like)
    assert words in str(refused.value)


NEW = {
    "init": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "layers": 1,
        "heads": 2,
        "kv_heads": 1,
        "max_positions": 64,
        "tokenizer": {"vocabulary": 300},
        "pretrain_tokens": 4096,
    }
}


def test_the_tokenizer_of_a_new_model_is_made_of_replay_text(tmp_path: Path, shared_data: Path):
    raw = run_of(tmp_path, shared_data, {"source": "mine", "unlike": "general"}).model_dump(mode="json")
    web, mine, general = raw["corpus"]["sources"]
    raw["corpus"]["sources"] = [web | {"role": "replay"}, mine, general]
    raw["model"]["base"] = NEW
    run, stages = parse_config(raw), list[str]()
    check(run)
    store = Store(run.store_path)

    def build(request: Request, **_: Any) -> Artifact:
        stages.append(request.stage)
        return store.ensure(request, Making()).artifact

    ask, read = Requests(run, store, warn=print), list[list[str]]()

    def tokenizer(slices: list[Slice]) -> Input:
        read.append([one.source for one in slices])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        SliceReader(ask, build, tokenizer).until({"web": 1})
    assert read == [["general"]], "and not the examples of the domain"
    with pytest.raises(ConfigError, match="none of these is replay text"):
        _Tokenizer(ask, build)([Slice(1, "mine", {})])
    raw["corpus"]["sources"] = [web | {"role": "replay"}, mine, general | {"role": "domain"}]
    with pytest.raises(ConfigError, match="none of these is replay text"):
        check(parse_config(raw))
