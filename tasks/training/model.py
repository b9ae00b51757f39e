"""Any transformers causal model as a body and a head. A check before the first step proves that it keeps documents
apart.

The body always gets `attention_mask=None`, `use_cache=False`, restarting positions and the packing, all four
together: with only some of them, documents silently leak into each other. The head is applied chunk by chunk
(step.py).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from storage.errors import ConfigError
from tasks.training.apart import carries_state, hidden_apart, own_attention
from tasks.training.attention import NAME, RowDocuments, register
from tasks.training.fused import fuse_activations
from tasks.training.head import ROWS, Loss, head_of
from tasks.training.process.processes import ALONE, Processes
from tasks.training.process.sharding import FULL, shard
from tasks.training.products import compiled_together
from tasks.training.recompute import checkpoint_layers, to_train
from tasks.training.refusal import refusal
from tasks.training.spec import BF16, BF16_WEIGHTS, FP32, SegmentSpec, as_mode

_OWN_ATTENTION = "its attention cannot be replaced by one that keeps packed documents apart"
_LENGTHS = (5, 7, 3)
_DROPOUT_SUFFIXES = ("dropout", "pdrop", "dropout_prob", "dropout_rate")


@dataclass(frozen=True)
class LanguageModel:
    """A transformers causal model and its two halves. `body` may be compiled; the parameters belong to `whole`."""

    whole: Any
    body: nn.Module
    head: nn.Module
    device: torch.device
    precision: str
    loss: Loss
    """Losses and gradients of the head. The head itself only makes logits."""
    keeps_casts: bool = True
    """Whether bf16 copies of weights are kept to the end of a pass. The body uses none of them twice."""
    apart: bool = False
    """Whether each document is computed in a row of its own (apart.py)."""

    def hidden(self, inputs: Tensor, positions: Tensor, packing: RowDocuments) -> Tensor:
        """Last hidden states [tokens, width] of one row: inputs and positions [1, tokens]."""
        if self.apart:
            return hidden_apart(self.body, inputs, packing.lengths)
        output = self.body(
            input_ids=inputs, position_ids=positions, attention_mask=None, use_cache=False, packing=packing
        )
        hidden: Tensor = output.last_hidden_state.squeeze(0)
        return hidden

    def autocast(self) -> AbstractContextManager[Any]:
        """bf16 autocast over float32 weights. For fp32, and for weights that are bf16 themselves, it does nothing."""
        if self.precision == BF16:
            return torch.autocast(self.device.type, dtype=torch.bfloat16, cache_enabled=self.keeps_casts)
        return nullcontext()

    @property
    def vocabulary(self) -> int:
        """Rows of the input embedding."""
        return int(self.whole.get_input_embeddings().weight.shape[0])


@dataclass(frozen=True)
class Shape:
    """What the execution rules and the operation count need to know about a model."""

    parameters: int
    """Elements of all weights; a tied head counts once."""
    products: int
    """Parameters that every token is multiplied with: without the embeddings, with the head."""
    layers: int
    width: int
    feed_forward: int
    attention_width: int
    """Heads times head size."""
    vocabulary: int
    embeddings: int = 0
    """Parameters of the embeddings, including a tied head."""

    def flops(self, tokens: int, squared_lengths: int) -> float:
        """Floating-point operations of forward and backward: 6·P·tokens + 6·L·d·Σ length².

        P are `products`, d the attention's width; the second term is causal attention counted once
        (12·L·d·T halved), summed over documents (Chowdhery et al. 2022, arXiv:2204.02311, appendix B).
        """
        return 6.0 * self.products * tokens + 6.0 * self.layers * self.attention_width * squared_lengths


def read_config(start: Path, identity: SegmentSpec) -> Any:
    """The model's configuration with the dropout of the specification. Raises ConfigError."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(start, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{start}: no model configuration that transformers can read ({error}).") from error
    for name, value in config.to_dict().items():
        if name == "layerdrop":
            setattr(config, name, 0.0)
        elif isinstance(value, int | float) and name.endswith(_DROPOUT_SUFFIXES) and "classifier" not in name:
            setattr(config, name, identity.dropout)
    check_positions(config, identity.sequence_length)
    return config


def check_positions(config: Any, sequence_length: int) -> None:
    """Raise ConfigError if the model has fewer positions than a sequence has tokens."""
    positions = getattr(config, "max_position_embeddings", None)
    if isinstance(positions, int) and positions < sequence_length:
        raise ConfigError(
            f"packing.sequence_length is {sequence_length}, but the model has {positions} positions: choose "
            f"packing.sequence_length <= {positions}, or another base"
        )


