"""The loss on held-out text while a segment trains, in `heldout.jsonl`: a line for each measurement.

What must stay true: a measurement changes no weight and no random state, and nothing of it is in the bytes of an
artifact. Where it falls depends on the tokens seen alone, and its values on the weights; so a resume cuts away the lines
behind its checkpoint and makes the same again. The first process measures, while the others wait at their next sum;
weights that are sharded are not measured.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from storage.errors import DamagedArtifact
from tasks.training.attention import RowDocuments
from tasks.training.model import LanguageModel
from tasks.training.recompute import to_train
from tasks.training.state.heldout import LINES, PREFIX, cut, read_lines, spacing


@dataclass(frozen=True)
class _Row:
    """Documents of one forward pass; tensors are [tokens] int64 on the device."""

    inputs: Tensor
    positions: Tensor
    targets: Tensor
    packing: RowDocuments
    sources: Tensor
    """The number of each token's source."""


class Heldout:
    """Measures a model on the held-out text of one work directory."""

    def __init__(
        self, work: Path, text: Mapping[str, Sequence[Sequence[int]]], every: int, step: int, most: int
    ) -> None:
        """`text` as in TEXT; `step`: where training goes on, later lines are cut off; `most`: tokens of a pass."""
        self.every, self._most = every, most
        self._path, self._text = work / LINES, text
        self._rows: list[_Row] | None = None
        cut(self._path, step)

    @classmethod
    def open(
        cls, path: Path | None, work: Path, asked: int | str | None, *, segment: int, step: int, most: int
    ) -> Heldout | None:
        """What is measured in a segment of `segment` tokens that goes on at `step`; None if nothing is.

        `path` is that of TEXT. Raises DamagedArtifact if it is not such a file.
        """
        if path is None or asked is None:
            return None
        try:
            text = json.loads(path.read_bytes())
            counts = [len(ids) - 1 for documents in text.values() for ids in documents]
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise DamagedArtifact(f"{path}: no held-out tokens ({error})") from error
        every = spacing(asked, sum(counts), segment)
        return None if every is None else cls(work, text, every, step, most)

    def due(self, before: int, after: int) -> bool:
        """Whether a multiple of `every` tokens lies in (before, after]."""
        return before // self.every != after // self.every

    @property
    def begun(self) -> bool:
        """Whether anything was measured."""
        return bool(read_lines(self._path))

    def measure(self, model: LanguageModel, step: int, tokens: int, chunk: int) -> dict[str, Any]:
        """Append a line: each source's mean loss after `step` steps and `tokens` tokens. `chunk`: tokens at the head."""
        began = time.perf_counter()
        found = losses(model, self._made(model.device), len(self._text), chunk)
        line: dict[str, Any] = {"step": step, "tokens": tokens}
        line |= {f"{PREFIX}{name}": value for name, value in zip(self._text, found, strict=True)}
        line["seconds"] = time.perf_counter() - began
        with self._path.open("ab") as file:
            file.write((json.dumps(line) + "\n").encode())
        return line

    def _made(self, device: torch.device) -> list[_Row]:
        if self._rows is None:
            self._rows = list(_rows(self._text, self._most, device))
        return self._rows


@torch.no_grad()
def losses(model: LanguageModel, rows: Sequence[_Row], sources: int, chunk: int) -> list[float | None]:
    """Mean loss of each source, in nats per token; None where it is not finite. The model is left in training mode."""
    plain = replace(model, body=model.whole.base_model)  # a compiled body would be compiled again
    sums = torch.zeros(sources, dtype=torch.float64)
    counts = torch.zeros(sources, dtype=torch.int64)
    model.whole.eval()
    try:
        for row in rows:
            with model.autocast():
                hidden = plain.hidden(row.inputs[None], row.positions[None], row.packing)
                parts = zip(hidden.split(chunk), row.targets.split(chunk), strict=True)
                found = [
                    functional.cross_entropy(model.head(part).float(), target, reduction="none")
                    for part, target in parts
                ]
            own = row.sources.cpu()
            sums.index_add_(0, own, torch.cat(found).double().cpu())
            counts += torch.bincount(own, minlength=sources)
    finally:
        to_train(model.whole)
    means = (sums / counts).tolist()
    return [value if math.isfinite(value) else None for value in means]


def _rows(text: Mapping[str, Sequence[Sequence[int]]], most: int, device: torch.device) -> list[_Row]:
    """Rows of whole documents, `most` tokens at most where a document is not longer."""
    documents = [(number, ids) for number, held in enumerate(text.values()) for ids in held if len(ids) > 1]
    groups: list[list[tuple[int, Sequence[int]]]] = []
    room = 0
    for number, ids in documents:
        if len(ids) - 1 > room:
            groups.append([])
            room = most
        groups[-1].append((number, ids))
        room -= len(ids) - 1
    return [_row(group, device) for group in groups]


def _row(group: Sequence[tuple[int, Sequence[int]]], device: torch.device) -> _Row:
    lengths = tuple(len(ids) - 1 for _, ids in group)
    sources = [number for (number, _), length in zip(group, lengths, strict=True) for _ in range(length)]
    return _Row(
        inputs=torch.tensor([token for _, ids in group for token in ids[:-1]], device=device),
        positions=torch.cat([torch.arange(length) for length in lengths]).to(device),
        targets=torch.tensor([token for _, ids in group for token in ids[1:]], device=device),
        packing=RowDocuments.of(lengths, device),
        sources=torch.tensor(sources),
    )
