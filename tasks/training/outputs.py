"""What a segment writes: checkpoints, states to keep, and its outputs at the end. result.json is written last, and
the digests of all outputs (sealed.py) right before it.

Only the first process writes. Nothing here changes what is trained, although the clock decides when a checkpoint is
written.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from storage.atomic import sha256_file, write_bytes
from storage.errors import DamagedArtifact, StageFailed
from tasks.training.process.sharding import whole_on_first
from tasks.training.segment import Segment
from tasks.training.state import checkpoint as checkpoints
from tasks.training.state import export as exports
from tasks.training.state.average import AVERAGE
from tasks.training.state.journal import read_journal, write_tables
from tasks.training.state.readers import add_readers
from tasks.training.state.sealed import RESULT, json_bytes, note_written, read_sealed, write_sealed
from tasks.training.state.stopping import BEST, best_directory, digests_file, no_longer_needed
from tasks.training.update.optimizer import optimizer_tensors


def save(segment: Segment) -> None:
    """Begin a checkpoint of the current step, unless the newest one is of this step; writer.py makes it durable.

    All processes must call it together, because sharded weights are gathered; only the first writes. Raises the
    error of the write before, if that failed.
    """
    step = segment.progress.step
    if segment.begun_step == step or (
        segment.begun_step is None and step == segment.spec.identity.first_step
    ):
        return
    held = _held(segment)
    segment.begun_step = step
    if segment.journal is None or segment.writer is None:
        return
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
    files = {checkpoints.MODEL: held.weights, checkpoints.OPTIMIZER: held.moments}
    if segment.stopping:
        state["stopping"] = segment.stopping.state
    if segment.average.kept:
        files[AVERAGE] = segment.average.sums
    segment.writer.begin(files, state, segment.journal.sync)


def collect(segment: Segment) -> None:
    """Add the weights to the mean for the export, if this step belongs to it. Called by all processes, like `save`."""
    if segment.average.wants(segment.progress.step):
        weights = whole_on_first(checkpoints.model_tensors(segment.model.whole), segment.processes)
        if segment.processes.first:
            segment.average.add(weights)


def keep(segment: Segment, tokens_before: int) -> None:
    """Write `kept/tokens-…/`, a trunk with its tokenizer, if this step passed a multiple of keep_every_tokens."""
    every = segment.spec.identity.keep_every_tokens
    if every is None or segment.progress.tokens // every == tokens_before // every:
        return
    held = _held(segment)
    if not segment.processes.first:
        return
    name = f"kept/tokens-{segment.progress.tokens // every * every:015d}"

    def fill(directory: Path) -> None:
        _write_trunk(segment, held, directory)
        exports.copy_tokenizer(segment.spec.paths.tokenizer, directory)
        add_readers(directory, segment.spec.paths.readers)

    checkpoints.replace_directory(segment.spec.paths.work, name, fill)
    note_written(segment.spec.paths.work, name)


def keep_best(segment: Segment) -> None:
    """Keep the state of now as the lowest by the rule for stopping. Of those before it, only the ones stay that a killed
    run would go back to: from the newest durable checkpoint, and from the one under way. Called by all processes, like
    `save`.
    """
    held = _held(segment)
    if not segment.processes.first:
        return
    work, step, first = segment.spec.paths.work, segment.progress.step, segment.spec.identity.first_step
    resumed = (first if at is None else at for at in (segment.saved_step, segment.begun_step))
    for old in no_longer_needed(
        work, *resumed
    ):  # before the new one is written, as each is as large as a checkpoint
        checkpoints.remove(work / best_directory(old))
        (work / digests_file(old)).unlink(missing_ok=True)

    def fill(directory: Path) -> None:
        _write_trunk(segment, held, directory)
        digests = {path.name: sha256_file(path) for path in sorted(directory.iterdir())}
        (work / BEST).mkdir(exist_ok=True)
        write_sealed(work / digests_file(step), digests)

    checkpoints.replace_directory(work, best_directory(step), fill)


def finish(segment: Segment) -> None:
    """Write the segment's outputs, result.json last. Called by all processes, like `save`."""
    held = _held(segment)
    if not segment.processes.first:
        return
    identity, work, progress = segment.spec.identity, segment.spec.paths.work, segment.progress
    whole, eot = segment.model.whole, segment.corpus.eot
    if identity.makes_export:
        tokenizer = segment.spec.paths.tokenizer
        average = segment.average
        weights = average.mean(held.weights) if average.kept else held.of_shards

        def fill(directory: Path) -> None:
            exports.write_export(directory, whole, tokenizer, eot, weights)
            add_readers(directory, segment.spec.paths.readers)

        checkpoints.replace_directory(work, "export", fill)
    if segment.stopping and segment.stopping.over:
        _end_with_best(segment)
    elif identity.makes_trunk:
        checkpoints.replace_directory(work, "trunk", lambda to: _write_trunk(segment, held, to))
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
        "rollbacks": segment.recovery.stretches,
        "spikes": sum(bool(line.get("spike")) for line in lines),
        "loss": progress.loss,
        "parameters": segment.shape.parameters,
        "identity": identity.digest,
        **segment.climb.at_the_end,
        **({"stopping": segment.stopping.facts} if segment.stopping else {}),
    }
    data = json_bytes(result)
    note_written(work, "export", "trunk", "journal", also={RESULT: data})
    write_bytes(work / RESULT, data)


def _end_with_best(segment: Segment) -> None:
    """The trunk is the state with the lowest loss. If that is not as it was written, the next attempt begins anew, and
    StageFailed is raised.
    """
    assert segment.stopping is not None
    work, trunk = segment.spec.paths.work, segment.spec.paths.work / "trunk"
    best = work / best_directory(segment.stopping.best_step)
    kept = best if best.is_dir() else trunk  # of an attempt that was killed after the rename below
    try:
        digests = read_sealed(work / digests_file(segment.stopping.best_step))
        damaged = [name for name, digest in digests.items() if sha256_file(kept / name) != digest]
    except (OSError, DamagedArtifact) as error:
        damaged = [str(error)]
    if damaged:
        checkpoints.remove(work / "checkpoints")
        checkpoints.remove(work / BEST)
        raise StageFailed(
            f"{kept} is not what was written ({damaged[0]}): this segment begins anew with the next attempt",
            passing=True,
        )
    if kept is best:
        checkpoints.remove(trunk)
        best.rename(trunk)


@dataclass(frozen=True)
class _Held:
    """Whole weights and optimizer state by name. Shards are gathered in the first process only, on the host."""

    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    of_shards: dict[str, Tensor] | None
    """`weights` again if the model itself holds shards, else None."""


def _held(segment: Segment) -> _Held:
    weights = whole_on_first(checkpoints.model_tensors(segment.model.whole), segment.processes)
    moments = whole_on_first(optimizer_tensors(segment.model.whole, segment.optimizer), segment.processes)
    return _Held(weights, moments, weights if segment.sharded else None)


def _write_trunk(segment: Segment, held: _Held, directory: Path) -> None:
    state = {"format": 1, "step": segment.progress.step, "tokens": segment.progress.tokens}
    whole, eot = segment.model.whole, segment.corpus.eot
    exports.write_trunk(directory, whole, held.moments, state, eot, held.of_shards)
