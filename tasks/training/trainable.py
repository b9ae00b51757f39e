"""Whether a model can be trained here, decided from its configuration alone, before its weights are there.

The trainer's own check (model.check_documents_apart) is put to a small model of the same kind: the configuration with
fewer layers, words and experts and a smaller width, and weights drawn at random. So there is no list of names, and an
architecture of tomorrow is judged as those of today are. Every kind of layer stays in the small model. One document of
the check is as long as the training's sequences: a window, or positions that depend on the longest document of a row,
show themselves only there.

An architecture that cannot be made small is judged by its shapes alone; its numbers are compared when its weights are
imported.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from storage.errors import ConfigError
from tasks.training.apart import COST, carries_state
from tasks.training.attention import register
from tasks.training.device.activations import count_activations
from tasks.training.model import (
    attention_of,
    causal_class,
    check_documents_apart,
    check_positions,
    halves,
    quiet,
    shape_of,
)
from tasks.training.recompute import NONE
from tasks.training.refusal import refusal
from tasks.training.spec import Precision

_WORDS = 96
_SMALL, _LARGEST = 3_000_000, 30_000_000
"""Parameters below which a width is left as it is, and above which a model is not tried."""
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_FIRST_LAYERS = (4, 8, 16)
_KINDS_OF_LAYERS = 6
_SEED = 11
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def check_trainable(config: Any, sequence_length: int, precision: Precision) -> list[str]:
    """Notes on how a model of this transformers configuration is trained, if it is not as others are.

    Raises ConfigError, in one sentence with the reason, unless it can be trained on sequences of this length. Touches no
    random state. Takes less than a second for sequences of up to 2,048 tokens.
    """
    try:
        maker = causal_class(config)
        check_positions(config, sequence_length)
        register(False)
        _check(maker, config, sequence_length, precision)
        kind = config.model_type
        how = "so it trains with one document to a row, not packed"
        note = f"model.base: the layers of a {kind} carry state, {how}: {COST}"
        return [note] if carries_state(maker, config) else []
    except ConfigError:
        raise
    except Exception as error:  # of another library's model: whatever its own code raises
        why = f"({first_line(error)})"
        if any(isinstance(getattr(config, name, None), int) for name in _EXPERTS):
            raise refusal(
                config, f"training in {precision} does not take its mixtures of experts {why}"
            ) from error
        raise refusal(config, f"its code does not take packed documents {why}") from error


def first_line(error: BaseException) -> str:
    """An error's class and the first line of its text."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__


def _check(maker: Any, config: Any, sequence_length: int, precision: Precision) -> None:
    whole = _without_memory(maker, config)
    halves(whole, torch.device("meta"), precision)
    for small in _smaller(maker, config, whole):
        try:
            _compare(maker, small, sequence_length)
        except ConfigError:
            raise
        except Exception:  # made too small: the next one, or the shapes alone
            continue
        count_activations(small, precision, sequence_length, NONE)
        return
    shape_of(config)
    count_activations(config, precision, sequence_length, NONE)


def _compare(maker: Any, config: Any, sequence_length: int) -> None:
    shape_of(config)
    with torch.random.fork_rng(devices=[]), quiet(), _one_thread():
        torch.manual_seed(_SEED)
        whole = maker._from_config(
            config, attn_implementation=attention_of(maker, config), dtype=torch.float32
        )
        _draw(whole)
        check_documents_apart(halves(whole, torch.device("cpu"), "fp32"), sequence_length)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Tensors this small are slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def _draw(whole: Any) -> None:
    """Weights with which every part of a layer matters. As they are initialised, attention hardly does."""
    for parameter in whole.parameters():
        if parameter.dim() > 1 and parameter.is_floating_point():
            parameter.normal_(0.0, 1.5 / math.sqrt(parameter.shape[-1]))


def _without_memory(maker: Any, config: Any) -> Any:
    with torch.device("meta"), quiet():
        return maker._from_config(config, attn_implementation=attention_of(maker, config))


