"""The training stages, seen from outside the trainer: one segment of a training line, made by a separate process.

A line of rounds is divided into segments: `train` (the trunk from one branch point to the next; round 0 and each
`rewarm` round are one such segment) and `decay` (the branch from a trunk to a budget). This module writes the
trainer's task and collects its results; trainer.py starts and stops the process, config.py defines its settings.
Invariant: a segment's bytes depend on its configuration and inputs alone, however often the process is killed.
"""

from __future__ import annotations

import contextlib
import functools
import json
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from storage.artifact import Input
from storage.draft import Draft
from storage.errors import BadInput, DamagedArtifact
from storage.packing import PackingManifest
from storage.settings import identity_of
from tasks.corpus.tokens.vocabulary import load_vocabulary
from tasks.models.config import SegmentConfig
from tasks.models.energy import Meter, read_joules
from tasks.models.heldout import write_heldout
from tasks.models.progress import last_row
from tasks.models.trainer import run_trainer
from tasks.training.spec import Execution
from tasks.training.state import stopping
from tasks.training.state.heldout import TEXT
from tasks.training.state.sealed import RESULT, not_as_written, read_sealed

STAGE = "train"
VERSION = 2
COMPONENTS = {
    "8bit": 1,
    "stochastic_rounding": 1,
    "pull_to_base": 1,
    "average": 1,
    "kept": 1,
    "export": 1,
    "dropout": 1,
    "document_masking": 1,
    "wsd": 1,
    "cosine": 1,
    "fp32": 1,
    "bf16": 1,
    "bf16_weights": 1,
    "gpt2": 1,
    "gpt_neox": 1,
    "llama": 1,
}
"""Versions of what a segment may use: options of the optimizer, what is averaged, kept and exported, masks, schedules,
precisions, and kinds of models (`model_type`; others may be added). One that is raised trains again only what uses it."""
CODE_ROOTS = ("tasks.training.__main__",)
_VOLATILE = (
    "clock.parquet",
    "energy.json",
    "execution.json",
    "heldout.jsonl",
    "recovery.json",
    "result.json",
    "stop.jsonl",
    "trainer.log",
)


_PARTS = ("export", "trunk", "journal", "kept")


@dataclass(frozen=True)
class TrainInputs:
    """`start`: an export (fresh optimizer) or a trunk. The manifests cover the segment's sequences."""

    start: Input
    manifests: tuple[Input, ...]
    tokenizer: Input
    shards: tuple[Input, ...] = field(metadata={"in_key": False})  # the manifests name them by digest
    base: Input | None = None
    """The base model's export, only if weights are pulled towards it."""
    readers: Input | None = field(default=None, metadata={"since": "0.2"})
    """What exports say for other readers (tasks/models/readers.py), only for a segment that makes any."""
    heldout: Mapping[str, Input] = field(default_factory=dict, metadata={"in_key": False})
    """Held-out documents by source, whose loss is measured on the way. They change no weight."""
    stop_text: Input | None = field(default=None, metadata={"since": "0.2"})
    """The held-out documents by which a trunk may end before its budget, only if it may."""


def components(config: SegmentConfig, inputs: TrainInputs) -> Iterator[str]:
    """What the segment uses, by the names in `COMPONENTS`."""
    optimizer = config.optimizer
    asked = {
        "8bit": optimizer.states == "8bit",
        "stochastic_rounding": optimizer.stochastic_rounding,
        "pull_to_base": optimizer.pull_to_base > 0,
        "average": config.average is not None,
        "kept": config.keep_every_tokens is not None,
        "export": config.kind != "trunk",
        "dropout": config.dropout > 0,
        "document_masking": config.document_masking,
    }
    yield from (name for name, on in asked.items() if on)
    yield config.schedule.kind
    yield config.precision
    yield from (model_type(path) for path in inputs.start.paths if path.name == "config.json")


@functools.lru_cache(maxsize=16)
def model_type(path: Path) -> str:
    """The kind of a model by its config.json: gpt2, llama, …"""
    return str(json.loads(path.read_bytes()).get("model_type"))


