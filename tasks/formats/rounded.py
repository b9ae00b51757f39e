"""Weights rounded to another type, in files that `from_pretrained` loads."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from storage.errors import ConfigError
from tasks.models.form import BF16, FP16, FP32
from tasks.models.source import CONFIG
from tasks.models.weights import disk_errors

TORCH = {BF16: torch.bfloat16, FP16: torch.float16, FP32: torch.float32}


def write_rounded(export: Path, directory: Path, dtype: str) -> None:
    """Write the *.safetensors of `export` into `directory` with all weights in `dtype`, and say so in its config.json.

    Rounding is to the nearest, ties to even. The type stands there under the names of
    transformers 5 (`dtype`) and 4 (`torch_dtype`). Raises ConfigError if a number does not fit into the type.
    """
    for path in sorted(export.glob("*.safetensors")):
        with safe_open(path, framework="pt") as weights:
            tensors = {
                name: rounded(weights.get_tensor(name), dtype, name)
                for name in weights.keys()  # noqa: SIM118 — not a mapping
            }
            metadata = weights.metadata()
        with disk_errors(directory / path.name):
            save_file(tensors, directory / path.name, metadata)
    values = json.loads((directory / CONFIG).read_bytes())
    said = str(TORCH[dtype]).removeprefix("torch.")
    values |= {"dtype": said, "torch_dtype": said}
    text = json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    (directory / CONFIG).write_text(text, encoding="utf-8")


def rounded(tensor: torch.Tensor, dtype: str, name: str) -> torch.Tensor:
    """A tensor in another type; whole numbers stay as they are. Raises ConfigError if a number is beyond the type."""
    if not tensor.is_floating_point():
        return tensor
    narrow = tensor.to(TORCH[dtype])
    if not bool(torch.isfinite(narrow).all()) and bool(torch.isfinite(tensor).all()):
        raise ConfigError(
            f"--dtype {dtype}: {name} holds {float(tensor.abs().max()):.3g}, and {dtype} ends at "
            f"{torch.finfo(TORCH[dtype]).max:,.0f}; take --dtype {BF16}"
        )
    return narrow
