"""One tiny world for all tests of the trainer, and trainers as real processes that start fast."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.training.world import (
    Death,
    World,
    make_world,
    trainer_main,
)

Start = Callable[..., BaseProcess]
"""Takes the specification, and how it is to die."""


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def plain_torch() -> Iterator[None]:
    """The trainer sets threads and determinism for its own process; here they are put back.

    A test computes by one thread: beside another test process, waiting threads cost many times what they give.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def start_trainer() -> Start:
    """Starts `tasks.training`'s main in a process of its own, from a server that has torch loaded already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "tasks.training.loop",
            "transformers.models.llama.modeling_llama",
            "transformers.models.auto.modeling_auto",
            "pandas",
        ]
    )

    def start(spec: dict[str, Any], death: Death | None = None) -> BaseProcess:
        work = Path(spec["paths"]["work"])
        work.mkdir(parents=True, exist_ok=True)
        path = work.with_suffix(".spec.json")
        path.write_text(json.dumps(spec))
        process = context.Process(target=trainer_main, args=(str(path), death))
        process.start()
        return process

    return start
