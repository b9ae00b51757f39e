"""One segment of training, from top to bottom: open, resume, step, checkpoint, finish.

What must stay true: the state after step s is a function of the specification and the resolved execution alone.
The rate is a function of the step, the random state of seed and step, the batch of the step; weights and optimizer
come exactly from the checkpoint. So nothing else needs saving, and nothing here looks at the clock but to decide
when to checkpoint and what to write into the clock columns. Of several processes (processes.py) each steps through
this with its share of every batch; the first alone writes.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from storage.code import project_digest
from storage.errors import ConfigError, StageFailed
from tasks.training import checkpoint as checkpoints
from tasks.training import execution as executions
from tasks.training import export as exports
from tasks.training.attention import Packing
from tasks.training.checkpoint import Checkpoint
from tasks.training.config import Identity, Spec
from tasks.training.data import Corpus, MicroBatch
from tasks.training.journal import Journal, journal_holds, read_journal, write_tables
from tasks.training.model import LanguageModel, Shape, load_model, read_config, shape_of
from tasks.training.optimizer import (
    load_optimizer_tensors,
    make_optimizer,
    optimizer_tensors,
    set_learning_rate,
)
from tasks.training.processes import ALONE, Processes, mark_of
from tasks.training.schedule import learning_rate

DONE, RESUMABLE = 0, 75
"""Exit codes; a failure is 1."""
BAD_STEPS_IN_A_ROW = 5
"""Skipped steps after which training stops."""
_LOCK_SECONDS = 600.0

Say = Callable[[str], None]


@dataclass
class Progress:
    """Where the segment stands. `tokens`: targets seen by the model; `computed`: by this segment alone."""

    step: int
    tokens: int
    computed: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    loss: float | None = None


@dataclass
class Segment:
    """Everything that a step needs. The journal is the first process's."""

    spec: Spec
    processes: Processes
    execution: dict[str, Any]
    shape: Shape
    model: LanguageModel
    optimizer: torch.optim.AdamW
    corpus: Corpus
    journal: Journal | None
    progress: Progress
    saved_step: int | None
    peak_flops: float | None


def train(spec: Spec, stop: Callable[[], bool], say: Say, processes: Processes = ALONE) -> int:
    """Run the segment to its end (DONE), or until `stop` is true after a step (RESUMABLE).

    May be called again in the same work directory whatever happened to the call before. Raises OnwardError.
    """
    work = spec.paths.work
    with _alone(work, stop, say) if processes.first else nullcontext(True) as alone:
        code = processes.tell(_what_is_left(spec, alone, say) if processes.first else None)
        if code is not None:
            return int(code)
        segment = _open(spec, say, processes)
        try:
            if not _steps(segment, stop, say):
                processes.wait()
                return RESUMABLE
        finally:
            if segment.journal:
                segment.journal.close()
        _same_weights(segment)
        if processes.first:
            _finish(segment)
        processes.wait()
        say(f"done at step {segment.progress.step}, {segment.progress.tokens} tokens seen")
        return DONE


def _what_is_left(spec: Spec, alone: bool, say: Say) -> int | None:
    """The code to leave with at once, or None where there is work to do."""
    work = spec.paths.work
    if not alone:
        return RESUMABLE
    _check_earlier_work(work, spec.identity)
    if (work / "result.json").exists():
        say(f"finished before: {work / 'result.json'}")
        return DONE
    checkpoints.clean(work / "checkpoints")
    checkpoints.clean(work)
    return None


