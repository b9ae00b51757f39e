"""A model as one GGUF file, which llama.cpp and what is built on it (Ollama) run, by the format's own package.

The file is written tensor by tensor: it never takes more memory than the largest one. No byte depends on clock or path.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType
from safetensors import safe_open
from safetensors.torch import save_file

from storage.errors import ConfigError
from tasks.formats.families import Family, extra_tensors, family_of
from tasks.formats.rounded import rounded
from tasks.formats.vocabulary import add_tokenizer
from tasks.models.form import BF16, FP16, FP32, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, QUANTISED
from tasks.models.source import CONFIG, configuration

_TYPES = {
    FP32: (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    FP16: (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    BF16: (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
    Q8_0: (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    Q5_1: (GGMLQuantizationType.Q5_1, LlamaFileType.MOSTLY_Q5_1),
    Q5_0: (GGMLQuantizationType.Q5_0, LlamaFileType.MOSTLY_Q5_0),
    Q4_1: (GGMLQuantizationType.Q4_1, LlamaFileType.MOSTLY_Q4_1),
    Q4_0: (GGMLQuantizationType.Q4_0, LlamaFileType.MOSTLY_Q4_0),
}
_NOT_ROUNDED = ("position_embd.weight",)
"""Matrices that llama.cpp reads as float32."""
_SUFFIXES = (".weight", ".bias")
_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"


def write_gguf(export: Path, path: Path, dtype: str, name: str) -> None:
    """Write the model in the directory `export` as the GGUF file `path`, its matrices in `dtype`.

    Vectors (norms, biases) stay float32, as llama.cpp wants them. Of the quantised types, a matrix whose rows are no
    multiple of 32 numbers is float16, and the embedding and the head are q8_0 at least. `name` is what
    programs show of the model. Raises ConfigError if GGUF has no architecture that computes the same, or cannot say its
    tokenizer.
    """
    config = configuration((export / CONFIG).read_bytes(), str(export / CONFIG))
    family = family_of(config)
    files = sorted(export.glob("*.safetensors"))
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[family.arch])
    with closing(writer):
        writer.add_name(name)
        writer.add_file_type(_TYPES[dtype][1])
        if dtype in QUANTISED:
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        family.say(writer, config)
        if family.windows_every and config.sliding_window:
            writer.add_sliding_window(config.sliding_window)
        add_tokenizer(writer, export, config)
        for named, shape in _tensors(files, family, config, shapes=True):
            kind = _type(named, tuple(shape.shape), dtype)
            size, of_bytes = GGML_QUANT_SIZES[kind]
            count = shape.numel() // size * of_bytes
            writer.add_tensor_info(named, shape.shape, np.dtype(np.float32), count, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for named, tensor in _tensors(files, family, config):
            kind = _type(named, tuple(tensor.shape), dtype)
            if kind == GGMLQuantizationType.F16:
                rounded(tensor, FP16, named)
            with _full_disk(path):
                writer.write_tensor_data(gguf.quantize(tensor.float().contiguous().numpy(), kind))


@contextmanager
def _full_disk(path: Path) -> Iterator[None]:
    """Context in which a tensor that was written in part, which numpy reports without a number, is the system's error."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error


def _type(name: str, shape: tuple[int, ...], dtype: str) -> GGMLQuantizationType:
    if len(shape) < 2 or name in _NOT_ROUNDED:
        return GGMLQuantizationType.F32
    if dtype in QUANTISED and shape[-1] % GGML_QUANT_SIZES[GGMLQuantizationType.Q8_0][0]:
        return GGMLQuantizationType.F16
    if dtype in QUANTISED and name in (_EMBEDDING, _HEAD):
        return GGMLQuantizationType.Q8_0
    return _TYPES[dtype][0]


def write_as_read(export: Path, directory: Path, dtype: str) -> None:
    """Write the weights of `export` into `directory` as float32, each number as a GGUF file of this type holds it.

    So a model is measured with the numbers of the file, by the same code as any other. Raises ConfigError as `write_gguf`.
    """
    config = configuration((export / CONFIG).read_bytes(), str(export / CONFIG))
    family = family_of(config)
    names = gguf.get_tensor_name_map(family.arch, config.num_hidden_layers)
    for path in sorted(export.glob("*.safetensors")):
        with safe_open(path, framework="pt") as weights:
            tensors = {
                name: _held(weights.get_tensor(name), name, dtype, family, config, names)
                for name in weights.keys()  # noqa: SIM118 — not a mapping
            }
            metadata = weights.metadata()
        save_file(tensors, directory / path.name, metadata)


def _held(
    tensor: torch.Tensor, name: str, dtype: str, family: Family, config: Any, names: gguf.TensorNameMap
) -> torch.Tensor:
    """A tensor as a file holds it. Families order a matrix's rows, each rounded by itself, or turn the matrix around."""
    if not tensor.is_floating_point():
        return tensor
    placed, one = next(iter(family.place(name, tensor, config)))
    found = names.get_name(placed, try_suffixes=_SUFFIXES) or placed
    kind = _type(found, tuple(one.shape), dtype)
    turned = tensor.ndim == 2 and one.shape != tensor.shape and one.shape == tensor.T.shape
    turned = turned or (
        tensor.ndim == 2 and bool(torch.equal(one, tensor.T)) and not torch.equal(one, tensor)
    )
    own = (tensor.T if turned else tensor).float().contiguous().numpy()
    held = torch.from_numpy(gguf.dequantize(gguf.quantize(own, kind), kind).reshape(own.shape).copy())
    return (held.T if turned else held).contiguous()


def _tensors(
    files: list[Path], family: Family, config: Any, shapes: bool = False
) -> Iterator[tuple[str, torch.Tensor]]:
    """(GGUF's name, tensor as llama.cpp wants it), in the order of the files. `shapes`: tensors without memory."""
    names = gguf.get_tensor_name_map(family.arch, config.num_hidden_layers)
    headless = family.needs_head and not any(_has_head(path, names) for path in files)
    for path in files:
        with safe_open(path, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 — not a mapping
                if shapes:
                    tensor = torch.empty(weights.get_slice(name).get_shape(), device="meta")
                else:
                    tensor = weights.get_tensor(name)
                for placed, one in family.place(name, tensor, config):
                    found = names.get_name(placed, try_suffixes=_SUFFIXES)
                    if found is None:
                        raise ConfigError(
                            f"--format gguf: a {config.model_type} has no {name} in GGUF; export it as safetensors"
                        )
                    yield found, one
                    if headless and found == _EMBEDDING:
                        yield _HEAD, one
    for name, tensor in extra_tensors(config).items():
        yield name, tensor


def _has_head(path: Path, names: gguf.TensorNameMap) -> bool:
    with safe_open(path, framework="pt") as weights:
        return any(names.get_name(name, try_suffixes=_SUFFIXES) == _HEAD for name in weights.keys())  # noqa: SIM118
