"""Stage `checkpoint`: a checkpoint kept during training (`training.keep_every_tokens`) becomes a model of its own.

It contains only what `from_pretrained` loads, without optimizer states. It can be measured, registered and exported
like every other model. It belongs to the trunk, whose rate has not decayed, so it scores lower than a budget's decay
branch.
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
OF_TRAINING = ("optimizer.safetensors", "trunk.json", "state.json")
"""Files of a trunk, or of a kept checkpoint, that are of training alone."""


class CheckpointConfig(Settings):
    """Which of the kept checkpoints."""

    tokens: int = identity(
        description="Tokens after which it was kept: a multiple of keep_every_tokens.", ge=1
    )


@dataclass(frozen=True)
class CheckpointInputs:
    """The checkpoints that a trunk kept (part `kept`)."""

    kept: Input


@dataclass(frozen=True)
class CheckpointStats:
    """Tokens seen (from the checkpoint's name), and bytes of its files."""

    tokens_seen: int
    bytes: int


def kept_of(trunk: Artifact) -> list[int]:
    """Tokens of the checkpoints that a trunk kept, ascending. Empty if none were requested or the trunk is not made
    yet."""
    if not trunk.has(_PART) or _PART not in trunk.manifest.parts:
        return []
    names = (entry.path for entry in trunk.manifest.parts[_PART].files)
    return sorted({int(found[1]) for name in names if (found := _PLACE.match(name))})


def kept_part(trunk: Artifact) -> Input:
    """The part that contains them."""
    return trunk.part(_PART)


def run(config: CheckpointConfig, inputs: CheckpointInputs, draft: Draft) -> CheckpointStats:
    """Part `export`: configuration, weights and tokenizer. Raises BadInput if there is no such checkpoint."""
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
        if path.name not in OF_TRAINING:
            shutil.copyfile(path, to / path.name)
            size += path.stat().st_size
    draft.part("export", "export")
    return CheckpointStats(config.tokens, size)
