"""What a segment writes: checkpoints on the way, states to keep, and in the end what it leaves; result.json last.

The first process alone writes. Nothing here changes what is trained; when a checkpoint is written, the clock decides.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

from tasks.training import checkpoint as checkpoints
from tasks.training import export as exports
from tasks.training.journal import read_journal, write_tables
from tasks.training.optimizer import optimizer_tensors
from tasks.training.segment import Segment
from tasks.training.work import Say


def save(segment: Segment, say: Say) -> None:
    """Commit a checkpoint of the current step, unless the newest is of it. In the first process."""
    step = segment.progress.step
    if (
        segment.journal is None
        or segment.saved_step == step
        or (segment.saved_step is None and step == segment.spec.identity.first_step)
    ):
        return
    started = time.perf_counter()
    root = segment.spec.paths.work / "checkpoints"
    identity = segment.spec.identity
    state = {
        "format": 1,
        "step": step,
        "progress": asdict(segment.progress),
        "next_sequence": step * identity.sequences_per_step,
        "random": {"seed": identity.seed, "rule": "seeded anew at each step, from seed and step"},
        "journal": segment.journal.mark(),
        "identity": json.loads(identity.canonical),
        "identity_digest": identity.digest,
        "execution": segment.execution,
    }
    model = checkpoints.model_tensors(segment.model.whole)
    average = segment.average.sums if segment.average.kept else None
    moments = optimizer_tensors(segment.model.whole, segment.optimizer)
    checkpoints.save_checkpoint(root, model, moments, state, average)
    checkpoints.prune(root, segment.spec.execution.keep_last)
    segment.saved_step = step
    say(f"checkpoint at step {step} in {time.perf_counter() - started:.1f} s")


def collect(segment: Segment) -> None:
    """Add the weights to those whose mean the export is to be, where this step is one of theirs."""
    if segment.processes.first and segment.average.wants(segment.progress.step):
        segment.average.add(checkpoints.model_tensors(segment.model.whole))


def keep(segment: Segment, tokens_before: int) -> None:
    """`kept/tokens-…/` where the step passed a multiple of keep_every_tokens: a trunk with the tokenizer beside."""
    every = segment.spec.identity.keep_every_tokens
    if (
        not segment.processes.first
        or every is None
        or segment.progress.tokens // every == tokens_before // every
    ):
        return
    name = f"kept/tokens-{segment.progress.tokens // every * every:015d}"

    def fill(directory: Path) -> None:
        _write_trunk(segment, directory)
        exports.copy_tokenizer(segment.spec.paths.tokenizer, directory)

    checkpoints.replace_directory(segment.spec.paths.work, name, fill)


def finish(segment: Segment) -> None:
    """Write what the segment leaves; result.json last."""
    identity, work, progress = segment.spec.identity, segment.spec.paths.work, segment.progress
    whole, eot = segment.model.whole, segment.corpus.eot
    if identity.makes_export:
        tokenizer = segment.spec.paths.tokenizer
        average = segment.average
        weights = average.mean(checkpoints.model_tensors(whole)) if average.kept else None
        checkpoints.replace_directory(
            work, "export", lambda to: exports.write_export(to, whole, tokenizer, eot, weights)
        )
    if identity.makes_trunk:
        checkpoints.replace_directory(work, "trunk", lambda to: _write_trunk(segment, to))
    lines, sources = read_journal(work / "journal.jsonl"), segment.corpus.sources

    def tables(directory: Path) -> None:
        write_tables(lines, sources, directory / "journal.parquet", work / "clock.parquet")

    checkpoints.replace_directory(work, "journal", tables)
    result = {
        "kind": identity.kind,
        "step": progress.step,
        "steps": identity.last_step - identity.first_step,
        "tokens": progress.computed,
        "tokens_seen": progress.tokens,
        "skipped_steps": progress.skipped,
        "loss": progress.loss,
        "parameters": segment.shape.parameters,
        "identity": identity.digest,
    }
    checkpoints.write_json(work / "result.json", result)


def _write_trunk(segment: Segment, directory: Path) -> None:
    state = {"format": 1, "step": segment.progress.step, "tokens": segment.progress.tokens}
    optimizer = optimizer_tensors(segment.model.whole, segment.optimizer)
    exports.write_trunk(directory, segment.model.whole, optimizer, state, segment.corpus.eot)
