"""A segment of training, opened: everything loaded and checked before the first step, at the newest whole checkpoint.

What must stay true: weights, moments and position come exactly from the checkpoint, everything else is a function of
the specification, the resolved execution and the step. So nothing else needs saving.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

import torch

from storage.code import project_digest
from storage.errors import ConfigError
from tasks.training import checkpoint as checkpoints
from tasks.training import execution as executions
from tasks.training import export as exports
from tasks.training.activations import counter
from tasks.training.average import AVERAGE, RunningSum
from tasks.training.checkpoint import Checkpoint
from tasks.training.config import Identity, Spec
from tasks.training.data import Corpus
from tasks.training.journal import Journal, journal_holds
from tasks.training.model import LanguageModel, Shape, load_model, read_config, shape_of
from tasks.training.optimizer import load_optimizer_tensors, make_optimizer, optimizer_tensors
from tasks.training.processes import Processes, mark_of
from tasks.training.pull import base_weights
from tasks.training.work import Say


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
    optimizer: torch.optim.Optimizer
    corpus: Corpus
    journal: Journal | None
    progress: Progress
    average: RunningSum
    saved_step: int | None
    peak_flops: float | None


def open_segment(spec: Spec, say: Say, processes: Processes) -> Segment:
    """Load everything, checked before the first step, at the newest whole checkpoint or at the start."""
    started = time.perf_counter()
    identity, paths, work = spec.identity, spec.paths, spec.paths.work
    if processes.count > 1:
        processes.same(f"{executions.versions()}, code {project_digest()[:12]}", "Versions or sources")
    exports.tokenizer_files(paths.tokenizer)
    config = read_config(paths.start, identity)
    shape = shape_of(config)
    resolved = executions.resolve(spec.execution, shape, identity, processes, count=counter(config, identity))
    if processes.first:
        resolved = executions.settle(work / "execution.json", resolved, spec.execution, say)
    resolved = processes.tell(resolved)
    own = {**resolved, "device": processes.device(resolved["device"])}
    executions.apply(own)
    model = load_model(paths.start, config, identity, own)
    corpus = _open_corpus(spec, model, processes)
    optimizer = make_optimizer(model.whole, identity, base_weights(spec, model.whole))
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
        average=_sum_so_far(found, identity, model, processes),
        saved_step=found.step if found else None,
        peak_flops=executions.peak_flops(model.device),
    )
    same_weights(segment)
    return segment


def same_weights(segment: Segment) -> None:
    """Raises ConfigError unless all processes hold the same weights and moments."""
    if segment.processes.count > 1:
        moments = optimizer_tensors(segment.model.whole, segment.optimizer)
        tensors = [*segment.model.whole.parameters(), *moments.values()]
        segment.processes.same(mark_of(tensors), f"At step {segment.progress.step} the weights")


def _open_corpus(spec: Spec, model: LanguageModel, processes: Processes) -> Corpus:
    """The first process compares the shards' bytes and remembers it; the others then need not."""
    if processes.first:
        corpus = Corpus.open(spec.identity, spec.paths, model.vocabulary)
    processes.wait()
    if not processes.first:
        corpus = Corpus.open(spec.identity, spec.paths, model.vocabulary)
    return corpus


def _sum_so_far(
    found: Checkpoint | None, identity: Identity, model: LanguageModel, processes: Processes
) -> RunningSum:
    """Of the weights whose mean the export is to be; the first process alone has it."""
    average = RunningSum(identity)
    if average.kept and found is not None and processes.first:
        sums = checkpoints.load_tensors(found.path / AVERAGE)
        average.restore(sums, found.step, checkpoints.model_tensors(model.whole))
    return average


def _found(spec: Spec, say: Say, processes: Processes) -> Checkpoint | None:
    """The newest whole checkpoint, which the first process verifies for all."""
    root, lines = spec.paths.work / "checkpoints", spec.paths.work / "journal.jsonl"
    found = None
    if processes.first:
        found = checkpoints.newest_checkpoint(root, say, lambda mark: journal_holds(lines, mark))
    step = processes.tell(found.step if found else None)
    return found if processes.first or step is None else checkpoints.checkpoint_at(root, step)


def _begin(spec: Spec, model: LanguageModel, optimizer: torch.optim.Optimizer) -> Progress:
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
    found: Checkpoint, identity: Identity, model: LanguageModel, optimizer: torch.optim.Optimizer
) -> Progress:
    checkpoints.check_identity(found.state["identity"], identity, found.path)
    checkpoints.load_model_tensors(model.whole, checkpoints.load_tensors(found.path / checkpoints.MODEL))
    load_optimizer_tensors(
        model.whole, optimizer, checkpoints.load_tensors(found.path / checkpoints.OPTIMIZER)
    )
    return Progress(**found.state["progress"])
