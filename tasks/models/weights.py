"""Whether the weights of a loaded base are whole: all are there, of the right shape and type, and are numbers.

One pass over the weights in memory, tensor by tensor and without a copy: a tenth of a second for 135M.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from storage.errors import ConfigError

_FLOATS = ("F64", "F32", "F16", "BF16")
_MOST_ZERO = 0.5
"""Share of the matrices that may be zero. Some methods begin with a few such layers; a copy that broke off has more."""


def check_weights(model: Any, facts: Mapping[str, Any], directory: Path) -> None:
    """Raise ConfigError unless the weights are whole. `facts`: what from_pretrained says about the loading."""
    if missing := sorted(map(str, facts["missing_keys"])):
        raise ConfigError(
            f"model.base: {directory} lacks weights of a {type(model).__name__}: {_some(missing)}; fetch it again, or "
            "save the whole model there"
        )
    if wrong := sorted(map(_shapes, facts["mismatched_keys"])):
        raise ConfigError(
            f"model.base: {directory} holds weights of another shape than its config.json says: {_some(wrong)}; fetch both "
            "from the same place"
        )
    parameters = dict(model.named_parameters())
    prefix = f"{model.base_model_prefix}."
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as weights:
            for name in weights.keys():  # noqa: SIM118 — not a mapping
                kind = weights.get_slice(name).get_dtype()
                if kind not in _FLOATS and (name in parameters or prefix + name in parameters):
                    raise ConfigError(
                        f"model.base: {path} holds whole numbers where weights should be ({name} is {kind}), and rounded "
                        "weights cannot be trained; choose the model that it was made from"
                    )
    _check_numbers(parameters, model.get_input_embeddings().weight, directory)


@torch.no_grad()
def _check_numbers(parameters: Mapping[str, torch.Tensor], embedding: torch.Tensor, directory: Path) -> None:
    zero, matrices, nothing = [], 0, False
    for name, parameter in parameters.items():
        if not parameter.numel():
            continue
        least, most = (float(value) for value in torch.aminmax(parameter))
        if not (abs(least) < float("inf") and abs(most) < float("inf")):  # also false for NaN
            raise ConfigError(
                f"model.base: {directory} holds NaN or infinity in {name}, so every loss would be NaN; fetch it again, "
                "or choose a checkpoint from before its training diverged"
            )
        if parameter.dim() > 1:
            matrices += 1
            if least == most == 0.0:
                zero.append(name)
                nothing = nothing or parameter is embedding
    if nothing or (zero and len(zero) >= _MOST_ZERO * matrices):
        raise ConfigError(
            f"model.base: {directory} holds nothing but zeros in {_some(zero)}: a copy that broke off?; fetch it again"
        )


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Context in which an error of the disk that safetensors met is the system's own, an OSError."""
    try:
        yield
    except SafetensorError as error:
        found = re.search(r"os error (\d+)", str(error))
        code = int(found[1]) if found else errno.ENOSPC if "WriteZero" in str(error) else None
        if code is None:
            raise
        raise OSError(code, os.strerror(code), str(path)) from error


def _shapes(entry: Any) -> str:
    if isinstance(entry, tuple | list) and len(entry) == 3:
        return f"{entry[0]} is {list(entry[1])}, not {list(entry[2])}"
    return str(entry)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"
