"""Any transformers causal model as a body and a head. A check before the first step proves that it keeps documents
apart.

The body always gets `attention_mask=None`, `use_cache=False`, restarting positions and the packing, all four
together: with only some of them, documents silently leak into each other. The head is applied chunk by chunk
(step.py).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from storage.errors import ConfigError
from tasks.training.attention import NAME, RowDocuments, register
from tasks.training.process.processes import ALONE, Processes
from tasks.training.process.sharding import FULL, shard
from tasks.training.recompute import checkpoint_layers, to_train
from tasks.training.spec import BF16_WEIGHTS, SegmentSpec, as_mode

_DROPOUT_SUFFIXES = ("dropout", "pdrop", "dropout_prob", "dropout_rate")


@dataclass(frozen=True)
class LanguageModel:
    """A transformers causal model and its two halves. `body` may be compiled; the parameters belong to `whole`."""

    whole: Any
    body: nn.Module
    head: nn.Module
    device: torch.device
    precision: str
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor]
    """`losses_of`, or its compiled version."""
    keeps_casts: bool = True
    """Whether bf16 copies of weights are kept to the end of a pass. The body uses none of them twice."""

    def losses(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy [tokens] in float32, from hidden states [tokens, width] and targets [tokens]; 0 for padding."""
        return self.loss(self.head, hidden, targets)

    def hidden(self, inputs: Tensor, positions: Tensor, packing: RowDocuments) -> Tensor:
        """Last hidden states [tokens, width] of one row: inputs and positions [1, tokens]."""
        output = self.body(
            input_ids=inputs, position_ids=positions, attention_mask=None, use_cache=False, packing=packing
        )
        hidden: Tensor = output.last_hidden_state.squeeze(0)
        return hidden

    def autocast(self, keeps_casts: bool | None = None) -> AbstractContextManager[Any]:
        """bf16 autocast over float32 weights. For fp32, and for weights that are bf16 themselves, it does nothing."""
        if self.precision == "bf16":
            kept = self.keeps_casts if keeps_casts is None else keeps_casts
            return torch.autocast(self.device.type, dtype=torch.bfloat16, cache_enabled=kept)
        return nullcontext()

    def no_autocast(self) -> AbstractContextManager[Any]:
        """For a backward pass inside `autocast`: backward computes in the types of its forward."""
        return torch.autocast(self.device.type, enabled=False)

    @property
    def vocabulary(self) -> int:
        """Rows of the input embedding."""
        return int(self.whole.get_input_embeddings().weight.shape[0])