@dataclass(frozen=True)
class TrainStats:
    """The result of the segment. `result` is the trainer's own summary, without times."""

    steps: int
    tokens: int
    tokens_seen: int
    result: dict[str, Any]


def run(config: SegmentConfig, inputs: TrainInputs, draft: Draft) -> TrainStats:
    """Train the segment.

    What an earlier attempt finished, but did not commit, is compared with the digests that its trainer recorded.
    Parts: `trunk` (training continues from it), `export` (what from_pretrained loads; not for a trunk), `journal`,
    `kept` (checkpoints during training, if requested). Raises StageFailed with the trainer's last words, Interrupted
    if it was asked to stop.
    """
    work = draft.path
    result = work / RESULT
    if result.exists():
        _distrust_what_rotted(work, draft)
    if not result.exists():
        _write_spec(config, inputs, work)
        execution = config.execution
        meter = None if execution.device == "cpu" else Meter(work / "energy.json", execution.processes)
        run_trainer(
            work,
            processes=execution.processes,
            nodes=execution.nodes,
            rendezvous=execution.rendezvous,
            held=(*(() if draft.descriptor is None else (draft.descriptor,)), *draft.held),
            follow=lambda process: _follow(process, work / "journal.jsonl", draft, config, meter),
            warn=draft.warn,
        )
    found = json.loads(result.read_bytes())
    for part in _PARTS:
        if (work / part).is_dir():
            draft.part(part, part)
    draft.volatile(*(name for name in _VOLATILE if (work / name).exists()))
    facts = read_sealed(work / "execution.json")
    draft.note(**facts)
    if (joules := read_joules(work / "energy.json")) is not None:
        draft.note(energy_joules=joules)
    for warning in warnings_of(facts, found):
        draft.warn(warning)
    return TrainStats(
        steps=int(found["step"]) - config.first_step,
        tokens=int(found["tokens"]),
        tokens_seen=int(found["tokens_seen"]),
        result=found,
    )


def _distrust_what_rotted(work: Path, draft: Draft) -> None:
    """If outputs of an earlier attempt are not as they were written, let the trainer make them from its checkpoint."""
    try:
        problems = not_as_written(work, *_PARTS, RESULT)
        read_sealed(work / "execution.json")
    except (DamagedArtifact, OSError) as error:
        problems = [str(error)]
    if problems:
        draft.say(f"what was finished before is made again from the newest checkpoint: {problems[0]}")
        (work / RESULT).unlink()


def warnings_of(facts: Mapping[str, Any], result: Mapping[str, Any]) -> Iterator[str]:
    """Warnings about a trained segment, from execution.json and result.json: changes during training, and problems."""
    before = facts.get("before", ())
    groups = [entry for entry in (*before, facts) if "processes" in entry]
    if len(groups) > 1:
        counts = [
            f"{entry['processes']}{' sharding' if entry.get('sharding') == 'full' else ''}"
            for entry in groups
        ]
        yield f"trained by {', then '.join(counts)} processes: to rounding, not to the bit, what one number gives"
    short = [entry for entry in before if "out_of_memory_at_step" in entry]
    if short:
        ways = [
            f"micro-batch {entry['micro_batch']} (checkpointing {entry['gradient_checkpointing']}) until step "
            f"{entry['out_of_memory_at_step']}"
            for entry in short
        ]
        yield (
            f"out of memory at {', '.join(ways)}; went on with micro-batch {facts['micro_batch']} (checkpointing "
            f"{facts['gradient_checkpointing']}): the same batches, to rounding, not to the bit, what one setting gives"
        )
    for first, last in result.get("rollbacks", ()):
        yield f"steps {first} to {last} had no finite loss or gradient: they changed no weights, and were passed over"
    if stopped := stopping.stopped_of(result):
        rule = result["stopping"]
        tokens, loss = stopping.lowest_of(rule)
        ends = "the trunk ends with the weights of then"
        if tokens != stopped["tokens"]:  # in an earlier budget's trunk
            ends = f"this trunk ends with its own lowest, of {stopped['tokens']:,} tokens ({stopped['loss']:.4f})"
        yield (
            f"stopped by rule at {result['tokens_seen']:,} tokens: the loss on held-out text of {rule['source']} was "
            f"lowest at {tokens:,} tokens ({loss:.4f} nats per token); {ends}"
        )
    if "last_loss" in result:
        yield (
            f"the loss rose: its last steps have {result['last_loss']:.3g} nats per token, and it was "
            f"{result['lowest_loss']:.3g} (guessing: {result['guessing']:.3g}); lower training.learning_rate"
        )


