"""A whole run small enough for a test: words that come with Python, a new model of a few thousand weights."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from tests.support import ROOT

ONWARD = [sys.executable, "-m", "flows.cli"]


def write_text(directory: Path, documents: int = 240) -> None:
    """Two sources of JSON lines: sentences drawn by a seed from the words of Python's own language reference."""
    from pydoc_data.topics import topics

    counted = Counter(
        word.lower() for text in topics.values() for word in re.findall(r"[A-Za-z]{2,12}", text)
    )
    words = [word for word, _ in counted.most_common(600)]
    weights = [1 / (rank + 4) for rank in range(len(words))]
    directory.mkdir(parents=True, exist_ok=True)
    for offset, name in enumerate(("domain", "general")):
        rng = random.Random(offset)
        chosen = words[offset * 100 :] + ["the", "of", "and", "that"] * 3
        for number in range(2):
            lines = []
            for at in range(documents // 2):
                weighted = weights[: len(words[offset * 100 :])] + [0.3] * 12
                sentences = [
                    " ".join(rng.choices(chosen, weighted, k=rng.randrange(6, 14))).capitalize() + "."
                    for _ in range(rng.randrange(16, 40))
                ]
                lines.append(json.dumps({"id": f"{name}-{number}-{at}", "text": " ".join(sentences)}))
            (directory / f"{name}-{number}.jsonl").write_text("\n".join(lines) + "\n")


def write_config(
    home: Path, store: str = "store", budgets: tuple[str, ...] = ("8K", "20K"), **over: Any
) -> Path:
    """The run's YAML (JSON is YAML) in `home`, with the text beside it."""
    if not (home / "text").exists():
        write_text(home / "text")
    raw: dict[str, Any] = {
        "name": "small",
        "store": store,
        "seed": 3,
        "corpus": {
            "sources": [
                {"name": "domain", "role": "domain", "weight": 0.75, "files": ["text/domain-*.jsonl"]},
                {"name": "general", "role": "replay", "weight": 0.25, "files": ["text/general-*.jsonl"]},
            ],
            "slice_bytes": "40K",
            "holdout_fraction": 0.2,
            "execution": {"workers": 2},
        },
        "model": {
            "base": {
                "init": {
                    "hidden_size": 32,
                    "layers": 2,
                    "heads": 2,
                    "max_positions": 128,
                    "tokenizer": {"vocabulary": 400},
                    "pretrain_tokens": "4K",
                }
            }
        },
        "packing": {"sequence_length": 64, "window_tokens": "4K"},
        "training": {
            "token_budgets": list(budgets),
            "batch_tokens": 256,
            "learning_rate": 3e-3,
            "schedule": {"kind": "wsd", "warmup_tokens": "1K", "decay_fraction": 0.2},
            "precision": "fp32",
            "execution": {"device": "cpu", "threads": 1, "checkpoint_every": "500ms"},
        },
        "evaluation": {
            "own": [{"name": "continuation", "group": "domain", "held_out": "domain", "questions": 8}],
            "sample_tokens": 8,
        },
    }
    for dotted, value in over.items():
        *path, last = dotted.split("__")
        node = raw
        for step in path:
            node = node.setdefault(step, {})
        node[last] = value
    path = home / f"{store}.yaml"
    path.write_text(json.dumps(raw, indent=1))
    return path


SERVER = "ONWARD_TEST_PREFECT"
"""In the environment: the API of the Prefect server that runs use; without it each starts one of its own, for seconds."""


def environment(home: Path) -> dict[str, str]:
    """Of a child process: relative paths start at `home`, Prefect's database lies there too."""
    address = {"PREFECT_API_URL": os.environ[SERVER]} if SERVER in os.environ else {}
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},
        **address,
        "ONWARD_HOME": str(home),
        "PREFECT_HOME": str(home / "prefect"),
        "PYTHONPATH": str(ROOT),
        "DO_NOT_TRACK": "true",
        "HF_HUB_OFFLINE": "1",
    }


def onward(home: Path, *arguments: Any, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """Run a command of Onward's to its end."""
    return subprocess.run(
        [*ONWARD, *map(str, arguments)],
        env=environment(home),
        cwd=home,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def run_json(home: Path, config: Path, *arguments: Any) -> dict[str, Any]:
    """`onward run --json`; fails where it does."""
    answer = onward(home, "run", config, "--json", *arguments)
    assert answer.returncode == 0, answer.stderr[-4000:]
    lines = answer.stdout.splitlines()
    assert len(lines) == 1, f"standard output holds more than one line: {answer.stdout[:500]}"
    result: dict[str, Any] = json.loads(lines[0])
    return result


def digests(store: Path) -> dict[str, dict[str, str]]:
    """Digest of each part of each artifact, by stage and key, recomputed from the bytes on the disk."""
    from storage.store import Store

    opened = Store(store)
    found = {}
    for artifact in opened.artifacts():
        assert opened.verify(artifact) == []
        found[f"{artifact.stage}/{artifact.key}"] = {n: p.digest for n, p in artifact.manifest.parts.items()}
    return found
