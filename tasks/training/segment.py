"""Opens a segment of training: loads and checks everything before the first step, at the newest whole checkpoint.

What must stay true: weights, moments and position come exactly from the checkpoint. Everything else is a function
of the specification, the resolved execution and the step, so nothing else needs saving.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

import torch

from storage.code import project_digest
from storage.errors import ConfigError
from tasks.training.apart import carries_state
from tasks.training.combinations import of_stop, refuse
from tasks.training.data import Corpus
from tasks.training.device import execution as executions
from tasks.training.device.activations import counter
from tasks.training.feed import Feed, FixedSize
from tasks.training.heldout import Heldout
from tasks.training.model import LanguageModel, Shape, causal_class, load_model, read_config, shape_of
from tasks.training.process.overlap import Reduction
from tasks.training.process.processes import Processes
from tasks.training.process.sharding import FULL
from tasks.training.spec import Identity, Spec
from tasks.training.state import checkpoint as checkpoints
from tasks.training.state import export as exports
from tasks.training.state.average import AVERAGE, RunningSum
from tasks.training.state.checkpoint import Checkpoint
from tasks.training.state.climb import Climb
from tasks.training.state.journal import Journal, journal_holds
from tasks.training.state.recovery import Recovery, read_recovery
from tasks.training.state.stopping import LINES as STOP_LINES
from tasks.training.state.stopping import Stopping
from tasks.training.state.work import Say
from tasks.training.state.writer import Writer
from tasks.training.update.optimizer import load_optimizer_tensors, make_optimizer, optimizer_tensors
from tasks.training.update.pull import base_weights


@dataclass
class Progress:
    """Where the segment stands. `tokens`: targets the model has seen; `computed`: those of this segment alone."""

    step: int
    tokens: int
    computed: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    loss: float | None = None

    def count(self, targets: int, loss: float | None) -> None:
        """Count one more step with this many targets. `loss` is None if the step was skipped."""
        skipped = loss is None
        self.step += 1
        self.tokens += targets
        self.computed += targets
        self.skipped += skipped
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
        self.loss = self.loss if skipped else loss


@dataclass
class Segment:
    """Everything that a step needs. Only the first process has the journal and the checkpoint writer."""

    spec: Spec
    processes: Processes
    reduction: Reduction | None
    """Set if several processes each hold all weights."""
    execution: dict[str, Any]
    shape: Shape
    model: LanguageModel
    optimizer: torch.optim.Optimizer
    corpus: Corpus
    feed: Feed
    journal: Journal | None
    writer: Writer | None
    recovery: Recovery
    progress: Progress
    climb: Climb
    average: RunningSum
    heldout: Heldout | None
    """Only in the first process, and if its weights are whole."""
    stopping: Stopping | None
    """Only of a trunk that may end before its budget; in all processes the same."""
    stop_text: Heldout | None
    """What it is decided by. Only in the first process."""
    begun_step: int | None
    """The step of the newest checkpoint that was begun, known to all processes. `saved_step` is that of the newest
    durable one.
    """
    peak_flops: float | None

    @property
    def saved_step(self) -> int | None:
        """The step of the newest durable checkpoint, or None. Only the first process knows it."""
        return self.writer.durable_step if self.writer else None

    def close(self) -> None:
        """Release threads and files. A checkpoint under way is finished first."""
        self.feed.close()
        if self.writer:
            self.writer.close()
        if self.journal:
            self.journal.close()

    @property
    def sharded(self) -> bool:
        """Whether weights and moments are sharded over the processes."""
        return bool(self.execution["sharding"] == FULL)


def open_segment(spec: Spec, say: Say, processes: Processes) -> Segment:
    """Load and check everything before the first step, at the newest whole checkpoint or at the segment's start."""
    started = time.perf_counter()
    identity, paths, work = spec.identity, spec.paths, spec.paths.work
    if processes.count > 1:
        processes.same(f"{executions.versions()}, code {project_digest()[:12]}", "Versions or sources")
    exports.tokenizer_files(paths.tokenizer)
    config = read_config(paths.start, identity)
    shape = shape_of(config)
    resolved = executions.resolve(spec.execution, shape, identity, processes, count=counter(config, identity))
    if resolved["compile"] and not _can_be_compiled(config, identity, resolved["device"]):
        resolved |= {"compile": False, "fuse_products": False}
    found = _found(spec, say, processes)
    if processes.first:
        path = work / "execution.json"
        resolved = executions.settle(
            path,
            resolved,
            spec.execution,
            say,
            begun=found is not None,
            checkpoint=found.state["execution"] if found else None,
        )
    resolved = processes.tell(resolved)
    own = {**resolved, "device": processes.device(resolved["device"])}
    executions.apply(own, spec.execution.device_memory)
    model = load_model(paths.start, config, identity, own, processes)
    corpus = _open_corpus(spec, model, processes)
    optimizer = make_optimizer(model.whole, identity, base_weights(spec, model.whole))
    lines = work / "journal.jsonl"
    if found is None:
        progress = _begin(spec, model, optimizer, processes)
    else:
        progress = _resume(found, identity, model, optimizer, processes)
    journal = writer = None
    if processes.first:
        journal = Journal(lines, found.state["journal"] if found else None)
        step = found.step if found else None
        writer = Writer(work / "checkpoints", spec.execution.keep_last, step, say)
    before = Climb(shape.vocabulary, journal.losses) if journal else None
    climb = processes.tell(before.state() if before else None)
    groups = processes.tell(read_recovery(work).groups if processes.first else None)
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
        reduction=_reduction(resolved, model, processes),
        execution=resolved,
        shape=shape,
        model=model,
        optimizer=optimizer,
        corpus=corpus,
        feed=_feed(corpus, identity, resolved, model, processes),
        journal=journal,
        writer=writer,
        recovery=Recovery.of(groups),
        progress=progress,
        climb=Climb(shape.vocabulary).restored(climb),
        average=_sum_so_far(found, identity, model, processes),
        heldout=_heldout(spec, resolved, progress.step, processes),
        stopping=_stopping(identity, found, progress.tokens),
        stop_text=_stop_text(spec, resolved, -1 if found is None else progress.step, processes),
        begun_step=found.step if found else None,
        peak_flops=executions.peak_flops(model.device),
    )
    same_weights(segment)
    return segment