def _write_spec(config: SegmentConfig, inputs: TrainInputs, work: Path) -> None:
    identity_part = identity_of(config)
    identity_part |= {
        "start": {"digest": inputs.start.digest},
        "manifests": [manifest.digest for manifest in inputs.manifests],
        "tokenizer": inputs.tokenizer.digest,
    }
    base = inputs.base
    if base is not None:
        identity_part["base"] = {"digest": base.digest}
    if inputs.stop_text is not None:
        identity_part["stop_text"] = {"digest": inputs.stop_text.digest}
    shards: dict[str, str] = {}
    for tokens in inputs.shards:
        manifest = json.loads((tokens.root / "manifest.json").read_bytes())
        for entry in manifest["parts"][tokens.part]["files"]:
            shards[entry["sha256"]] = str(tokens.root / entry["path"])
    spec = {
        "identity": identity_part,
        "paths": {
            "start": str(inputs.start.root / inputs.start.part),
            "start_kind": inputs.start.part,
            "base": None if base is None else str(base.root / base.part),
            "tokenizer": str(_directory_of(inputs.tokenizer)),
            "readers": None if inputs.readers is None else str(_directory_of(inputs.readers)),
            "heldout": _write_heldout(config, inputs, work),
            "stop_text": _write_stop_text(config, inputs, work),
            "manifests": [str(manifest.only()) for manifest in inputs.manifests],
            "shards": shards,
            "work": str(work),
        },
        "execution": {field.name: getattr(config.execution, field.name) for field in fields(Execution)},
        "parent_fd": None,
    }
    (work / "spec.json").write_text(json.dumps(spec, indent=1), encoding="utf-8")


def _write_heldout(config: SegmentConfig, inputs: TrainInputs, work: Path) -> str | None:
    """Write the tokens whose loss is measured on the way; None if there are none, or if no tokens can be made of the text:
    training needs no measure, and the stage that does says what is wrong with it.
    """
    if not inputs.heldout or config.execution.heldout_every_tokens is None:
        return None
    try:
        return _write_text(work / TEXT, inputs.heldout, config, inputs)
    except BadInput:
        return None


def _write_stop_text(config: SegmentConfig, inputs: TrainInputs, work: Path) -> str | None:
    """Write the tokens by which the trunk may end before its budget; None if it may not."""
    if config.stop is None or inputs.stop_text is None:
        return None
    return _write_text(work / stopping.TEXT, {config.stop.source: inputs.stop_text}, config, inputs)


def _write_text(path: Path, texts: Mapping[str, Input], config: SegmentConfig, inputs: TrainInputs) -> str:
    packed = PackingManifest.open(inputs.manifests[0].only())
    write_heldout(
        path,
        {name: part.paths for name, part in texts.items()},
        load_vocabulary(_directory_of(inputs.tokenizer)),
        first=packed.eot if packed.begin is None else packed.begin,
        longest=config.sequence_length,
    )
    return str(path)


def _directory_of(part: Input) -> Path:
    return part.paths[0].parent


def _follow(
    process: subprocess.Popen[bytes], journal: Path, draft: Draft, config: SegmentConfig, meter: Meter | None
) -> None:
    """Report the trainer's progress in tokens of its batches. Padding is included, as in budgets."""
    step_tokens = config.sequences_per_step * config.sequence_length
    total = (config.last_step - config.first_step) * step_tokens
    while process.poll() is None:
        row = last_row(journal)
        if row is not None:
            draft.progress((int(row["step"]) - config.first_step) * step_tokens, total, "tokens")
        if meter is not None:
            meter.note()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.5)
    if meter is not None:
        meter.note(at_once=True)
