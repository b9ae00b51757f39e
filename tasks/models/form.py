"""The form in which a model leaves the store: a format of files and a type of numbers. Light to import."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from storage.errors import ConfigError

SAFETENSORS, GGUF = "safetensors", "gguf"
FORMATS = (SAFETENSORS, GGUF)
BF16, FP16, FP32 = "bf16", "fp16", "fp32"
Q8_0, Q5_1, Q5_0, Q4_1, Q4_0 = "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"
QUANTISED = (Q8_0, Q5_1, Q5_0, Q4_1, Q4_0)
"""Types of GGUF files: blocks of 32 whole numbers with a scale, and of those with _1 an offset."""
DTYPES = (BF16, FP16, FP32, *QUANTISED)
_BY_LLAMA_CPP = re.compile(r"(?i)(q[2-8]_k(_[sml])?|iq[1-4]_\w+|tq[12]_0|mxfp4)")
"""Types that only llama.cpp's own program makes: no Python package has its call."""
_KEPT_IN_BF16 = "bf16_weights"
"""The one with which the store's weights are not float32."""
_TRAINED_IN_BF16 = ("bf16", _KEPT_IN_BF16)
"""Values of `training.precision` with which every product of the weights was computed in bf16."""


@dataclass(frozen=True)
class Form:
    """A format, and the type of its weights. `dtype` None: the numbers are those of the store, bit for bit."""

    format: str = SAFETENSORS
    dtype: str | None = None

    @property
    def said(self) -> str:
        """The type as a file's name and a card say it."""
        return self.dtype or FP32

    @property
    def file(self) -> str:
        """The name of the GGUF file."""
        return f"model-{self.said}.gguf"


def form_of(format_: str, dtype: str | None, training: Mapping[str, Any]) -> Form:
    """The form that was asked for. `training`: the configuration of the stage that made the model.

    Without a type it is bf16 for a model that was trained in bf16, whose scores were those of bf16 products, and else
    that of the store (float32). Raises ConfigError for what does not exist.
    """
    if format_ not in FORMATS:
        raise ConfigError(f"--format {format_}: unknown format; one of {', '.join(FORMATS)}")
    if dtype is not None and _BY_LLAMA_CPP.fullmatch(dtype):
        raise ConfigError(
            f"--dtype {dtype} is made by llama.cpp's own program of a bf16 file: onward export MODEL DIR "
            f"--format {GGUF} --dtype "
            f"{BF16}, then llama-quantize DIR/model-{BF16}.gguf DIR/model-{dtype}.gguf {dtype}; of 4 bits, "
            f"{Q4_0} and {Q4_1} "
            "are made here"
        )
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"--dtype {dtype}: unknown type; one of {', '.join(DTYPES)}")
    if dtype in QUANTISED and format_ != GGUF:
        raise ConfigError(f"--dtype {dtype} is a type of GGUF files; add --format {GGUF}")
    if dtype is None and training.get("precision") in _TRAINED_IN_BF16:
        dtype = BF16
    if dtype == FP32 and training.get("precision") != _KEPT_IN_BF16:
        dtype = None
    return Form(format_, dtype)
