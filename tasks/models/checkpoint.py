"""Stage `checkpoint`: a checkpoint that training kept on its way (`training.keep_every_tokens`), as a model of its own.

What `from_pretrained` loads of it, and no more: without optimizer states, it can be measured, registered and exported as
every other model. It is of the trunk, whose rate has not decayed, so it stands below what a budget's branch would give.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass

from storage.artifact import Artifact, Input
from storage.draft import Draft
from storage.errors import BadInput
from storage.settings import Settings, identity

STAGE = "checkpoint"
VERSION = 1
_PART = "kept"
_PLACE = re.compile(rf"{_PART}/tokens-(\d+)/")
_OF_TRAINING = ("optimizer.safetensors", "trunk.json", "state.json")


class CheckpointConfig(Settings):
    """Which of the kept checkpoints."""

    tokens: int = identity(
        description="Tokens after which it was kept: a multiple of keep_every_tokens.", ge=1
    )


@dataclass(frozen=True)
class CheckpointInputs:
    """What a trunk kept on its way (part `kept`)."""

    kept: Input


@dataclass(frozen=True)
class CheckpointStats:
    """Tokens seen, as its name says them; bytes of its files."""

    tokens_seen: int
    bytes: int


def kept_of(trunk: Artifact) -> list[int]:
    """Tokens of the checkpoints that a trunk kept, rising; none where none were asked for, or it is not made yet."""
    if not trunk.has(_PART) or _PART not in trunk.manifest.parts:
        return []
    names = (entry.path for entry in trunk.manifest.parts[_PART].files)
    return sorted({int(found[1]) for name in names if (found := _PLACE.match(name))})


def kept_part(trunk: Artifact) -> Input:
    """The part that holds them."""
    return trunk.part(_PART)


def run(config: CheckpointConfig, inputs: CheckpointInputs, draft: Draft) -> CheckpointStats:
    """Part `export`: configuration, weights and tokenizer. Raises BadInput where there is no such checkpoint."""
    directory = f"{_PART}/tokens-{config.tokens:015d}"
    files = [path for path in inputs.kept.paths if f"/{directory}/" in str(path)]
    if not files:
        raise BadInput(
            f"{inputs.kept.stage} {inputs.kept.key[:12]} kept no checkpoint at {config.tokens:,} tokens"
        )
    to = draft.path / "export"
    to.mkdir(exist_ok=True)
    size = 0
    for path in files:
        if path.name not in _OF_TRAINING:
            shutil.copyfile(path, to / path.name)
            size += path.stat().st_size
    draft.part("export", "export")
    return CheckpointStats(config.tokens, size)
