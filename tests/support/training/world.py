"""A tiny corpus, tiny models and a specification over them; the trainer called here or in a process of its own."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from storage.packing import Pieces, ShardEntry, write_manifest
from storage.tokens import write_shard

VOCABULARY = 96
EOT = 0
SEQUENCE = 48
PER_STEP = 4
TOKENIZER = "tokenizer-digest"
POISON = VOCABULARY - 1
"""A word that only poisoned steps hold; a model whose embedding of it is not finite has no finite loss there."""


@dataclass(frozen=True)
class World:
    """Files that a specification can name."""

    root: Path
    export: Path
    tokenizer: Path
    manifest: Path
    shards: dict[str, Path]
    sequences: int

    def spec(self, work: Path, **changes: Any) -> dict[str, Any]:
        """A trunk of 8 steps; `changes` by dotted name with `__` for the dot."""
        spec: dict[str, Any] = {
            "identity": {
                "kind": "trunk",
                "seed": 3,
                "sequence_length": SEQUENCE,
                "sequences_per_step": PER_STEP,
                "first_step": 0,
                "last_step": 8,
                "schedule": {
                    "kind": "wsd",
                    "peak": 1e-2,
                    "warmup_steps": 3,
                    "decay_from": None,
                    "decay_to": None,
                },
                "optimizer": {"betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1, "clip": 1.0},
                "precision": "fp32",
                "document_masking": True,
                "dropout": 0.0,
                "keep_every_tokens": None,
                "start": {"digest": "start"},
                "manifests": ["manifest"],
                "tokenizer": TOKENIZER,
            },
            "paths": {
                "start": str(self.export),
                "start_kind": "export",
                "tokenizer": str(self.tokenizer),
                "manifests": [str(self.manifest)],
                "shards": {digest: str(path) for digest, path in self.shards.items()},
                "work": str(work),
            },
            "execution": {"device": "cpu", "micro_batch": 2, "threads": 1, "checkpoint_every": 1e-9},
            "parent_fd": None,
        }
        for dotted, value in changes.items():
            *path, last = dotted.split("__")
            at = spec
            for name in path:
                at = at[name]
            at[last] = value
        return spec


def write_shards(
    root: Path, seed: int, documents: int, name: str, poisoned: Sequence[int] | None = None
) -> tuple[str, Path, np.ndarray]:
    """(digest, path, lengths) of a shard of random documents; half of each is a repeating pattern to learn.

    `poisoned`: places of the word that nothing else holds then.
    """
    random = np.random.default_rng(seed)
    lengths = random.integers(2, 40, documents)
    values = random.integers(1, VOCABULARY, int(lengths.sum()))
    values[::2] = 7
    values[np.cumsum(lengths) - 1] = EOT
    if poisoned is not None:
        values[values == POISON] = 1
        values[np.array(poisoned, dtype=np.int64)] = POISON
    path = root / name
    write_shard(
        path, np.arange(documents), values, lengths, eot=EOT, vocabulary=VOCABULARY, tokenizer=TOKENIZER
    )
    return hashlib.sha256(path.read_bytes()).hexdigest(), path, lengths


def make_corpus(
    root: Path, poisoned: Sequence[int] = (), per_step: int = PER_STEP, documents: int = 120
) -> tuple[Path, dict[str, Path], int]:
    """Two sources; their documents, cut at the sequence length, fill sequences in turn. `poisoned`: steps."""
    names = ((1, "web"), (2, "books"))
    made = [write_shards(root, seed, documents, f"{name}.arrow") for seed, name in names]
    queues = []
    for shard, (_, _, lengths) in enumerate(made):
        sequences: list[list[tuple[int, int, int]]] = [[]]
        room = SEQUENCE
        for offset, length in zip(1 + np.cumsum(lengths) - lengths, lengths, strict=True):
            if length > room:
                sequences.append([])
                room = SEQUENCE
            sequences[-1].append((shard, int(offset), int(length)))
            room -= int(length)
        queues.append(sequences)
    order = [sequence for pair in zip(*queues, strict=False) for sequence in pair]
    rows = [(number, *piece) for number, sequence in enumerate(order) for piece in sequence]
    if poisoned:
        firsts = [order[(step - 1) * per_step][0] for step in poisoned]
        places = [[offset - 1 for shard, offset, _ in firsts if shard == own] for own in range(len(names))]
        made = [
            write_shards(root, seed, documents, f"{name}.arrow", places[own])
            for own, (seed, name) in enumerate(names)
        ]
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    manifest = root / "manifest.arrow"
    write_manifest(
        manifest,
        Pieces(*columns),
        sequence_length=SEQUENCE,
        first_sequence=0,
        sequences=len(order),
        shards=[ShardEntry(made[0][0], "web"), ShardEntry(made[1][0], "books")],
        eot=EOT,
        tokenizer=TOKENIZER,
        seed=0,
    )
    return manifest, {digest: path for digest, path, _ in made}, len(order)


def save_model(config: Any, path: Path, spread: float = 1.0) -> Path:
    """A random model of this configuration; `spread` scales its matrices, so that attention matters."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(11)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(spread)
    model.save_pretrained(path)
    return path


