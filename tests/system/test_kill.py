"""Killed with SIGKILL in every stage, a run ends with the bytes of one that was never killed."""

from __future__ import annotations

import json
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.support.attempts import Attempt, wait_until_alone
from tests.support.small import digests, write_config

STAGES = (
    "ingest",
    "dedup",
    "filter",
    "decontaminate",
    "tokenizer",
    "base",
    "tokenize",
    "pack",
    "train",
    "perplexity",
    "questions",
    "evaluate",
    "samples",
    "train",
    "train",
    "decay",
    "checkpoint",
    "merge",
    "contamination",
    "data",
    "report",
)
"""Every stage, in the order in which a run comes to them: one that is killed has all that follow before it."""
EVERY_STAGE: dict[str, Any] = {
    "budgets": ("8K",),
    "training__keep_every_tokens": "4K",
    "evaluation__checkpoints": True,
    "merge__interpolate": [0.5],
    "evaluation__own": [
        {"name": "continuation", "group": "domain", "held_out": "domain", "questions": 8},
        {"name": "counting", "group": "general", "file": "questions.jsonl"},
    ],
}
"""A run that comes to each of them: a checkpoint kept on the way, a benchmark that the corpus was not searched for."""


def configure(home: Path) -> list[str]:
    """The command that makes a run of every stage in `home`."""
    rows = [
        {"question": f"The word after {word} is", "choices": [after, "none"], "answer": 0}
        for word, after in (("one", "two"), ("three", "four"))
    ]
    (home / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    config = write_config(home, **EVERY_STAGE)
    return [sys.executable, "-m", "tests.support.driver", str(config)]


@pytest.mark.slow
def test_killed_in_every_stage_it_ends_with_the_same_bytes(tmp_path, tmp_path_factory):
    calm = tmp_path_factory.mktemp("calm")
    alone = Attempt(configure(calm), calm)
    command, store = configure(tmp_path), tmp_path / "store"
    assert alone.ended(600) == 0, alone.errors[-3000:]
    undisturbed = digests(calm / "store")
    seed = random.randrange(10**6)
    rng = random.Random(seed)
    begun, hit = Counter[str](), Counter[str]()
    for number, stage in enumerate(STAGES):
        attempt = Attempt(command, tmp_path)
        if attempt.wait_for(f"make {stage} "):
            time.sleep(rng.uniform(0, 3.0 if stage in ("train", "decay") else 0.05))
            attempt.kill(whole_group=number % 2 == 0)
            begun[stage] += 1
            hit[attempt.last_stage()] += 1
        wait_until_alone(store)
    last = Attempt(command, tmp_path)
    assert last.ended(600) == 0, last.errors[-3000:]
    assert digests(store) == undisturbed, f"killed in {dict(hit)}, seed {seed}"
    assert not list((store / ".work").glob("*/manifest.json"))
    assert begun == Counter(STAGES), f"not begun any more when it was to be killed; seed {seed}"
    assert hit["train"] and len(hit) > 9, f"the kills landed in {dict(hit)}"
    print(f"{begun.total()} kills, seed {seed}, in {dict(hit)}: {len(undisturbed)} artifacts equal")
