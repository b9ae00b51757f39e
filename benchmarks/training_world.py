"""The world of the trainer's benchmarks: a model's shape, and documents of real lengths, packed as Onward packs
them.

Needs torch, transformers, safetensors, pyarrow and numpy alone. Words are random numbers, because speed does not
depend on them. Lengths are real, because the cost of attention depends on them.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from storage.packing import PackingManifest, Pieces, ShardEntry, write_manifest
from storage.tokens import TokenShard, write_shard
from tasks.corpus.packing.windows import Documents, Packing, Position, fill, no_sequences
from tasks.training.model import quiet

EOT = 0
TOKENIZER = "benchmark"
RATE = 3e-4
OPTIMIZER = {"betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1, "clip": 1.0}
EDUCATIONAL = (
    98, 324, 535, 798, 1033, 1421, 1888, 2267, 2569, 2911, 3271, 3762, 4172, 4617, 5055, 5712, 6250, 7245, 8254, 9973,
    32884,
)  # fmt: skip
GENERAL = (
    221, 533, 642, 740, 816, 912, 1010, 1125, 1287, 1570, 2022, 2340, 2815, 3343, 3944, 4675, 5384, 6085, 6688, 7455,
    8668,
)  # fmt: skip
LENGTHS = ((0.9, EDUCATIONAL), (0.1, GENERAL))
"""Share of the tokens, and the 0th, 5th, … 100th percentile of document lengths in GPT-2 tokens: 900 chapters of
text books and lessons, 750 documents of fiction, reviews, speeches and encyclopedia articles.
"""


@dataclass(frozen=True)
class Plan:
    """One comparison: a shape at a length, with the same batches for all. Reads and writes JSON."""

    shape: str
    length: int
    sequences_per_step: int
    micro_batch: int
    """Sequences of a micro-batch, for Onward and the raw limit."""
    peer_micro_batch: int
    """Sequences of a micro-batch, for peers that hold all logits at once."""
    steps: int
    precision: str
    device: str
    compile: bool
    threads: int
    root: str
    text: str = "random"
    """random: random numbers; sources: this machine's Python files, one token per byte."""

    def path(self, name: str) -> Path:
        """A file of this comparison."""
        return Path(self.root) / name


def config_of(shape: str, length: int) -> Any:
    """The transformers configuration of a shape: dropout 0, positions for `length`."""
    from transformers import GPT2Config, LlamaConfig

    gpt2 = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0}
    if shape == "gpt2-124m":
        return GPT2Config(**gpt2, n_positions=max(1024, length))
    if shape == "gpt2-17m":
        small = {"vocab_size": 16384, "n_embd": 384, "n_layer": 6, "n_head": 6}
        return GPT2Config(**gpt2, **small, n_positions=length)
    sizes = {
        "smollm2-135m": (49152, 576, 1536, 30, 9, 3),
        "llama-30m": (32768, 384, 1024, 10, 6, 2),
        "llama-9m": (8192, 256, 768, 8, 8, 4),
        "tiny": (256, 64, 128, 2, 4, 2),
        "llama-9m-odd": (8191, 256, 768, 8, 8, 4),
        "tiny-odd": (257, 64, 128, 2, 4, 2),
    }
    vocabulary, width, feed_forward, layers, heads, groups = sizes[shape]
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=feed_forward,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        max_position_embeddings=length,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )


SHAPES = ("llama-9m", "gpt2-17m", "gpt2-124m", "smollm2-135m", "tiny", "llama-9m-odd", "tiny-odd")


def make_world(plan: Plan) -> None:
    """Write model, tokens, packing manifest and the trainer's SPEC.json under `plan.root`."""
    Path(plan.root).mkdir(parents=True, exist_ok=True)
    config = config_of(plan.shape, plan.length)
    _save_model(plan, config)
    tokenizer = plan.path("tokenizer")
    tokenizer.mkdir(exist_ok=True)
    (tokenizer / "tokenizer.json").write_text("{}", encoding="utf-8")
    sequences = plan.steps * plan.sequences_per_step
    tokens = int(sequences * plan.length * 1.02) + 4 * plan.length
    lengths, values = _sources(tokens) if plan.text == "sources" else _random(tokens, config.vocab_size)
    shard = plan.path("shard.arrow")
    write_shard(
        shard,
        np.arange(len(lengths)),
        values,
        lengths,
        eot=EOT,
        vocabulary=config.vocab_size,
        tokenizer=TOKENIZER,
    )
    digest = hashlib.sha256(shard.read_bytes()).hexdigest()
    documents = Documents(np.zeros_like(lengths), 1 + np.cumsum(lengths) - lengths, lengths)
    how = Packing("documents", 0, plan.length, 1 << 22)
    packed = fill(documents, Position(), no_sequences(), sequences, how).sequences
    write_manifest(
        plan.path("manifest.arrow"),
        Pieces(packed.sequence, packed.shard, packed.offset, packed.length),
        sequence_length=plan.length,
        first_sequence=0,
        sequences=sequences,
        shards=[ShardEntry(digest, "documents")],
        eot=EOT,
        tokenizer=TOKENIZER,
        seed=0,
    )
    plan.path("spec.json").write_text(json.dumps(specification(plan, digest)), encoding="utf-8")


