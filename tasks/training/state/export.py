"""A segment's outputs: `export/` (for from_pretrained) and `trunk/` (from which training can go on).

Each is written to a temporary directory and renamed. result.json comes last and says that all are there. A kill in
between costs only the writing, because the last checkpoint holds the end state. No byte depends on clock or path.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from storage.atomic import write_bytes
from storage.errors import BadInput
from tasks.training.model import quiet
from tasks.training.state.checkpoint import OPTIMIZER, STATE
from tasks.training.state.sealed import json_bytes

_NO_TOKENIZER_SUFFIX = {
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".msgpack",
    ".h5",
    ".onnx",
    ".gguf",
    ".md",
    ".py",
}
_NO_TOKENIZER_NAME = {"config.json", "generation_config.json", "manifest.json", STATE}


def write_export(
    directory: Path, model: Any, tokenizer: Path, eot: int | None, weights: Mapping[str, Tensor] | None = None
) -> None:
    """Write weights (float32, aliases dropped), configuration and tokenizer into an empty directory.

    `weights` replaces the model's own: whole weights of a sharded model, or a mean.
    """
    write_model(directory, model, eot, weights)
    copy_tokenizer(tokenizer, directory)


def write_trunk(
    directory: Path,
    model: Any,
    optimizer: Mapping[str, Tensor],
    state: Mapping[str, Any],
    eot: int | None,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write weights, configuration, optimizer state and position into an empty directory."""
    write_model(directory, model, eot, weights)
    save_file(dict(optimizer), directory / OPTIMIZER)
    write_bytes(directory / STATE, json_bytes(state))


def write_model(
    directory: Path, model: Any, eot: int | None, weights: Mapping[str, Tensor] | None = None
) -> None:
    """Write config.json, generation_config.json and model.safetensors. Missing begin- and end-of-text ids become
    `eot`.
    """
    for holder in (model.config, model.generation_config):
        for name in ("eos_token_id", "bos_token_id"):
            if holder is not None and getattr(holder, name, None) is None and eot is not None:
                setattr(holder, name, eot)
    with quiet():
        model.save_pretrained(directory, state_dict=None if weights is None else dict(weights))


def tokenizer_files(tokenizer: Path) -> list[Path]:
    """The tokenizer's files in a directory that may also hold a model. Raises BadInput if there are none."""
    found = [
        path
        for path in sorted(tokenizer.iterdir() if tokenizer.is_dir() else [])
        if path.is_file()
        and not path.name.startswith(".")
        and path.suffix not in _NO_TOKENIZER_SUFFIX
        and path.name not in _NO_TOKENIZER_NAME
        and not path.name.endswith(".index.json")
    ]
    if not found:
        raise BadInput(f"{tokenizer} holds no tokenizer files; the export would not load.")
    return found


def copy_tokenizer(tokenizer: Path, directory: Path) -> None:
    """Copy the tokenizer's files, bytes only."""
    for path in tokenizer_files(tokenizer):
        shutil.copyfile(path, directory / path.name)
