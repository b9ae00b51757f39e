"""Activations that transformers writes out in several operations, as torch's single operation of the same formula.

It rounds once, where each of the several rounds, and keeps one tensor for backward instead of nine.
"""

from __future__ import annotations

from typing import Any

from torch import nn


def fuse_activations(whole: Any) -> None:
    """Replace GELU by its tanh approximation (GPT-2's, Hendrycks & Gimpel 2016, arXiv:1606.08415) in a model."""
    from transformers.activations import FastGELUActivation, NewGELUActivation

    for module in whole.modules():
        for name, child in module.named_children():
            if isinstance(child, FastGELUActivation | NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))
