"""A model as the stages measure it: loaded from an export, in one precision, on one device. Imports torch: import it
inside `run`."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer

from storage.artifact import Input
from storage.errors import BadInput, ConfigError
from tasks.corpus.tokens.begin import BOS, EOS, Begin, begin_id
from tasks.evaluation.catalog import FP32, Precision

_DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class TextModel:
    """A model that reads documents as in training: each is plain text, and follows the token `begin`."""

    model: Any
    device: torch.device
    tokenizer: Tokenizer
    eot: int
    begin: int
    """The end-of-text token, or the base's own begin-of-text token (`packing.begin`)."""

    def ids_of(self, texts: Sequence[str]) -> Iterator[list[int]]:
        """The tokens of each document, with the token before it that it begins with."""
        for encoding in self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False):
            yield [self.begin, *encoding.ids]


def load_text_model(
    model: Input, device: str, max_length: int, begin: Begin = EOS, precision: Precision = FP32
) -> TextModel:
    """The model of a part `export`, on the device named `auto`, `cpu` or `cuda`, with its tokenizer for plain text.

    Raises ConfigError if the device is missing, the model does not support the length, or documents are to begin with a
    token that its tokenizer does not have. Raises BadInput if the part is not a model, or lacks a fast tokenizer or an
    end-of-text token.
    """
    export, chosen = export_directory(model), device_of(device)
    eot = end_of_text(export)
    first = begin_id(export) if begin == BOS else eot
    loaded = load_model(export, chosen, max_length, precision)
    return TextModel(loaded, chosen, load_text_tokenizer(export), eot, first)


def device_of(wanted: str) -> torch.device:
    """The device named by `auto`, `cpu` or `cuda`. Raises ConfigError if it is missing."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"evaluation on device {wanted}: this machine has no CUDA device; use auto or cpu")
    return torch.device(wanted)


SLOW = "evaluation.precision is bf16, for which this processor has no instructions: fp32 is faster here, and has other keys"


def slow_in(precision: Precision, device: torch.device) -> bool:
    """Whether the processor must imitate this precision."""
    native = ("avx512_bf16", "amx_bf16", "bf16")
    return (
        precision == "bf16"
        and device.type == "cpu"
        and not any(torch.cpu.get_capabilities().get(name) for name in native)
    )


def export_directory(model: Input) -> Path:
    """The directory of a model's part that `from_pretrained` loads: the one with config.json.

    Raises BadInput if there is none, or if a file lies there that is not the model's: transformers would load it, an
    adapter for one, and no key would say so.
    """
    for path in model.paths:
        if path.name == "config.json":
            strange = {one.name for one in path.parent.iterdir()} - {one.name for one in model.paths}
            if strange:
                raise BadInput(
                    f"{path.parent} holds {min(strange)}, which is not of {model.stage} {model.key[:12]}: remove it"
                )
            return path.parent
    raise BadInput(
        f"part {model.part} of {model.stage} {model.key[:12]} holds no config.json: it is no model"
    )


def load_model(export: Path, device: torch.device, max_length: int, precision: Precision = FP32) -> Any:
    """The causal model of an export directory, ready to measure: weights and arithmetic in `precision`.

    Raises ConfigError if `max_length` exceeds the model's positions, BadInput if transformers cannot load it without
    remote code.
    """
    try:
        with quiet():
            model = transformers.AutoModelForCausalLM.from_pretrained(
                export, dtype=_DTYPES[precision], local_files_only=True, trust_remote_code=False
            )
    except (ValueError, KeyError) as error:
        raise BadInput(
            f"transformers cannot load the model in {export} ({str(error).splitlines()[0][:200]}); an export of Onward "
            "needs no remote code"
        ) from error
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and max_length > positions:
        raise ConfigError(f"cannot measure at {max_length} tokens: the model has {positions} positions")
    torch.nn.Module.to(model, device)
    return model.eval()


def load_text_tokenizer(export: Path) -> Tokenizer:
    """The tokenizer of an export for plain text: text that spells a special token stays text, and nothing is added."""
    path = export / "tokenizer.json"
    if not path.is_file():
        raise BadInput(f"{path.name} is missing in the model's export: perplexity needs a fast tokenizer")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def end_of_text(export: Path) -> int:
    """Id of the token that ends a document: the first end-of-sequence id in the model's configuration."""
    config = json.loads((export / "config.json").read_text(encoding="utf-8"))
    found = config.get("eos_token_id")
    found = found[0] if isinstance(found, list) and found else found
    if not isinstance(found, int):
        raise BadInput(
            "the model's config.json names no eos_token_id, so a document has no end-of-text token"
        )
    return found


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Context without the log lines and progress bars of loaders and the harness. Restores the settings afterwards."""
    import datasets

    loggers = [logging.getLogger(name) for name in ("lm_eval", "lm-eval", "transformers", "datasets")]
    before = [logger.level for logger in loggers]
    bars = datasets.are_progress_bars_disabled()
    transformers_bars = transformers.utils.logging.is_progress_bar_enabled()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
        if not bars:
            datasets.enable_progress_bars()
        if transformers_bars:
            transformers.utils.logging.enable_progress_bar()


def execution_facts(device: torch.device, **more: Any) -> dict[str, Any]:
    """Facts about the machine that may affect the last bits, for a volatile file."""
    return {
        "device": str(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        **more,
    }