def _open(spec: Spec, say: Say, processes: Processes) -> Segment:
    """Load everything, checked before the first step, at the newest whole checkpoint or at the start."""
    started = time.perf_counter()
    identity, paths, work = spec.identity, spec.paths, spec.paths.work
    if processes.count > 1:
        processes.same(f"{executions.versions()}, code {project_digest()[:12]}", "Versions or sources")
    exports.tokenizer_files(paths.tokenizer)
    config = read_config(paths.start, identity)
    shape = shape_of(config)
    resolved = executions.resolve(spec.execution, shape, identity, processes)
    if processes.first:
        resolved = executions.settle(work / "execution.json", resolved, spec.execution, say)
    resolved = processes.tell(resolved)
    own = {**resolved, "device": processes.device(resolved["device"])}
    executions.apply(own)
    model = load_model(paths.start, config, identity, own)
    corpus = _open_corpus(spec, model, processes)
    optimizer = make_optimizer(model.whole, identity.optimizer)
    lines = work / "journal.jsonl"
    found = _found(spec, say, processes)
    if found is None:
        progress = _begin(spec, model, optimizer)
    else:
        progress = _resume(found, identity, model, optimizer)
    journal = None
    if processes.first:
        journal = Journal(lines, found.state["journal"] if found else None, spec.execution.log_every)
    where = f"resumed from step {found.step}" if found else "fresh"
    several = f"{processes.count} processes, " if processes.count > 1 else ""
    say(
        f"{identity.kind}: {where}, steps {progress.step + 1} to {identity.last_step}, {shape.parameters} parameters, "
        f"{resolved['device']}, {several}micro-batch {resolved['micro_batch']}, {resolved['threads']} threads, "
        f"{identity.precision}; ready in {time.perf_counter() - started:.1f} s"
    )
    segment = Segment(
        spec=spec,
        processes=processes,
        execution=resolved,
        shape=shape,
        model=model,
        optimizer=optimizer,
        corpus=corpus,
        journal=journal,
        progress=progress,
        saved_step=found.step if found else None,
        peak_flops=executions.peak_flops(model.device),
    )
    _same_weights(segment)
    return segment


def _open_corpus(spec: Spec, model: LanguageModel, processes: Processes) -> Corpus:
    """The first process compares the shards' bytes and remembers it; the others then need not."""
    if processes.first:
        corpus = Corpus.open(spec.identity, spec.paths, model.vocabulary)
    processes.wait()
    if not processes.first:
        corpus = Corpus.open(spec.identity, spec.paths, model.vocabulary)
    return corpus


def _found(spec: Spec, say: Say, processes: Processes) -> Checkpoint | None:
    """The newest whole checkpoint, which the first process verifies for all."""
    root, lines = spec.paths.work / "checkpoints", spec.paths.work / "journal.jsonl"
    found = None
    if processes.first:
        found = checkpoints.newest_checkpoint(root, say, lambda mark: journal_holds(lines, mark))
    step = processes.tell(found.step if found else None)
    return found if processes.first or step is None else checkpoints.checkpoint_at(root, step)


def _same_weights(segment: Segment) -> None:
    """Raises ConfigError unless all processes hold the same weights and moments."""
    if segment.processes.count > 1:
        moments = optimizer_tensors(segment.model.whole, segment.optimizer)
        tensors = [*segment.model.whole.parameters(), *moments.values()]
        segment.processes.same(mark_of(tensors), f"At step {segment.progress.step} the weights")