def load_model(
    start: Path, config: Any, identity: SegmentSpec, execution: dict[str, Any], processes: Processes = ALONE
) -> LanguageModel:
    """Load the weights of an export or trunk, and check that the model keeps packed documents apart.

    The weights become float32, whatever the file holds; with the precision bf16_weights they are rounded to the
    nearest bf16. Raises ConfigError for a model that cannot be trained here: its attention cannot be replaced, it
    carries state past the end of a document, or its logits are more than the head applied to the last hidden
    states, scaled and soft-capped.
    """
    from transformers import AutoModelForCausalLM

    maker = causal_class(config)
    register(execution["compile"])
    loader: Any = AutoModelForCausalLM
    device = torch.device(execution["device"])
    with quiet():
        try:
            whole, facts = loader.from_pretrained(
                start,
                config=config,
                dtype=torch.bfloat16 if identity.precision == BF16_WEIGHTS else torch.float32,
                attn_implementation=attention_of(maker, config),
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise ConfigError(f"{start}: the model cannot be loaded ({error}).") from error
    lost = sorted(facts["missing_keys"]) or sorted(str(key) for key in facts["mismatched_keys"])
    if lost:
        raise ConfigError(
            f"{start}: weights are missing or have another shape: {', '.join(map(str, lost[:3]))}."
        )
    fuse_activations(whole)
    model = halves(whole, device, identity.precision)
    if execution.get("sharding") == FULL:
        shard(whole, model.body, device, processes)
        model = replace(model, keeps_casts=False)
    whole.to(device)
    check_documents_apart(model)
    checkpoint_layers(whole, as_mode(execution["gradient_checkpointing"]))
    to_train(whole)
    if execution["compile"]:
        # static sizes: feed.py makes all rows of one size, whatever the documents
        together = execution.get("fuse_products", False)
        body: Any = compiled_together(model.body) if together else torch.compile(model.body, dynamic=False)
        model = replace(model, body=body, loss=_loss(model.head, identity.precision, compiled=True))
    return model


def causal_class(config: Any) -> Any:
    """The transformers class that is a causal language model of this configuration.

    Raises ConfigError if there is none, if `architectures` names another kind of model, or if the class has an
    attention of its own.
    """
    import transformers
    from transformers.models.auto import modeling_auto as auto

    if config.get_text_config() is not config:
        raise refusal(
            config,
            "it is made of several models, of which only one is of text",
            "choose a model of text alone",
        )
    causal: Mapping[str, Any] = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    kind, named = config.model_type, next(iter(config.architectures or ()), None)
    names = {name for one in causal.values() for name in ([one] if isinstance(one, str) else one)}
    names |= {None, auto.MODEL_MAPPING_NAMES.get(kind)}
    own = str(named).endswith(("ForCausalLM", "LMHeadModel")) and not hasattr(transformers, str(named))
    if kind not in causal or not (named in names or own):
        raise refusal(config, "it is no causal language model")
    found: Any = auto.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    found = found[0] if isinstance(found, tuple) else found
    if not getattr(found, "_supports_attention_backend", False) and not carries_state(found, config):
        raise refusal(config, _OWN_ATTENTION)
    return found


def attention_of(maker: Any, config: Any) -> str:
    """The attention that a class is loaded with: this project's, or its own if its layers carry state."""
    return own_attention(maker) if carries_state(maker, config) else NAME


def halves(whole: Any, device: torch.device, precision: str) -> LanguageModel:
    """A causal model as a body and a head, ready to train. Raises ConfigError if it has no such halves, or an
    attention of its own."""
    apart = carries_state(type(whole), whole.config)
    replaced = (
        getattr(whole, "_supports_attention_backend", False) and whole.config._attn_implementation == NAME
    )
    if not apart and not replaced:
        raise refusal(whole.config, _OWN_ATTENTION)
    body, head = whole.base_model, head_of(whole)
    if body is whole or head is None:
        raise refusal(whole.config, "it has no separate output embedding")
    embedding = whole.get_input_embeddings()
    # the "padding" id may be the end-of-text token, which must learn like any other
    embedding.padding_idx = None
    for parameter in whole.parameters():
        parameter.requires_grad_(True)
    return LanguageModel(whole, body, head, device, precision, _loss(head, precision), apart=apart)


def _loss(head: nn.Module, precision: str, compiled: bool = False) -> Loss:
    if precision == FP32:
        return Loss(head, torch.float32, compiled=compiled)
    return Loss(head, torch.bfloat16, multiple=ROWS, compiled=compiled)


@torch.no_grad()
def check_documents_apart(model: LanguageModel, longest: int | None = None) -> None:
    """Prove on a few tokens that this model keeps documents apart. Raises ConfigError.

    Some documents share a row: (1) each has the same hidden states as alone under the model's own attention; (2)
    other tokens in the first document change no bit of the others; (3) logits are the head applied to the last
    hidden states, and nothing else. With `longest`, one more document of so many tokens is among them.
    """
    whole = model.whole
    whole.eval()
    lengths = _LENGTHS if longest is None else (*_LENGTHS, longest)
    ids = (torch.arange(sum(lengths)) * 7 + 3) % model.vocabulary
    changed = ids.clone()
    changed[: lengths[0]] = (changed[: lengths[0]] + 1) % model.vocabulary
    packed, other = (_states(model, row, lengths) for row in (ids, changed))
    if not torch.equal(packed[lengths[0] :], other[lengths[0] :]):
        raise refusal(whole.config, "it carries something from one document of a row into the next")
    alone, logits = _states_of_its_own(model, ids, lengths)
    tolerance = 1e-3 if model.precision == "fp32" else 8e-2
    if not _close(packed, alone, tolerance):
        raise refusal(
            whole.config,
            "documents in a row come out otherwise than alone, so its attention or its positions are of a kind that "
            "packing does not offer",
        )
    with model.autocast():
        if not _close(model.head(packed).float(), logits, tolerance):
            raise refusal(
                whole.config,
                "it changes its logits after the output embedding in a way that training leaves out",
            )
    to_train(whole)


def _close(one: Tensor, other: Tensor, tolerance: float) -> bool:
    return torch.allclose(one, other, rtol=0.0, atol=tolerance * float(one.abs().max()))


def _states(model: LanguageModel, ids: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """Last hidden states [tokens, width] of packed documents."""
    positions = torch.cat([torch.arange(length) for length in lengths])
    packing = RowDocuments.of(lengths, model.device)
    with model.autocast():
        return model.hidden(
            ids.unsqueeze(0).to(model.device),
            positions.unsqueeze(0).to(model.device),
            packing,
        )


def _states_of_its_own(model: LanguageModel, ids: Tensor, lengths: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Last hidden states and logits of each document alone, by the whole model with transformers' own attention."""
    whole = model.whole
    used = whole.config._attn_implementation
    whole.set_attn_implementation(own_attention(whole))
    hidden, logits = [], []
    try:
        with model.autocast():
            for part in torch.split(ids, list(lengths)):
                given = part.unsqueeze(0).to(model.device)
                hidden.append(model.body(input_ids=given, use_cache=False).last_hidden_state.squeeze(0))
                logits.append(whole(input_ids=given, use_cache=False).logits.squeeze(0).float())
    finally:
        whole.set_attn_implementation(used)
    return torch.cat(hidden), torch.cat(logits)


def shape_of(config: Any) -> Shape:
    """The shape from the configuration alone: counts the parameters of a model on the meta device, which takes no
    memory.
    """
    from transformers import AutoModelForCausalLM

    maker: Any = AutoModelForCausalLM
    with quiet(), torch.device("meta"):
        model = maker.from_config(config, trust_remote_code=False)
    embeddings = {id(m.weight): m.weight.numel() for m in model.modules() if isinstance(m, nn.Embedding)}
    parameters = sum(parameter.numel() for parameter in model.parameters())
    head = model.get_output_embeddings()
    tied = head is not None and id(head.weight) in embeddings
    products = parameters - sum(embeddings.values()) + (head.weight.numel() if tied else 0)
    width = int(config.hidden_size)
    heads = int(getattr(config, "num_attention_heads", 1))
    size = getattr(config, "head_dim", None) or width // heads
    wide = [getattr(config, name, None) for name in ("intermediate_size", "ffn_dim", "n_inner")]
    return Shape(
        parameters=parameters,
        products=products,
        layers=int(config.num_hidden_layers),
        width=width,
        feed_forward=next((int(value) for value in wide if value), 4 * width),
        attention_width=heads * int(size),
        vocabulary=int(config.vocab_size),
        embeddings=sum(embeddings.values()),
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' loading reports and progress bars: they do not belong on the trainer's standard error."""
    from transformers.utils import logging

    transformers_logging: Any = logging
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(50)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(before)
        transformers_logging.enable_progress_bar()
