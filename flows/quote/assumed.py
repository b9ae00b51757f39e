"""Rules of thumb for stages that nobody has measured here. A rehearsal replaces them.

They are of the right order on a machine of today, no more: what a stage takes depends on the text, the model and the
device. Nothing is assumed of training and measuring a model whose speed is not known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flows.dag.plan import PlanRow
from flows.quote.rates import Rate
from flows.quote.work import Item
from tasks import stages

TRUNK_BYTES = 12.0
"""Bytes of a parameter in a trunk and in a checkpoint: the weight and AdamW's two moments in fp32."""
_EXPORT_BYTES = 4.0
_PER_CORE = {
    "extract": 1e6,
    "ingest": 70e6,
    "dedup": 25e6,
    "filter": 8.8e6,
    "decontaminate": 40e6,
    "tokenize": 33.9e6,
    "tokenizer": 2e6,
    "contamination": 40e6,
    "data": 200e6,
}
"""Bytes of text that a core takes in a second (benchmarks/results.md; the others from their share of the whole way)."""
_ALONE = ("tokenizer", "contamination", "data")
_PACKED = 5e6
"""Tokens that are packed in a second, with reading where documents begin and end."""
_KEPT = {"extract": 0.35, "ingest": 0.35, "dedup": 0.35, "filter": 0.3, "decontaminate": 0.3, "tokenize": 0.5}
"""Bytes on the disk for each byte of text that is read, as in the demo's store."""
_START = {"base": 15.0, "train": 20.0, "decay": 20.0, "perplexity": 3.0, "evaluate": 5.0, "samples": 3.0}
"""Seconds that a stage takes besides its work; others take one."""
_FORWARD = 3.0
"""Times as fast as training a model reads: a step is a forward pass, and a backward of twice its operations."""
_READ = {"perplexity": 2.0, "evaluate": 150.0, "samples": 100.0}
"""Tokens that a model reads for each unit, or could read in its time: windows overlap by half; a question with its choices;
tokens are written one by one."""


@dataclass(frozen=True)
class Assumed:
    """`cores`: workers of the corpus stages. `parameters` and `tokens_per_second` are the model's in training."""

    cores: int
    parameters: float | None
    tokens_per_second: float | None

    @classmethod
    def of(cls, training: Sequence[PlanRow], cores: int) -> Assumed:
        """`training`: the rows of training stages, with their estimates."""
        told = [row.training for row in training if row.training]
        speed = next((one["tokens_per_second"] for one in told if one.get("tokens_per_second")), None)
        size = next((one["parameters"] for one in told if one.get("parameters")), None)
        return cls(cores, size, speed)

    def rate(self, item: Item) -> Rate | None:
        """The rate of a kind; None if nothing can be said."""
        stage, start = item.stage, _START.get(item.stage, 1.0)
        if stage in _PER_CORE:
            cores = 1 if stage in _ALONE else self.cores
            return Rate(start, 1 / (_PER_CORE[stage] * cores), 0.0, _KEPT.get(stage, 0.0))
        if stage == "pack":
            return Rate(start, 1 / _PACKED, 0.0, 0.1)
        if stage not in stages.ON_DEVICE:
            return Rate(start, 0.0, self._weights if stage in ("base", "checkpoint", "merge") else 0.0)
        if self.tokens_per_second is None:
            return None
        if stage in stages.TRAINING:
            size = (TRUNK_BYTES if stage == "train" else _EXPORT_BYTES) * (self.parameters or 0.0)
            return Rate(start, 1 / self.tokens_per_second, size)
        return Rate(start, _READ[stage] / (_FORWARD * self.tokens_per_second))

    @property
    def _weights(self) -> float:
        return _EXPORT_BYTES * (self.parameters or 0.0)