def _heldout(spec: Spec, resolved: dict[str, Any], step: int, processes: Processes) -> Heldout | None:
    if not processes.first or resolved["sharding"] == FULL:
        return None
    identity = spec.identity
    sequence = identity.sequence_length
    return Heldout.open(
        spec.paths.heldout,
        spec.paths.work,
        spec.execution.heldout_every_tokens,
        segment=(identity.last_step - identity.first_step) * identity.sequences_per_step * sequence,
        step=step,
        most=resolved["micro_batch"] * sequence,
    )


def _stopping(identity: Identity, found: Checkpoint | None, tokens: int) -> Stopping | None:
    if identity.stop is None:
        return None
    if found is None:
        return Stopping.begun(identity.stop, tokens)
    return Stopping.restored(identity.stop, found.state["stopping"])


def _stop_text(spec: Spec, resolved: dict[str, Any], step: int, processes: Processes) -> Heldout | None:
    rule = spec.identity.stop
    if rule is None:
        return None
    refuse(of_stop("wsd", resolved["sharding"]))
    if not processes.first:
        return None
    found = Heldout.open(
        spec.paths.stop_text,
        spec.paths.work,
        rule.every_tokens,
        segment=rule.every_tokens,
        step=step,
        most=resolved["micro_batch"] * spec.identity.sequence_length,
        lines=STOP_LINES,
    )
    if found is None:
        raise ConfigError(f"training.stop.source: {rule.source} has no held-out text to be measured on")
    return found


def _can_be_compiled(config: Any, identity: Identity, device: str) -> bool:
    """Whether the documents of a row leave no trace in a graph: a model with state has rows of all sizes, and on a CPU
    attention with a window depends on lengths."""
    if carries_state(causal_class(config), config):
        return False
    window = getattr(config, "sliding_window", None)
    windowed = isinstance(window, int) and window < identity.sequence_length
    kinds = getattr(config, "layer_types", None)
    return not (device == "cpu" and windowed and (kinds is None or "sliding_attention" in kinds))


