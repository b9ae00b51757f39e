"""The trainer's model, and rows of packed documents to put through it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tasks.training.model import LanguageModel, load_model, read_config
from tasks.training.read_spec import parse_spec
from tasks.training.spec import Identity
from tests.support.training.world import VOCABULARY, World


def load(world: World, path: Path, compiled: bool = False, **identity: Any) -> LanguageModel:
    """The model saved at `path`, as the trainer loads it on a CPU."""
    made = {f"identity__{name}": value for name, value in identity.items()}
    wanted: Identity = parse_spec(world.spec(path, **made)).identity
    execution = {"device": "cpu", "gradient_checkpointing": "none", "compile": compiled}
    return load_model(path, read_config(path, wanted), wanted, execution)


def random_row(seed: int, tokens: int, longest: int) -> tuple[torch.Tensor, torch.Tensor, tuple[int, ...]]:
    """(ids, positions, lengths) of documents of random lengths that fill a row."""
    random = torch.Generator().manual_seed(seed)
    lengths: list[int] = []
    while sum(lengths) < tokens:
        drawn = int(torch.randint(1, longest + 1, (), generator=random))
        lengths.append(min(drawn, tokens - sum(lengths)))
    ids = torch.randint(VOCABULARY, (tokens,), generator=random)
    return ids, torch.cat([torch.arange(length) for length in lengths]), tuple(lengths)