def _smaller(maker: Any, config: Any, whole: Any) -> Iterator[Any]:
    """Configurations of the same kinds of layers that are cheap to try, the most faithful first. `whole`: the model."""
    kinds = {type(module) for module in whole.modules()}
    count = int(config.num_hidden_layers)
    choices = [_one_of_each(config, count), *(list(range(few)) for few in _FIRST_LAYERS if few < count), None]
    for kept in choices:
        for largest, changes in ((_SMALL, {}), (_LARGEST, _narrow(config))):
            small = _changed(config, _layers(config, count, kept) | _few_words(config) | changes)
            if small is None:
                continue
            try:
                made = _without_memory(maker, small)
            except Exception:  # a configuration that contradicts itself
                continue
            if {type(module) for module in made.modules()} != kinds:
                break  # other layers
            if sum(parameter.numel() for parameter in made.parameters()) <= largest:
                yield small
        else:
            return


def _changed(config: Any, changes: dict[str, Any]) -> Any:
    """A copy of a configuration with other values; None if its class does not take them."""
    try:
        return type(config).from_dict(config.to_dict() | changes)
    except Exception:
        return None


def _by_layer(config: Any, count: int) -> dict[str, list[Any]]:
    """The lists with an entry for each layer, except those that list layers by number."""
    return {
        name: list(value)
        for name, value in config.to_dict().items()
        if isinstance(value, list | tuple)
        and len(value) == count
        and not {"idxs", "indices"} & {*name.split("_")}
    }


def _one_of_each(config: Any, count: int) -> list[int]:
    """The first layer of each kind, by all lists that have an entry for each; where all are alike, the first and last."""
    lists, kinds = _by_layer(config, count), dict[str, int]()
    for layer in range(count):
        kinds.setdefault(repr([values[layer] for values in lists.values()]), layer)
    kept = sorted(kinds.values())[:_KINDS_OF_LAYERS]
    return sorted({0, count - 1}) if len(kept) == 1 else kept


def _layers(config: Any, count: int, kept: list[int] | None) -> dict[str, Any]:
    if kept is None:
        return {}
    values = config.to_dict()
    changes: dict[str, Any] = {name: len(kept) for name in _LAYERS if isinstance(values.get(name), int)}
    return changes | {name: [one[i] for i in kept] for name, one in _by_layer(config, count).items()}


def _few_words(config: Any) -> dict[str, Any]:
    values = config.to_dict()
    words = min(_WORDS, int(config.vocab_size))
    changes: dict[str, Any] = {"vocab_size": words}
    for name, value in values.items():
        if name.endswith("token_id") and isinstance(value, int) and value >= words:
            changes[name] = None if name == "pad_token_id" else 0
    return changes


def _narrow(config: Any) -> dict[str, Any]:
    """A few heads of the same size and grouping, a width to match, and few experts."""
    values = {
        name: value
        for name, value in config.to_dict().items()
        if isinstance(value, int) and not isinstance(value, bool)
    }
    heads = int(getattr(config, "num_attention_heads", 1) or 1)
    groups = int(values.get("num_key_value_heads") or heads)
    size = int(values.get("head_dim") or int(config.hidden_size) // heads)
    few_groups = min(groups, 2)
    few = few_groups * max(1, min(heads // groups, 2))
    width = few * size
    wanted = dict.fromkeys(("num_attention_heads", "n_head", "n_heads"), few)
    wanted |= {"num_key_value_heads": few_groups}
    wanted |= dict.fromkeys(("hidden_size", "n_embd", "d_model", "word_embed_proj_dim"), width)
    wanted |= dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner"), 2 * width)
    wanted |= dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), width)
    wanted |= dict.fromkeys(_EXPERTS, 4)
    if any(name in values for name in _EXPERTS):
        wanted |= dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "top_k"), 2)
    return {name: value for name, value in wanted.items() if values.get(name, 0) > value}