def llama_config(**changes: Any) -> Any:
    from transformers import LlamaConfig

    values = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
    }
    return LlamaConfig(**{**values, **changes})


def make_tokenizer(path: Path) -> Path:
    """A word-level tokenizer that AutoTokenizer loads."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = {"<eot>": 0, **{f"w{index}": index for index in range(1, VOCABULARY)}}
    tokenizer = Tokenizer(WordLevel(words, unk_token="w1"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eot>").save_pretrained(path)
    return path


def make_world(root: Path) -> World:
    """The corpus, a small Llama and its tokenizer in a directory."""
    root.mkdir(parents=True, exist_ok=True)
    manifest, shards, sequences = make_corpus(root)
    export = save_model(llama_config(), root / "export")
    return World(root, export, make_tokenizer(root / "tokenizer"), manifest, shards, sequences)


def run_here(spec: dict[str, Any], stop: Callable[[], bool] = lambda: False) -> tuple[int, list[str]]:
    """Train in this process; (exit code, what it said)."""
    from tasks.training.loop import train
    from tasks.training.read_spec import parse_spec

    said: list[str] = []
    return train(parse_spec(spec), stop, said.append), said


def run(world: World, work: Path, **changes: Any) -> Path:
    """Train to the end in this process; gives back `work`."""
    from tasks.training.loop import DONE

    assert run_here(world.spec(work, **changes))[0] == DONE
    return work


def after_calls(count: int) -> Callable[[], bool]:
    """A stop function that is true from its `count`-th question on (it is asked before each step)."""
    asked = iter(range(1, 1_000_000))
    return lambda: next(asked) >= count


def outputs(work: Path) -> dict[str, str]:
    """sha256 by name of every file that a digest may cover."""
    found = {}
    for part in ("export", "trunk", "journal", "kept"):
        for path in sorted((work / part).rglob("*")):
            if path.is_file():
                found[str(path.relative_to(work))] = hashlib.sha256(path.read_bytes()).hexdigest()
    found["result.json"] = hashlib.sha256((work / "result.json").read_bytes()).hexdigest()
    return found


def journal_steps(work: Path) -> list[int]:
    path = work / "journal.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []  # the last one may be half written
    return [json.loads(line)["step"] for line in lines]


def poisoned_world(root: Path, steps: Sequence[int], per_step: int = PER_STEP) -> World:
    """A world in which the loss of these steps is not finite, by the data and the model alone."""
    from transformers import AutoModelForCausalLM

    root.mkdir(parents=True, exist_ok=True)
    manifest, shards, sequences = make_corpus(root, steps, per_step)
    export = save_model(llama_config(tie_word_embeddings=False), root / "export")
    model = AutoModelForCausalLM.from_pretrained(export)
    with torch.no_grad():
        model.get_input_embeddings().weight[POISON] = float("nan")
    model.save_pretrained(export)
    return World(root, export, make_tokenizer(root / "tokenizer"), manifest, shards, sequences)


@dataclass(frozen=True)
class Death:
    """SIGKILL at the `call`-th call of `module`.`name`: before it, after it, or when half of a file is written."""

    module: str
    name: str
    call: int
    when: str = "before"

    def arm(self) -> None:
        """In this process, from now on. The other threads go on for a moment first."""
        import importlib

        owner = importlib.import_module(self.module)
        *path, last = self.name.split(".")
        for part in path:
            owner = getattr(owner, part)
        plain, calls = getattr(owner, last), iter(range(1, 1_000_000))

        def deadly(*args: Any, **kwargs: Any) -> Any:
            if next(calls) != self.call:
                return plain(*args, **kwargs)
            if self.when != "before":
                plain(*args, **kwargs)
            if self.when == "half":
                os.truncate(args[1], os.path.getsize(args[1]) // 2)
            time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(owner, last, deadly)


def trainer_main(spec: str, death: Death | None = None) -> None:
    """What a started process runs."""
    from tasks.training.__main__ import main

    if death is not None:
        death.arm()
    sys.exit(main([spec]))


def open_corpus(world: World, work: Path, vocabulary: int = VOCABULARY, **changes: Any) -> Any:
    """The corpus of a specification over the world, as the trainer opens it."""
    from tasks.training.data import Corpus
    from tasks.training.read_spec import parse_spec

    work.mkdir(exist_ok=True)
    spec = parse_spec(world.spec(work, **changes))
    return Corpus.open(spec.identity, spec.paths, vocabulary)
