"""Weights as the sum of several models' weights, tensor by tensor and block by block, so that memory stays small."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open
from tokenizers import Tokenizer

from storage.errors import ConfigError
from tasks.models.source import WEIGHTS

_BLOCK = 1 << 20
"""Numbers that are summed at a time: 8 MB of float64 for each model and the sum."""
_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class _Tensor:
    """A tensor of the sum: as many bytes, of the type and shape that the last model has."""

    name: str
    kind: str
    shape: tuple[int, ...]

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)


def write_sum(
    directories: Sequence[Path],
    weights: Sequence[float],
    target: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Write `target`/model.safetensors: Σ weight · model over the models in the directories. Returns how many numbers.

    Each number is summed in float64 and rounded once, to the type that it has in the last model, whose whole numbers are
    copied. Raises ConfigError if the models do not have the same tensors, with equal shapes.
    """
    with ExitStack() as stack:
        models = [_opened(directory, stack) for directory in directories]
        tensors = _alike(directories, models)
        total, done = sum(one.numbers for one in tensors), 0
        with (target / WEIGHTS).open("wb") as file:
            _write_header(file, tensors, models[-1])
            for one in tensors:
                slices = [model[one.name].get_slice(one.name) for model in models]
                for block in _blocks(one, slices, weights):
                    file.write(block.contiguous().flatten().view(torch.uint8).numpy().tobytes())
                    done += block.numel()
                    progress(done, total)
    return total


def _opened(directory: Path, stack: ExitStack) -> dict[str, Any]:
    """For each tensor, the open file that holds it."""
    found: dict[str, Any] = {}
    for path in sorted(directory.glob("model*.safetensors")):
        file = stack.enter_context(safe_open(path, framework="pt"))
        found |= dict.fromkeys(file.keys(), file)
    return found


def _alike(directories: Sequence[Path], models: Sequence[Mapping[str, Any]]) -> list[_Tensor]:
    """The tensors of the last model in the order of the file: by size of a number, then by name, as the library writes."""
    last, found = models[-1], []
    for directory, model in zip(directories, models, strict=True):
        if model.keys() != last.keys():
            name = min(model.keys() ^ last.keys())
            has, lacks = (directory, directories[-1]) if name in model else (directories[-1], directory)
            raise ConfigError(
                f"{lacks} lacks the weights {name} that {has} has: only models of one shape can be merged"
            )
    for name in last:
        shapes = [tuple(model[name].get_slice(name).get_shape()) for model in models]
        for directory, shape in zip(directories, shapes, strict=True):
            if shape != shapes[-1]:
                raise ConfigError(
                    f"{name} is {list(shape)} in {directory} and {list(shapes[-1])} in {directories[-1]}: only "
                    "models of one "
                    "shape can be merged"
                )
        found.append(_Tensor(name, last[name].get_slice(name).get_dtype(), shapes[-1]))
    return sorted(found, key=lambda one: (-_bytes(one.kind), one.name))


def _bytes(kind: str) -> int:
    """Bytes of a number: F32, BF16, I64, U8, BOOL."""
    digits = "".join(letter for letter in kind if letter.isdigit())
    return int(digits[:2]) // 8 if digits else 1


def _write_header(file: BinaryIO, tensors: Sequence[_Tensor], last: Mapping[str, Any]) -> None:
    """The head of a safetensors file: its length, then JSON of each tensor's type, shape and place."""
    metadata = next(iter(last.values())).metadata() or {}
    head: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    at = 0
    for one in tensors:
        end = at + one.numbers * _bytes(one.kind)
        head[one.name] = {"dtype": one.kind, "shape": list(one.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)


def _blocks(one: _Tensor, slices: Sequence[Any], weights: Sequence[float]) -> Iterator[torch.Tensor]:
    """The tensor of the sum, some rows at a time."""
    if not one.shape:
        yield _summed([part[...] for part in slices], weights, one.kind).reshape(1)
        return
    rows = max(1, _BLOCK // max(1, one.numbers // max(1, one.shape[0])))
    for first in range(0, one.shape[0], rows):
        yield _summed([part[first : first + rows] for part in slices], weights, one.kind)


def _summed(parts: Sequence[torch.Tensor], weights: Sequence[float], kind: str) -> torch.Tensor:
    if kind not in _FLOATS:
        return parts[-1]
    total = torch.zeros(parts[0].shape, dtype=torch.float64)
    for part, weight in zip(parts, weights, strict=True):
        total += part.double() * weight
    return total.to(_FLOATS[kind])


def check_words(base: Path, other: Path) -> None:
    """Raise ConfigError unless each word of the base's tokenizer has the same id in the other's. Special tokens may have
    other names there: chat models name those that the base left unused.
    """
    mine, theirs = (Tokenizer.from_file(str(one / "tokenizer.json")) for one in (base, other))
    known = theirs.get_vocab(with_added_tokens=True)
    for word, number in mine.get_vocab(with_added_tokens=False).items():
        if known.get(word) != number and mine.id_to_token(number) == word and not _special(mine, number):
            raise ConfigError(
                f"merge.instruct: its tokenizer gives {word!r} another id than the base's does; name the chat "
                "model that was "
                "made from this base"
            )


def _special(tokenizer: Tokenizer, number: int) -> bool:
    return number in tokenizer.get_added_tokens_decoder()
