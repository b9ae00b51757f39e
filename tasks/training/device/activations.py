"""Counts the bytes that a model holds between forward and backward, operation by operation, on tensors without
memory.

The model's own code runs one forward on fake tensors (shapes and types, no values). The count adds up what autograd
would keep: each storage once, weights left out. It depends only on the model's configuration, the precision and the
sequence length; no device is asked and nothing is timed. The row is the worst case of packing: whole sequences as
single documents, with one SDPA call per document. Variable-length attention keeps as much or less.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import CheckpointPolicy

from tasks.training.apart import LEAST, carries_state, hidden_apart
from tasks.training.attention import RowDocuments, register
from tasks.training.fused import fuse_activations
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
    own = copy.deepcopy(config)
    what = (config.to_json_string(use_diff=False), identity.precision, identity.sequence_length)

    def count(mode: str) -> Activations:
        if (*what, mode) not in _COUNTED:
            _COUNTED[*what, mode] = count_activations(own, identity.precision, identity.sequence_length, mode)
        return _COUNTED[*what, mode]

    return count


_COUNTED: dict[tuple[str, str, int, str], Activations] = {}


def count_activations(config: Any, precision: str, sequence_length: int, mode: str) -> Activations:
    """Count for a model with this transformers configuration, in training, with documents of `sequence_length`
    tokens.

    `precision` is bf16 (float32 weights under autocast), fp32 or bf16_weights; `mode` is one of recompute.MODES.
    """
    register(False)
    tally = _Tally()
    whole, fake = _fake_model(config, precision, mode, tally)
    apart = carries_state(type(whole), config)
    one, two = (
        _held(whole.base_model, fake, precision, lengths, tally, apart) for lengths in _rows(sequence_length)
    )
    token = (two - one) / sequence_length
    token /= LEAST if apart else 1.0  # rows that are filled up as much as they may be
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


def _fake_model(config: Any, precision: str, mode: str, tally: _Tally) -> tuple[Any, Any]:
    from torch._subclasses.fake_tensor import FakeTensorMode

    from tasks.training.model import attention_of, causal_class, quiet

    maker = causal_class(config)
    dtype = torch.bfloat16 if precision == "bf16_weights" else torch.float32
    fake = FakeTensorMode()
    with quiet(), fake:
        whole = maker._from_config(config, attn_implementation=attention_of(maker, config), dtype=dtype)
    fuse_activations(whole)
    to_train(whole)
    checkpoint_layers(whole, mode, partial(_contexts, tally))
    return whole, fake


def _held(body: Any, fake: Any, precision: str, lengths: tuple[int, ...], tally: _Tally, apart: bool) -> int:
    """Bytes held after a forward over documents of these lengths."""
    autocast = torch.autocast("cpu", dtype=torch.bfloat16) if precision == "bf16" else nullcontext()
    hooks = torch.autograd.graph.saved_tensors_hooks(tally.add, lambda tensor: tensor)
    with fake, hooks, autocast:
        ids = torch.zeros((1, sum(lengths)), dtype=torch.int64)
        if apart:
            found = hidden_apart(body, ids, lengths)
        else:
            found = body(
                input_ids=ids,
                position_ids=torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0),
                attention_mask=None,
                use_cache=False,
                packing=RowDocuments(lengths, None, max(lengths)),
            ).last_hidden_state
    tally.add(found)
    return tally.take(without=body.parameters())
