"""Reads and packs as a run does, by the DAG itself, and says what every file then is; trains nothing.

`python reader.py CONFIG [SLICES]` does it in a process of its own, by two readers side by side, and prints what it found as
JSON. SLICES: so many slices up to `tokenize`, and no round.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from flows.config import load_config
from flows.dag.pretrain import adapt
from flows.dag.requests import Requests
from flows.dag.state import Outcome
from storage.artifact import Artifact
from storage.store import Making, Request, Store


class NoTraining(Exception):
    """Where the DAG comes to a training."""


def read(config: Path, slices: int | None = None) -> Outcome:
    """Read and pack for every round, or read so many slices, one stage after the other."""
    run = load_config(config)
    store = Store(run.store_path)
    ask = Requests(run, store, warn=lambda _: None)
    until = "pack" if slices is None else "tokenize"
    return adapt(ask, lambda request, **_: _made(store, request), until=until, slices=slices)


def read_side_by_side(config: Path, slices: int | None = None) -> Outcome:
    """The same by two readers of one store: what reads ahead beside the first training, or another thread, and this one."""
    if slices is not None:
        with ThreadPoolExecutor(1) as pool:
            other, mine = pool.submit(read, config, slices), read(config, slices)
            assert facts(other.result()) == facts(mine)
        return mine
    run = load_config(config)
    store = Store(run.store_path)
    mine: list[Outcome] = []

    def build(request: Request, **_: object) -> Artifact:
        if request.stage == "train":  # the next round is read ahead now
            mine.append(read(config))
            raise NoTraining
        return _made(store, request)

    with contextlib.suppress(NoTraining):
        adapt(Requests(run, store, warn=lambda _: None), build, until="train", overlap=True)
    return mine[0]


def _made(store: Store, request: Request) -> Artifact:
    return store.ensure(request, Making()).artifact


def facts(outcome: Outcome) -> dict[str, list[Any]]:
    """Of each slice its number, source and stages, and of each round its packing: key, and sha256 of every file on disk."""
    slices = [
        [one.number, one.source, {stage: _files(made) for stage, made in one.artifacts.items()}]
        for one in outcome.slices
    ]
    return {"slices": slices, "rounds": [_files(made) for made in outcome.packed]}


def _files(made: Artifact) -> dict[str, str]:
    names = [entry.path for part in made.manifest.parts.values() for entry in part.files]
    digests = {name: hashlib.sha256((made.path / name).read_bytes()).hexdigest() for name in names}
    return {"key": made.key, **digests}


def main() -> None:
    """As a process."""
    config, *slices = sys.argv[1:]
    json.dump(facts(read_side_by_side(Path(config), *map(int, slices))), sys.stdout)


if __name__ == "__main__":
    main()