def specification(plan: Plan, digest: str) -> dict[str, Any]:
    """The trainer's SPEC.json. The rate is constant, so that every peer's step is alike."""
    return {
        "identity": {
            "kind": "trunk",
            "seed": 0,
            "sequence_length": plan.length,
            "sequences_per_step": plan.sequences_per_step,
            "first_step": 0,
            "last_step": plan.steps,
            "schedule": {
                "kind": "wsd",
                "peak": RATE,
                "warmup_steps": 0,
                "decay_from": None,
                "decay_to": None,
            },
            "optimizer": OPTIMIZER,
            "precision": plan.precision,
            "document_masking": True,
            "dropout": 0.0,
            "keep_every_tokens": None,
            "start": {"digest": "start"},
            "manifests": ["manifest"],
            "tokenizer": TOKENIZER,
        },
        "paths": {
            "start": str(plan.path("model")),
            "start_kind": "export",
            "tokenizer": str(plan.path("tokenizer")),
            "manifests": [str(plan.path("manifest.arrow"))],
            "shards": {digest: str(plan.path("shard.arrow"))},
            "work": str(plan.path("work")),
        },
        "execution": {
            "device": plan.device,
            "micro_batch": plan.micro_batch,
            "compile": plan.compile,
            "gradient_checkpointing": False,
            "threads": plan.threads,
            "checkpoint_every": 1e9,
        },
        "parent_fd": None,
    }


def sequences_of(plan: Plan, first: int, end: int) -> dict[str, torch.Tensor]:
    """Sequences [first, end) as rows, int64 [end - first, length]: inputs, targets, positions and document numbers.

    Padding has the input 0 and the target -100, and is a document of its own.
    """
    manifest = PackingManifest.open(plan.path("manifest.arrow"))
    stream = TokenShard.open(plan.path("shard.arrow")).tokens
    rows = manifest.rows(first, end)
    shape = (end - first, plan.length)
    inputs, targets = np.zeros(shape, dtype=np.int64), np.full(shape, -100, dtype=np.int64)
    positions, documents = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    filled = np.zeros(end - first, dtype=np.int64)
    pieces = zip(rows.sequence.tolist(), rows.offset.tolist(), rows.length.tolist(), strict=True)
    for number, (sequence, offset, length) in enumerate(pieces):
        row, at = sequence - first, filled[sequence - first]
        here = slice(at, at + length)
        inputs[row, here] = stream[offset - 1 : offset + length - 1]
        targets[row, here] = stream[offset : offset + length]
        positions[row, here] = np.arange(length)
        documents[row, here] = number + 1
        filled[row] += length
    for row, at in enumerate(filled):
        positions[row, at:] = np.arange(plan.length - at)
    made = {"inputs": inputs, "targets": targets, "positions": positions, "documents": documents}
    return {name: torch.from_numpy(array) for name, array in made.items()}


def _random(tokens: int, vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
    """(lengths, tokens) of random documents with real lengths."""
    lengths = _document_lengths(tokens)
    # like words: a few ids are frequent, most are rare
    drawn = np.random.default_rng(1).random(int(lengths.sum())) ** 3
    values = (vocabulary * drawn).astype(np.int64).clip(1)
    values[np.cumsum(lengths) - 1] = EOT
    return lengths, values


def _sources(tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """(lengths, tokens) of Python files, one token per byte (shifted by one; 0 ends a text).

    Returns fewer tokens if there are too few files; packing then reads them again in another order.
    """
    texts: list[np.ndarray] = []
    total = 0
    for path in sorted(Path(torch.__file__).parents[1].rglob("*.py")):
        if total >= tokens:
            break
        found = np.frombuffer(path.read_bytes()[:100_000], dtype=np.uint8)
        if len(found) > 100:
            texts.append(np.append(found.astype(np.int64).clip(0, 254) + 1, EOT))
            total += len(texts[-1])
    random = np.random.default_rng(0)
    texts = [texts[index] for index in random.permutation(len(texts))]
    return np.array([len(text) for text in texts], dtype=np.int64), np.concatenate(texts)


def _document_lengths(tokens: int) -> np.ndarray:
    """Token lengths of documents that hold at least `tokens` together, drawn between the measured quantiles."""
    random = np.random.default_rng(0)
    lengths: list[np.ndarray] = []
    total = 0
    while total < tokens:
        for weight, quantiles in LENGTHS:
            # `weight` is a share of tokens, so many more short documents are drawn than long ones
            share = weight * 1e6
            mean = float(np.convolve(quantiles, [0.5, 0.5], mode="valid").mean())
            at = random.random(max(1, round(share / mean))) * (len(quantiles) - 1)
            drawn = np.interp(at, np.arange(len(quantiles)), quantiles).astype(np.int64).clip(2)
            lengths.append(drawn)
            total += int(drawn.sum())
    together = np.concatenate(lengths)
    random.shuffle(together)
    return together[: int(np.searchsorted(np.cumsum(together), tokens)) + 1]


def _save_model(plan: Plan, config: Any) -> None:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(11)
    model: Any = AutoModelForCausalLM.from_config(config)
    if plan.shape == "tiny":  # so that its losses show what attention sees
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(6.0)
    with quiet():
        model.save_pretrained(plan.path("model"))
