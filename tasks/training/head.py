"""The head of a causal model: logits, their cross-entropy, and both gradients in closed form.

One copy of the output embedding, in the type of the products, serves all chunks and micro-batches of a step. In bf16 it
has rows of zeros up to a multiple of 128, which make products faster and from which no logit is read. A chunk's
gradient of the weights is added to the parameter's own in float32. What must stay true: losses and gradients are those
that autograd finds for `head`, to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

NO_TARGET = -100
"""The target of padding, whose loss and gradient are 0."""
ROWS = 128
"""Products in bf16 are fastest where each dimension is a multiple of this: on a CPU those of GPT-2's 50,257 words by a
sixth."""
_CACHE = 8 << 20
"""Bytes of float32 logits that a CPU's last cache holds beside their results."""
_FACTORS = {"logits_scaling": -1, "logit_scale": 1, "lm_head_multiplier": 1}
"""What logits are multiplied with, by its name in the configuration (Granite, Cohere, Falcon-H1), and its power."""
_CAPS = ("final_logit_softcapping", "output_logit_soft_cap", "logits_soft_cap")
"""Where logits are soft-capped, by its name in the configuration (Gemma, xLSTM, RecurrentGemma)."""


class ScaledHead(nn.Module):
    """An output embedding with what its model does to the logits: cap · tanh(factor · logits / cap), in float32.

    Soft-capping is that of Gemma 2 (arXiv:2408.00118, section 2). Its weights belong to the model.
    """

    def __init__(self, head: nn.Module, factor: float, cap: float | None) -> None:
        super().__init__()
        self.head, self.factor, self.cap = head, factor, cap

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits [tokens, vocabulary] in float32, from hidden states [tokens, width]."""
        logits: Tensor = self.head(hidden).float() * self.factor
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap


def head_of(whole: Any) -> nn.Module | None:
    """The output embedding of a causal model, scaled and capped as its configuration says; None if it has none."""
    head = whole.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        return None
    found = {name: getattr(whole.config, name, None) for name in (*_FACTORS, *_CAPS)}
    values = {name: float(value) for name, value in found.items() if value and not isinstance(value, bool)}
    factor = math.prod(values[name] ** power for name, power in _FACTORS.items() if name in values)
    cap = next((values[name] for name in _CAPS if name in values), None)
    return head if factor == 1.0 and cap is None else ScaledHead(head, factor, cap)


class Loss:
    """Cross-entropy over chunks of tokens. `renew` must be called whenever the weights have changed."""

    def __init__(
        self, head: nn.Module, precision: torch.dtype, *, multiple: int = 1, compiled: bool = False
    ) -> None:
        """`head`: what `head_of` returns. `precision`: the type of the products. The copy of the weights has a multiple
        of `multiple` rows."""
        scaled = head if isinstance(head, ScaledHead) else None
        linear: Any = scaled.head if scaled else head
        self._linear: nn.Linear = linear
        self._factor = scaled.factor if scaled else 1.0
        self._cap = scaled.cap if scaled else None
        self._precision = precision
        self._multiple = multiple
        self._copy: tuple[Tensor, Tensor | None] | None = None
        self._compute: Callable[..., tuple[Tensor, ...]] = losses_and_gradients
        if compiled:
            self._compute = torch.compile(losses_and_gradients, dynamic=False)

    def renew(self) -> None:
        """Drop the copy of the weights: the next chunk makes it anew."""
        self._copy = None

    @torch.no_grad()
    def backward(self, hidden: Tensor, targets: Tensor, divisor: float) -> tuple[Tensor, Tensor]:
        """(losses [tokens] in float32, the gradient of the hidden states) of a chunk.

        `hidden` is [tokens, width], `targets` [tokens] int64 with NO_TARGET for padding. Gradients are those of the sum
        of losses / `divisor`; that of the weights is added to the parameter's, in float32.
        """
        weight, bias = self._weights()
        # a tensor, because a graph is compiled for each value of a number, and each step has another
        share = torch.full((), self._factor / divisor, dtype=torch.float32, device=hidden.device)
        losses, of_hidden, of_weight, of_bias = self._compute(
            hidden.to(self._precision),
            weight,
            bias,
            targets,
            share,
            self._linear.out_features,
            self._factor,
            self._cap,
        )
        _add(self._linear.weight, of_weight)
        if self._linear.bias is not None:
            _add(self._linear.bias, of_bias)
        return losses, of_hidden.to(hidden.dtype)

    def _weights(self) -> tuple[Tensor, Tensor | None]:
        if self._copy is None:
            weight, bias = self._linear.weight.detach(), self._linear.bias
            weight = weight.to(self._precision)
            missing = -len(weight) % self._multiple
            if missing:
                weight = functional.pad(weight, (0, 0, 0, missing))
            self._copy = weight, None if bias is None else bias.detach().to(self._precision)
        return self._copy


def losses_and_gradients(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    share: Tensor | float,
    words: int,
    factor: float,
    cap: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(losses in float32, gradients of `hidden`, `weight` and bias). Gradients are of the sum of losses, times `share`
    over `factor`.

    hidden [tokens, width] and weight [rows, width] have one type; only the first `words` rows are words. The gradient
    of the bias is empty if there is none. With p the softmax of the logits, a loss has the gradient p - 1 at its target
    and p elsewhere.
    """
    logits = torch.mm(hidden, weight.t())
    if torch.compiler.is_compiling():
        losses, values = _losses_and_slopes(logits[:, :words], bias, targets, share, factor, cap)
        narrow = functional.pad(values.to(hidden.dtype), (0, len(weight) - words))
    else:  # gradients go where the logits were: what fills up is zero there
        narrow = logits
        found = []
        rows = _rows_at_once(logits, words)
        for part, targets_of in zip(logits.split(rows), targets.split(rows), strict=True):
            losses, values = _losses_and_slopes(part[:, :words], bias, targets_of, share, factor, cap)
            part[:, :words].copy_(values)
            found.append(losses)
        losses = torch.cat(found)
    of_bias = narrow[:, :words].sum(0) if bias is not None else narrow.new_empty(0)
    return losses, torch.mm(narrow, weight), torch.mm(narrow.t(), hidden)[:words], of_bias


