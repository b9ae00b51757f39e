"""A base model of a few weights as `save_pretrained` leaves it, and its files edited."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from storage.artifact import Artifact
from storage.testing import artifact_of
from tasks.models import base
from tasks.models.base import BaseConfig, ModelConfig, resolve_base

WEIGHTS = "model.safetensors"


def small_model(directory: Path, **shape: Any) -> None:
    """A Llama of a few weights with a tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=270,
        special_tokens=["<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(["the cat sat on the mat"] * 9, trainer)
    torch.manual_seed(0)
    values: dict[str, Any] = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    LlamaForCausalLM(LlamaConfig(**(values | shape))).save_pretrained(directory)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>"})
    )


def import_base(directory: Path, store: Path) -> Artifact:
    """The artifact of the stage `base` for a directory, through a store."""
    return artifact_of(base, BaseConfig(), resolve_base(ModelConfig(base=str(directory)), Path("/")), store)


def json_with(path: Path, **changes: Any) -> None:
    """The JSON object in a file with other values."""
    found = json.loads(path.read_bytes()) if path.exists() else {}
    path.write_text(json.dumps(found | changes))


def with_tensors(directory: Path, **changes: Any) -> None:
    """The weights with other tensors, by name with `__` for the dot; None takes one away."""
    tensors = load_file(directory / WEIGHTS)
    for name, value in changes.items():
        tensors.pop(name.replace("__", "."), None)
        if value is not None:
            tensors[name.replace("__", ".")] = value
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
