"""Narrow weights and moments, a pull to the base and means of weights: what to change in a specification for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.support.training.world import World, llama_config, save_model

ALL = {"precision": "bf16_weights", "states": "8bit", "averaged": True, "pulled": True}
"""Everything at once."""


def changes_of(
    world: World, precision: str, states: str, averaged: bool, pulled: bool, **more: Any
) -> dict[str, Any]:
    changes: dict[str, Any] = {
        "identity__kind": "pretrain",
        "identity__precision": precision,
        "identity__optimizer__states": states,
        "identity__optimizer__stochastic_rounding": precision == "bf16_weights",
    }
    if averaged:
        changes["identity__average"] = {"checkpoints": 3, "every_steps": 2}
    if pulled:
        changes["identity__optimizer__pull_to_base"] = 20.0
        changes["identity__base"] = {"digest": "start"}
        changes["paths__base"] = str(world.export)
    return changes | more


def wide(world: World) -> World:
    """The same text for a model some of whose matrices are large enough to be quantised, not all of whole blocks."""
    config = llama_config(hidden_size=64, intermediate_size=65)
    return replace(world, export=save_model(config, world.root / "wide"))
