"""One rule that takes a large share of a slice is named with examples, also where the slice is found in the store."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from flows.config import RunConfig
from flows.dag.pretrain import adapt
from flows.dag.requests import Requests
from storage.artifact import Artifact
from storage.store import Making, Request, Store
from tasks.corpus.shares import FEW, LARGE, key_of, large_shares, warning_of

MAIL = "ada.lovelace@analytical.example.com"
GOOD = (
    "The cart with number {n} was driven to the mill and back, and nobody had seen it on the road since then. "
    * 8
)
SHORT = "Page {n}\u200b of " + MAIL + " is too\tshort."


def run_of(home: Path, shared_data: Path, texts: list[str], **filter: Any) -> RunConfig:
    rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (home / "notes.jsonl").write_text(rows)
    source = {
        "name": "notes",
        "role": "domain",
        "weight": 1,
        "files": [str(home / "notes.jsonl")],
        "order": "as_given",
    }
    off = {"language": "any", "c4": False, "fineweb": False}
    return RunConfig.model_validate(
        {
            "name": "shares",
            "store": str(home / "store"),
            "corpus": {
                "sources": [source],
                "dedup": {"exact": False, "minhash": None},
                "filter": {**off, **filter},
                "holdout_fraction": 0,
            },
            "model": {"base": str(shared_data / "models" / "stories260K-hf")},
            "packing": {"sequence_length": 64, "window_tokens": 4096},
            "training": {"token_budgets": ["100M"], "batch_tokens": 256, "learning_rate": 1e-3},
        }
    )


def warned(run: RunConfig, made: dict[str, Artifact] | None = None) -> list[str]:
    """What is warned of the filter while the slices are read."""
    store, said = Store(run.store_path), list[str]()

    def build(request: Request, **_: Any) -> Artifact:
        artifact = store.ensure(request, Making()).artifact
        if made is not None:
            made[request.stage] = artifact
        return artifact

    adapt(Requests(run, store, warn=said.append), build, until="filter")
    return [line for line in said if line.startswith("filter")]


def test_the_rule_is_named_with_its_share_and_examples(tmp_path: Path, shared_data: Path) -> None:
    texts = [SHORT.format(n=n) if n % 3 else GOOD.format(n=n) for n in range(90)]
    thresholds = {"gopher_duplicate_5_grams": None, "gopher_top_2_gram": None, "gopher_top_3_gram": None}
    thresholds |= {f"gopher_duplicate_{n}_grams": None for n in range(5, 11)} | {"gopher_top_4_gram": None}
    run = run_of(tmp_path, shared_data, texts, thresholds=thresholds)
    made: dict[str, Artifact] = {}
    (line,) = warned(run, made)
    dropped = pq.read_table(made["filter"].part("dropped").only()).to_pylist()
    (reason,) = {row["reason"] for row in dropped}
    assert line.startswith(
        f"filter · slice 1, of source notes: {reason} drops 60 of 90 documents (67 %), such as "
    )
    ids = re.findall(r"(\d{5,}) “(Page \d+· of \|\|\|EMAIL_ADDRESS\|\|\| is too short\.)” \(([\d.]+), ", line)
    assert [int(one) for one, _, _ in ids] == [row["id"] for row in dropped[:3]]
    assert [float(value) for _, _, value in ids] == [row["value"] for row in dropped[:3]]
    assert MAIL not in line and line.endswith(f"`onward explain {dropped[0]['id']}` follows one of them")
    assert warned(run) == [line], "found in the store, it is said again"
    (taken,) = large_shares(made["filter"].stats)
    made["filter"].part("dropped").only().unlink()
    without = warning_of(taken, made["filter"].part("dropped"), made["dedup"].part("documents"), masked=True)
    key = f"corpus.filter.thresholds: {{{taken.rule}: null}}, or another limit"
    assert without == f"{taken}. To keep them: {key}", "what cannot be read is left out"
    assert key_of("language") == "corpus.filter.language: any"


def test_what_is_usual_or_little_is_not_warned_of() -> None:
    def stats(asked: int, **reasons: int) -> dict[str, Any]:
        return {"documents_in": asked, "dropped_by_reason": reasons}

    assert (LARGE, FEW) == (0.25, 20), "docs/filters.md states them"
    assert not large_shares(stats(1000, a=249, b=249, c=249))
    assert [one.rule for one in large_shares(stats(1000, a=250, b=700))] == ["b", "a"]
    assert not large_shares(stats(19, a=19)) and large_shares(stats(20, a=20))
    assert not large_shares(stats(0))
