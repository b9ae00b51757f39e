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
from tasks.training.state.heldout import DOCUMENTS, LINES, PREFIX, cut, read_lines, spacing


@dataclass(frozen=True)
class _Row:
    """Documents of one forward pass; tensors are [tokens] int64 on the device."""

    inputs: Tensor
    positions: Tensor
    targets: Tensor
    packing: RowDocuments
    documents: Tensor
    """The number of each token's document."""


class Heldout:
    """Measures a model on the held-out text of one work directory."""

    def __init__(
        self, path: Path, text: Mapping[str, Sequence[Sequence[int]]], every: int, step: int, most: int
    ) -> None:
        """`path`: of the lines; `text` as in TEXT; `step`: where training goes on, later lines are cut off; `most`: tokens
        of a pass."""
        self.every, self._most = every, most
        self._path, self._text = path, text
        self._rows: list[_Row] | None = None
        cut(self._path, step)

    @classmethod
    def open(
        cls,
        path: Path | None,
        work: Path,
        asked: int | str | None,
        *,
        segment: int,
        step: int,
        most: int,
        lines: str = LINES,
    ) -> Heldout | None:
        """What is measured in a segment of `segment` tokens that goes on at `step`; None if nothing is.

        `path` is that of TEXT; `lines` names the file of what is measured. Raises DamagedArtifact if it is not such a file.
        """
        if path is None or asked is None:
            return None
        try:
            text = json.loads(path.read_bytes())
            counts = [len(ids) - 1 for documents in text.values() for ids in documents]
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise DamagedArtifact(f"{path}: no held-out tokens ({error})") from error
        every = spacing(asked, sum(counts), segment)
        return None if every is None else cls(work / lines, text, every, step, most)

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
        counts = {name: [len(ids) - 1 for ids in held] for name, held in self._text.items()}
        left = iter(nats(model, self._made(model.device), sum(map(len, counts.values())), chunk))
        line: dict[str, Any] = {"step": step, "tokens": tokens}
        of_each: dict[str, list[list[float | None]]] = {}
        for name, tokens_of in counts.items():
            found = [next(left) for _ in tokens_of]
            line[f"{PREFIX}{name}"] = _finite(sum(found) / max(1, sum(tokens_of)))
            of_each[name] = [[count, _finite(value)] for count, value in zip(tokens_of, found, strict=True)]
        line |= {DOCUMENTS: of_each, "seconds": time.perf_counter() - began}
        with self._path.open("ab") as file:
            file.write((json.dumps(line) + "\n").encode())
        return line

    def _made(self, device: torch.device) -> list[_Row]:
        if self._rows is None:
            self._rows = list(_rows(self._text, self._most, device))
        return self._rows


@torch.no_grad()
def nats(model: LanguageModel, rows: Sequence[_Row], documents: int, chunk: int) -> list[float]:
    """The loss of each document, summed over its tokens. The model is left in training mode."""
    plain = replace(model, body=model.whole.base_model)  # a compiled body would be compiled again
    sums = torch.zeros(documents, dtype=torch.float64)
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
            sums.index_add_(0, row.documents, torch.cat(found).double().cpu())
    finally:
        to_train(model.whole)
    return [float(value) for value in sums.tolist()]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _rows(text: Mapping[str, Sequence[Sequence[int]]], most: int, device: torch.device) -> list[_Row]:
    """Rows of whole documents, `most` tokens at most where a document is not longer."""
    everything = (ids for held in text.values() for ids in held)
    documents = [(number, ids) for number, ids in enumerate(everything) if len(ids) > 1]
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
    documents = [number for (number, _), length in zip(group, lengths, strict=True) for _ in range(length)]
    return _Row(
        inputs=torch.tensor([token for _, ids in group for token in ids[:-1]], device=device),
        positions=torch.cat([torch.arange(length) for length in lengths]).to(device),
        targets=torch.tensor([token for _, ids in group for token in ids[1:]], device=device),
        packing=RowDocuments.of(lengths, device),
        documents=torch.tensor(documents),
    )
