"""Counts the bytes that a model holds between forward and backward, operation by operation, on tensors without
memory.

The model's own code runs one forward on fake tensors (shapes and types, no values). The count adds up what autograd
would keep: each storage once, weights left out. It depends only on the model's configuration, the precision and the
sequence length; no device is asked and nothing is timed. The row is the worst case of packing: whole sequences as
single documents, with one SDPA call per document. Variable-length attention keeps as much or less.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy

from tasks.training.attention import NAME, RowDocuments, register
from tasks.training.recompute import checkpoint_layers, kept, selective_contexts, to_train
from tasks.training.spec import SegmentSpec


@dataclass(frozen=True)
class Activations:
    """Bytes that a model's body holds for backward."""

    token: float
    """Bytes for each token of the micro-batch."""
    fixed: int
    """Bytes that do not depend on the tokens: bf16 copies of float32 weights under autocast."""
    layers: int
    """Number of layers that `token` is spread over."""


def counter(config: Any, identity: SegmentSpec) -> Callable[[str], Activations]:
    """`count_activations` of one model by mode, each counted once in a process, when it is first asked for."""
    kind: Any = type(config)
    described = config.to_json_string(use_diff=False)
    return partial(_counted, kind, described, identity.precision, identity.sequence_length)


@cache
def _counted(kind: Any, described: str, precision: str, sequence_length: int, mode: str) -> Activations:
    return count_activations(kind.from_dict(json.loads(described)), precision, sequence_length, mode)


def count_activations(config: Any, precision: str, sequence_length: int, mode: str) -> Activations:
    """Count for a model with this transformers configuration, in training, with documents of `sequence_length`
    tokens.

    `precision` is bf16 (float32 weights under autocast), fp32 or bf16_weights; `mode` is one of recompute.MODES.
    """
    register(False)
    tally = _Tally()
    body, fake = _fake_body(config, precision, mode, tally)
    one, two = (_held(body, fake, precision, lengths, tally) for lengths in _rows(sequence_length))
    token = (two - one) / sequence_length
    return Activations(token, max(0, round(one - token * sequence_length)), int(config.num_hidden_layers))


def _rows(length: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Documents of one sequence and of two sequences. Their lengths differ, because equal lengths would save a copy."""
    cut = tuple(part for part in (length - length // 3, length // 3) if part)
    return cut, (*cut, length)


class _Tally:
    """Storages that are held, each counted once. The tally keeps them alive, so that no address is used twice."""

    def __init__(self) -> None:
        self._held: dict[int, Any] = {}

    def add(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self._held[storage._cdata] = storage
        return tensor

    def take(self, without: Iterable[Tensor]) -> int:
        """Bytes collected since the last call, except those of `without`."""
        left_out = {tensor.untyped_storage()._cdata for tensor in without}
        total = sum(storage.nbytes() for mark, storage in self._held.items() if mark not in left_out)
        self._held.clear()
        return total


class _Keeping(TorchDispatchMode):
    """Adds the results that `recompute.kept` keeps in a checkpointed layer: they do not pass through autograd's
    hooks.
    """

    def __init__(self, tally: _Tally) -> None:
        super().__init__()
        self._tally = tally

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if kept(None, func, *args, **(kwargs or {})) == CheckpointPolicy.MUST_SAVE:
            for tensor in found if isinstance(found, tuple | list) else (found,):
                if isinstance(tensor, Tensor):
                    self._tally.add(tensor)
        return found


def _contexts(tally: _Tally) -> tuple[AbstractContextManager[None], Any]:
    forward, again = selective_contexts()
    return _both(_Keeping(tally), forward), again


@contextmanager
def _both(outer: Any, inner: Any) -> Iterator[None]:
    with outer, inner:
        yield


def _fake_body(config: Any, precision: str, mode: str, tally: _Tally) -> tuple[Any, Any]:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from transformers import AutoModelForCausalLM

    from tasks.training.model import quiet

    maker: Any = AutoModelForCausalLM
    dtype = torch.bfloat16 if precision == "bf16_weights" else torch.float32
    fake = FakeTensorMode()
    with quiet(), fake:
        whole = maker.from_config(config, attn_implementation=NAME, dtype=dtype, trust_remote_code=False)
    to_train(whole)
    checkpoint_layers(whole, mode, partial(_contexts, tally))
    return whole.base_model, fake


def _held(body: Any, fake: Any, precision: str, lengths: tuple[int, ...], tally: _Tally) -> int:
    """Bytes held after a forward over documents of these lengths."""
    autocast = torch.autocast("cpu", dtype=torch.bfloat16) if precision == "bf16" else nullcontext()
    hooks = torch.autograd.graph.saved_tensors_hooks(tally.add, lambda tensor: tensor)
    with fake, hooks, autocast:
        output = body(
            input_ids=torch.zeros((1, sum(lengths)), dtype=torch.int64),
            position_ids=torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0),
            attention_mask=None,
            use_cache=False,
            packing=RowDocuments(lengths, None, max(lengths)),
        )
    tally.add(output.last_hidden_state)
    return tally.take(without=body.parameters())