def _begin(spec: Spec, model: LanguageModel, optimizer: torch.optim.AdamW) -> Progress:
    """At the segment's start: a fresh optimizer on an export's weights, or a trunk's state carried on."""
    identity, start = spec.identity, spec.paths.start
    if spec.paths.start_kind == "export":
        return Progress(step=identity.first_step, tokens=0)
    try:
        state = json.loads((start / checkpoints.STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{start}: not a trunk that training can go on from ({error}).") from error
    if state["step"] != identity.first_step:
        raise ConfigError(
            f"{start} is a trunk at step {state['step']}; identity.first_step is {identity.first_step}."
        )
    load_optimizer_tensors(model.whole, optimizer, checkpoints.load_tensors(start / checkpoints.OPTIMIZER))
    return Progress(step=state["step"], tokens=state["tokens"])


def _resume(
    found: Checkpoint, identity: Identity, model: LanguageModel, optimizer: torch.optim.AdamW
) -> Progress:
    checkpoints.check_identity(found.state["identity"], identity, found.path)
    checkpoints.load_model_tensors(model.whole, checkpoints.load_tensors(found.path / checkpoints.MODEL))
    load_optimizer_tensors(
        model.whole, optimizer, checkpoints.load_tensors(found.path / checkpoints.OPTIMIZER)
    )
    return Progress(**found.state["progress"])


def _steps(segment: Segment, stop: Callable[[], bool], say: Say) -> bool:
    """Step to the end. False: asked to stop, and a checkpoint holds all that was done."""
    execution, last = segment.spec.execution, segment.spec.identity.last_step
    saved_at = time.monotonic()
    while segment.progress.step < last:
        if segment.processes.any(stop()):
            _save(segment, say)
            say(f"stopping after step {segment.progress.step}; the same command goes on from there")
            return False
        _step(segment)
        if time.monotonic() - saved_at >= execution.checkpoint_every and segment.progress.step < last:
            _save(segment, say)
            saved_at = time.monotonic()
    _save(segment, say)
    return True


def _step(segment: Segment) -> None:
    """One update from one global batch, and its line in the journal."""
    started = time.perf_counter()
    identity, progress, optimizer = segment.spec.identity, segment.progress, segment.optimizer
    step = progress.step + 1
    processes = segment.processes
    torch.manual_seed(_seed(identity.seed, step, processes.rank))
    targets = segment.corpus.targets(step)
    losses: list[tuple[MicroBatch, Tensor]] = []
    share = processes.share(identity.sequences_per_step)
    for batch in segment.corpus.micro_batches(step, segment.execution["micro_batch"], share):
        losses.append((batch, _forward_backward(segment, batch, targets)))
    processes.add_up(segment.model.whole.parameters())
    squared, sums, counts = _of_the_batch(losses, len(segment.corpus.sources), processes)
    loss = float(sums.sum() / targets)
    clip = identity.optimizer.clip or math.inf
    norm = float(torch.nn.utils.clip_grad_norm_(segment.model.whole.parameters(), clip))
    rate = learning_rate(identity.schedule, step)
    skipped = not (math.isfinite(loss) and math.isfinite(norm))
    if not skipped:
        set_learning_rate(optimizer, rate)
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)

    before, progress.step = progress.tokens, step
    progress.tokens += targets
    progress.computed += targets
    progress.skipped += skipped
    progress.skipped_in_a_row = progress.skipped_in_a_row + 1 if skipped else 0
    progress.loss = progress.loss if skipped else loss
    row: dict[str, Any] = {"step": step, "tokens": progress.tokens, "loss": loss}
    for source, total, count in zip(segment.corpus.sources, sums, counts, strict=True):
        row[f"loss/{source}"] = float(total / count) if count else None
    row |= {"lr": rate, "grad_norm": norm, "skipped": skipped}
    if segment.journal:
        segment.journal.append(row | _clock(segment, targets, squared, time.perf_counter() - started))
    if progress.skipped_in_a_row >= BAD_STEPS_IN_A_ROW:
        _give_up(segment)
    _keep(segment, before)


def _forward_backward(segment: Segment, batch: MicroBatch, targets: int) -> Tensor:
    """Add the gradient of (sum of losses / `targets`) of one row; returns its losses [tokens], float32.

    The head and the loss run over chunks of tokens, backward at once, so that the logits of one chunk alone are
    ever held in float32; the body's backward follows with all chunks' gradients.
    """
    model, device = segment.model, segment.model.device
    wanted = batch.targets.to(device, non_blocking=True)
    with model.autocast():
        hidden = model.hidden(
            batch.inputs.to(device, non_blocking=True),
            batch.positions.to(device, non_blocking=True),
            Packing.of(batch.documents, device),
        )
    losses: list[Tensor] = []
    gradients: list[Tensor] = []
    chunk = segment.execution["loss_chunk"]
    for part, target in zip(torch.split(hidden.detach(), chunk), torch.split(wanted, chunk), strict=True):
        part.requires_grad_(True)
        with model.autocast():
            logits = model.head(part)
        loss = functional.cross_entropy(logits.float(), target, reduction="none")
        torch.autograd.backward(loss.sum() / targets)
        losses.append(loss.detach())
        assert part.grad is not None
        gradients.append(part.grad)
    torch.autograd.backward(hidden, torch.cat(gradients))
    return torch.cat(losses)


def _of_the_batch(
    losses: list[tuple[MicroBatch, Tensor]], sources: int, processes: Processes
) -> tuple[int, np.ndarray, np.ndarray]:
    """Of all processes' micro-batches: squared lengths of documents, and by source the losses and the targets."""
    sums, counts = _by_source(losses, sources)
    squared = sum(length * length for batch, _ in losses for length in batch.documents)
    if processes.count > 1:
        squared, *both = processes.total(np.concatenate([[squared], sums, counts])).tolist()
        sums, counts = np.array(both[:sources]), np.array(both[sources:], dtype=np.int64)
    return int(squared), sums, counts


def _by_source(losses: list[tuple[MicroBatch, Tensor]], sources: int) -> tuple[np.ndarray, np.ndarray]:
    """(sum of losses, number of targets), both [sources], summed in float64 on the host."""
    sums, counts = np.zeros(sources), np.zeros(sources, dtype=np.int64)
    for batch, values in losses:
        host = values.cpu().numpy().astype(np.float64)
        np.add.at(sums, batch.piece_sources, np.add.reduceat(host, batch.piece_starts))
        np.add.at(counts, batch.piece_sources, np.diff(batch.piece_starts, append=len(host)))
    return sums, counts


def _clock(segment: Segment, targets: int, squared: int, seconds: float) -> dict[str, Any]:
    flops = segment.shape.flops(targets, squared)
    device = segment.model.device
    cuda = device.type == "cuda"
    peak = segment.peak_flops * segment.processes.count if segment.peak_flops else None
    return {
        "seconds": seconds,
        "tokens_per_second": targets / seconds,
        "mfu": flops / seconds / peak if peak else None,
        "peak_memory": torch.cuda.max_memory_allocated(device)
        if cuda
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _save(segment: Segment, say: Say) -> None:
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
    checkpoints.save_checkpoint(root, model, optimizer_tensors(segment.model.whole, segment.optimizer), state)
    checkpoints.prune(root, segment.spec.execution.keep_last)
    segment.saved_step = step
    say(f"checkpoint at step {step} in {time.perf_counter() - started:.1f} s")


def _finish(segment: Segment) -> None:
    """Write what the segment leaves; result.json last."""
    identity, work, progress = segment.spec.identity, segment.spec.paths.work, segment.progress
    whole, eot = segment.model.whole, segment.corpus.eot
    if identity.makes_export:
        tokenizer = segment.spec.paths.tokenizer
        checkpoints.replace_directory(
            work, "export", lambda to: exports.write_export(to, whole, tokenizer, eot)
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


def _keep(segment: Segment, tokens_before: int) -> None:
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


def _write_trunk(segment: Segment, directory: Path) -> None:
    state = {"format": 1, "step": segment.progress.step, "tokens": segment.progress.tokens}
    optimizer = optimizer_tensors(segment.model.whole, segment.optimizer)
    exports.write_trunk(directory, segment.model.whole, optimizer, state, segment.corpus.eot)


def _give_up(segment: Segment) -> None:
    if segment.journal:
        segment.journal.mark()
    step, rate = segment.progress.step, learning_rate(segment.spec.identity.schedule, segment.progress.step)
    raise StageFailed(
        f"The loss or its gradient was not finite in {BAD_STEPS_IN_A_ROW} steps in a row, the last one {step} at the "
        f"rate {rate:.3g}. The weights were not changed by them; the newest checkpoint is of step "
        f"{segment.saved_step}. Lower training.learning_rate, or look at the documents of sequences "
        f"{(step - BAD_STEPS_IN_A_ROW) * segment.spec.identity.sequences_per_step} and on."
    )


def _seed(seed: int, step: int, rank: int = 0) -> int:
    """The seed of a step's random draws (dropout): so no random state outlives a step."""
    named = f"{seed}:{step}:{rank}" if rank else f"{seed}:{step}"
    return int.from_bytes(hashlib.sha256(named.encode()).digest()[:8], "big") >> 1


def _check_earlier_work(work: Path, identity: Identity) -> None:
    """The work directory belongs to the first specification that worked in it."""
    path = work / "identity.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        checkpoints.write_json(path, json.loads(identity.canonical))
        return
    checkpoints.check_identity(found, identity, work)


@contextmanager
def _alone(work: Path, stop: Callable[[], bool], say: Say) -> Iterator[bool]:
    """Hold the work directory: waits for a trainer that is still leaving it. False: asked to stop meanwhile."""
    work.mkdir(parents=True, exist_ok=True)
    with (work / "trainer.lock").open("w") as file:
        deadline = time.monotonic() + _LOCK_SECONDS
        said = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not said:
                    say(f"waiting for another trainer to leave {work}")
                    said = True
                if stop():
                    yield False
                    return
                if time.monotonic() > deadline:
                    raise StageFailed(
                        f"Another trainer is still at work in {work}. End it, then start again."
                    ) from None
                time.sleep(0.1)
        yield True