def losses_of(head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    """The losses [tokens] in float32, from the logits of all tokens at once."""
    logits: Tensor = head(hidden)
    return functional.cross_entropy(logits.float(), targets, reduction="none")


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
    positions = getattr(config, "max_position_embeddings", None)
    if isinstance(positions, int) and positions < identity.sequence_length:
        raise ConfigError(
            f"identity.sequence_length is {identity.sequence_length}, but the model has {positions} positions. "
            f"Choose packing.sequence_length <= {positions}."
        )
    return config


def load_model(
    start: Path, config: Any, identity: SegmentSpec, execution: dict[str, Any], processes: Processes = ALONE
) -> LanguageModel:
    """Load the weights of an export or trunk, and check that the model keeps packed documents apart.

    The weights become float32, whatever the file holds; with the precision bf16_weights they are rounded to the
    nearest bf16. Raises ConfigError for a model that cannot be trained here: its attention cannot be replaced, it
    carries state past the end of a document, or its logits are more than the head applied to the last hidden
    states.
    """
    from transformers import AutoModelForCausalLM

    register(execution["compile"])
    loader: Any = AutoModelForCausalLM
    device = torch.device(execution["device"])
    with quiet():
        try:
            whole, facts = loader.from_pretrained(
                start,
                config=config,
                dtype=torch.bfloat16 if identity.precision == BF16_WEIGHTS else torch.float32,
                attn_implementation=NAME,
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
    model = _halves(whole, device, identity.precision)
    if execution.get("sharding") == FULL:
        shard(whole, model.body, device, processes)
        model = replace(model, keeps_casts=False)
    whole.to(device)
    check_documents_apart(model)
    checkpoint_layers(whole, as_mode(execution["gradient_checkpointing"]))
    to_train(whole)
    if execution["compile"]:
        # static sizes: feed.py makes all rows of one size, whatever the documents
        body: Any = torch.compile(model.body, dynamic=False)
        model = replace(model, body=body, loss=torch.compile(losses_of, dynamic=False))
    return model


def _halves(whole: Any, device: torch.device, precision: str) -> LanguageModel:
    name = type(whole).__name__
    if not getattr(whole, "_supports_attention_backend", False) or whole.config._attn_implementation != NAME:
        raise ConfigError(
            f"{name}: its attention cannot be replaced, so packed documents would see each other."
        )
    body, head = whole.base_model, whole.get_output_embeddings()
    if body is whole or head is None:
        raise ConfigError(f"{name} has no separate output embedding; it cannot be trained here.")
    embedding = whole.get_input_embeddings()
    # the "padding" id may be the end-of-text token, which must learn like any other
    embedding.padding_idx = None
    for parameter in whole.parameters():
        parameter.requires_grad_(True)
    return LanguageModel(whole, body, head, device, precision, losses_of)


@torch.no_grad()
def check_documents_apart(model: LanguageModel) -> None:
    """Prove on a few tokens that this model keeps documents apart. Raises ConfigError.

    Three short documents share a row: (1) each gives the same logits as alone under the model's own attention; (2)
    other tokens in the first document change no bit of the others; (3) logits are the head applied to the last
    hidden states, and nothing else.
    """
    name, whole = type(model.whole).__name__, model.whole
    whole.eval()
    lengths = (5, 7, 3)
    ids = (torch.arange(sum(lengths)) * 7 + 3) % model.vocabulary
    changed = ids.clone()
    changed[: lengths[0]] = (changed[: lengths[0]] + 1) % model.vocabulary
    packed, other = _logits(model, ids, lengths), _logits(model, changed, lengths)
    if not torch.equal(packed[lengths[0] :], other[lengths[0] :]):
        raise ConfigError(f"{name}: a document's logits change with the document packed before it.")
    tolerance = (1e-3 if model.precision == "fp32" else 8e-2) * float(packed.abs().max())
    alone = _logits_of_its_own(model, ids, lengths)
    if not torch.allclose(packed, alone, rtol=0.0, atol=tolerance):
        difference = float((packed - alone).abs().max())
        raise ConfigError(
            f"{name}: the logits of packed documents differ from those of the same documents alone by "
            f"{difference:.3g}: its attention, positions or head are of a kind that cannot be packed here."
        )
    to_train(whole)


def _logits(model: LanguageModel, ids: Tensor, lengths: tuple[int, ...]) -> Tensor:
    positions = torch.cat([torch.arange(length) for length in lengths])
    with model.autocast():
        hidden = model.hidden(
            ids.unsqueeze(0).to(model.device),
            positions.unsqueeze(0).to(model.device),
            RowDocuments.of(lengths, model.device),
        )
        logits: Tensor = model.head(hidden).float()
        return logits


def _logits_of_its_own(model: LanguageModel, ids: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """Logits [tokens, vocabulary] of each document alone, through the whole model with transformers' own attention."""
    whole = model.whole
    whole.set_attn_implementation("sdpa" if getattr(whole, "_supports_sdpa", False) else "eager")
    try:
        with model.autocast():
            parts = [
                whole(input_ids=part.unsqueeze(0).to(model.device), use_cache=False).logits.squeeze(0).float()
                for part in torch.split(ids, list(lengths))
            ]
    finally:
        whole.set_attn_implementation(NAME)
    return torch.cat(parts)


def shape_of(config: Any) -> Shape:
    """The shape from the configuration alone: counts the parameters of a model on the meta device, which takes no
    memory.
    """
    from transformers import AutoModelForCausalLM

    maker: Any = AutoModelForCausalLM
    with quiet(), torch.device("meta"):
        model = maker.from_config(config)
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