def _losses_and_slopes(
    logits: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    share: Tensor | float,
    factor: float,
    cap: float | None,
) -> tuple[Tensor, Tensor]:
    """(losses [tokens], the gradient of their sum times `share` over `factor` by the logits), both in float32."""
    words = logits.shape[1]
    values = logits if bias is None else logits + bias
    values = values.float()
    if factor != 1.0:
        values = values * factor
    capped = None
    if cap is not None:
        capped = torch.tanh(values / cap)
        values = capped * cap
    values = torch.log_softmax(values, -1)
    counts = targets >= 0
    places = targets.clamp_min(0).unsqueeze(1)
    losses = torch.where(counts, -values.gather(1, places).squeeze(1), 0.0)
    if torch.compiler.is_compiling():  # one pass over the words, instead of one that writes single places
        words_of = torch.arange(words, device=targets.device)
        values = values.exp() - (words_of == places).float()
    else:
        values.exp_().scatter_add_(1, places, values.new_full((1, 1), -1.0).expand_as(places))
    of_token = (counts * share).unsqueeze(1)
    values = values.mul_(of_token) if capped is None else values * of_token * (1.0 - capped * capped)
    return losses, values


def _rows_at_once(logits: Tensor, words: int) -> int:
    """Tokens whose float32 logits stay in a CPU's cache from the first pass over them to the last. No bit depends on it."""
    return max(1, _CACHE // (4 * words)) if logits.device.type == "cpu" else len(logits)


def _add(parameter: Tensor, gradient: Tensor) -> None:
    if parameter.grad is None:
        parameter.grad = gradient.to(getattr(parameter, "grad_dtype", None) or parameter.dtype, copy=True)
    else:
        parameter.grad.add_(gradient)
