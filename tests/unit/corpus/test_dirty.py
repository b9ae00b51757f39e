"""Planted near-duplicates and benchmark questions in real documents, through the three stages in their order."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from storage.testing import draft_in
from tasks.corpus import decontaminate, dedup
from tasks.corpus import filter as quality
from tasks.corpus.benchmarks.questions import benchmark_inputs
from tasks.corpus.decontaminate import DecontaminateConfig, DecontaminateInputs
from tasks.corpus.dedup import DedupConfig, DedupInputs
from tasks.corpus.documents import document_ids
from tasks.corpus.filter import FilterConfig, FilterInputs
from tests.support.corpus.shared import rows_of
from tests.support.corpus.slices import dropped_in, part_in, slice_of, texts_in

BENCHMARKS = (
    "mmlu",
    "hellaswag",
    "arc_easy",
    "arc_challenge",
    "piqa",
    "winogrande",
    "openbookqa",
    "sciq",
    "boolq",
    "lambada_openai",
)


def similarity(a: str, b: str) -> float:
    """Jaccard of word 5-grams, words as Python finds them."""
    words = [re.findall(r"\w+", text.lower()) for text in (a, b)]
    one, other = ({tuple(own[i : i + 5]) for i in range(len(own) - 4)} for own in words)
    return len(one & other) / max(len(one | other), 1)


@pytest.mark.slow
def test_what_was_planted_is_found_and_the_rest_left_alone(tmp_path: Path, shared_data: Path) -> None:
    rows = rows_of(shared_data / "dirty")
    truth = json.loads((shared_data / "dirty" / "truth.json").read_text())
    names = dict(zip(document_ids("tales", 0, len(rows)).tolist(), [row["id"] for row in rows], strict=True))
    twice = set(truth["duplicate_ids"])
    given = slice_of(tmp_path / "in", [row["text"] for row in rows])

    drafts = [draft_in(tmp_path / str(i)) for i in range(3)]
    dedup.run(DedupConfig(), DedupInputs(given), drafts[0])
    quality.run(FilterConfig(), FilterInputs(part_in(drafts[0].path, "documents")), drafts[1])
    entries, paths = benchmark_inputs(shared_data / "benchmarks", BENCHMARKS)
    config = DecontaminateConfig(benchmarks=BENCHMARKS, holdout_fraction=0.0)
    decontaminate.run(
        config, DecontaminateInputs(part_in(drafts[1].path, "documents"), entries, True, paths), drafts[2]
    )
    fate = {names[row["id"]]: row for draft in drafts for row in dropped_in(draft.path)}
    fate = {name: row for name, row in fate.items() if name not in twice}

    pairs = [
        (cluster["original"], member["id"])
        for cluster in truth["near_dup_clusters"]
        for member in cluster["members"]
        if member["jaccard5_vs_original"] >= 0.8
    ]
    caught = sum(any(fate.get(name, {}).get("stage") == "dedup" for name in pair) for pair in pairs)
    assert caught >= 0.95 * len(pairs) > 150

    planted = {c["id"] for c in truth["contamination"] if len(re.findall(r"\w+", c["planted"])) >= 13}
    reached = [name for name in planted if fate.get(name, {}).get("stage") in (None, "decontaminate")]
    assert sum(name in fate for name in reached) >= 0.98 * len(reached) > 60

    # what dedup drops of the others has a twin here, natural or planted: every similarity is a true one
    gone = [row for name, row in fate.items() if row["stage"] == "dedup"]
    assert all(row["value"] >= 0.7 and int(row["detail"].split()[0]) in names for row in gone)
    assert len(gone) < 0.13 * len(rows)
    kept = Counter(" ".join(text.lower().split()) for text in texts_in(drafts[0].path))
    assert max(kept.values()) == 1  # no exact copy is left
    text_of = dict(zip(names, [row["text"] for row in rows], strict=True))
    twins = [
        row["reason"] == "exact_duplicate"
        or similarity(text_of[row["id"]], text_of[int(row["detail"].split()[0])]) >= 0.7
        for row in dropped_in(drafts[0].path)
    ]
    assert sum(twins) >= 0.98 * len(twins) > 200  # 0.938 in datatrove: benchmarks/dedup_agreement.py