def same_weights(segment: Segment) -> None:
    """Raise ConfigError unless all processes hold the same weights and moments. Shards are not compared."""
    if segment.processes.count > 1:
        moments = optimizer_tensors(segment.model.whole, segment.optimizer)
        tensors = (*segment.model.whole.parameters(), *moments.values())
        segment.processes.same_tensors(tensors, f"At step {segment.progress.step} the weights")


def _open_corpus(spec: Spec, model: LanguageModel, processes: Processes) -> Corpus:
    """The first process verifies the shards' bytes and records it, so the others need not."""
    if processes.first:
        corpus = Corpus.open(spec.identity, spec.paths, model.vocabulary)
    processes.wait()
    if not processes.first:
        corpus = Corpus.open(spec.identity, spec.paths, model.vocabulary)
    return corpus


def _sum_so_far(
    found: Checkpoint | None, identity: Identity, model: LanguageModel, processes: Processes
) -> RunningSum:
    """The sum of the weights whose mean becomes the export. Only the first process has it."""
    average = RunningSum(identity)
    if average.kept and found is not None and processes.first:
        sums = checkpoints.load_tensors(found.path / AVERAGE)
        average.restore(sums, found.step, checkpoints.model_tensors(model.whole))
    return average


def _reduction(resolved: dict[str, Any], model: LanguageModel, processes: Processes) -> Reduction | None:
    if processes.count == 1 or resolved["sharding"] == FULL:
        return None
    return Reduction(model.whole, model.whole.base_model, processes)


def _feed(
    corpus: Corpus, identity: Identity, resolved: dict[str, Any], model: LanguageModel, processes: Processes
) -> Feed:
    """The rows of this process's share; all of one size if the model is compiled."""
    sequences = resolved["micro_batch"]
    fixed = None
    if resolved["compile"]:
        most = corpus.most_documents(identity.first_step, identity.last_step, sequences)
        fixed = FixedSize(identity.sequence_length, most)
    return Feed(
        corpus,
        model.device,
        micro_batch=sequences,
        share=processes.share(identity.sequences_per_step),
        last_step=identity.last_step,
        fixed=fixed,
    )


def _found(spec: Spec, say: Say, processes: Processes) -> Checkpoint | None:
    """The newest whole checkpoint. The first process verifies it for all."""
    root, lines = spec.paths.work / "checkpoints", spec.paths.work / "journal.jsonl"
    found = None
    if processes.first:
        found = checkpoints.newest_checkpoint(root, say, lambda mark: journal_holds(lines, mark))
    step = processes.tell(found.step if found else None)
    return found if processes.first or step is None else checkpoints.checkpoint_at(root, step)


def _begin(
    spec: Spec, model: LanguageModel, optimizer: torch.optim.Optimizer, processes: Processes
) -> Progress:
    """The state at the segment's start: an export's weights with a fresh optimizer, or the state of a trunk."""
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
    moments = checkpoints.load_tensors(start / checkpoints.OPTIMIZER)
    processes.same_tensors(moments.values(), "The moments that training starts from")
    load_optimizer_tensors(model.whole, optimizer, moments)
    return Progress(step=state["step"], tokens=state["tokens"])


def _resume(
    found: Checkpoint,
    identity: Identity,
    model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    processes: Processes,
) -> Progress:
    checkpoints.check_identity(found.state["identity"], identity, found.path)
    weights = checkpoints.load_tensors(found.path / checkpoints.MODEL)
    processes.same_tensors(weights.values(), f"At step {found.step} the checkpoint's weights")
    checkpoints.load_model_tensors(model.whole, weights)
    del weights  # the host holds only one of the two files at a time
    moments = checkpoints.load_tensors(found.path / checkpoints.OPTIMIZER)
    processes.same_tensors(moments.values(), f"At step {found.step} the checkpoint's moments")
    load_optimizer_tensors(model.whole, optimizer, moments)
    return Progress(**found.state["progress"])
