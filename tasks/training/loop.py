"""One segment of training from start to end: open, resume, step, checkpoint, finish.

What must stay true: the clock decides only when to checkpoint. With several processes (process/processes.py), each
one runs this code on its share of every batch, and only the first writes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext

from storage.errors import StageFailed
from tasks.training.device.out_of_memory import go_smaller, is_out_of_memory, let_go
from tasks.training.outputs import collect, finish, keep, keep_best, save
from tasks.training.process.processes import ALONE, Processes
from tasks.training.process.restart import LostOthers
from tasks.training.segment import Segment, open_segment, same_weights
from tasks.training.spec import Spec
from tasks.training.state import checkpoint as checkpoints
from tasks.training.state.climb import WINDOW
from tasks.training.state.heldout import PREFIX
from tasks.training.state.recovery import BAD_STEPS_IN_A_ROW, MOST_ROLLBACKS, record
from tasks.training.state.stopping import BEST
from tasks.training.state.work import Say, check_earlier_work, distrust_damaged_work, held_alone
from tasks.training.step import pass_over, take_step
from tasks.training.update.schedule import learning_rate

DONE, RESUMABLE = 0, 75
"""Exit codes; a failure is 1."""


def train(spec: Spec, stop: Callable[[], bool], say: Say, processes: Processes = ALONE) -> int:
    """Run the segment to its end (DONE), or until `stop` is true after a step (RESUMABLE).

    It may be called again in the same work directory, however the last call ended. Raises OnwardError.
    """
    with held_alone(spec.paths.work, stop, say) if processes.first else nullcontext(True) as alone:
        left = processes.tell(_what_is_left(spec, alone, say) if processes.first else None)
        code = None if left is None else int(left)
        while code is None:
            code = _from_the_newest_checkpoint(spec, stop, say, processes)
        return code


def _what_is_left(spec: Spec, alone: bool, say: Say) -> int | None:
    """The exit code if there is nothing to do, else None."""
    work = spec.paths.work
    if not alone:
        return RESUMABLE
    check_earlier_work(work, spec.identity, say)
    if (work / "result.json").exists():
        say(f"finished before: {work / 'result.json'}")
        return DONE
    checkpoints.clean(work / "checkpoints")
    checkpoints.clean(work)
    checkpoints.clean(work / BEST)
    distrust_damaged_work(work, say)
    return None


def _from_the_newest_checkpoint(
    spec: Spec, stop: Callable[[], bool], say: Say, processes: Processes
) -> int | None:
    """The exit code. None: call it again, because the record of bad steps or execution.json has changed."""
    segment = _opened(spec, say, processes)
    try:
        code = _steps(segment, stop, say)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        _with_less_memory(segment, error, say)
        code = None
    finally:
        segment.close()
    if code == DONE:
        same_weights(segment)
        finish(segment)
        say(f"done at step {segment.progress.step}, {segment.progress.tokens} tokens seen")
    if code is None:
        compiled = bool(segment.execution["compile"])
        del segment
        let_go(compiled)
    else:
        processes.wait()
    return code


def _opened(spec: Spec, say: Say, processes: Processes) -> Segment:
    try:
        return open_segment(spec, say, processes)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise StageFailed(
            f"Out of memory before the first step ({error}): the model and its optimizer's state do not fit, whatever the "
            "micro-batch. Choose a smaller model, training.optimizer.states: 8bit, or a device with "
            "more memory."
        ) from error


def _steps(segment: Segment, stop: Callable[[], bool], say: Say) -> int | None:
    """Step to the end, or until asked to stop; either way everything done is durable on return. None: open the
    segment again.
    """
    execution, last = segment.spec.execution, segment.spec.identity.last_step
    progress, writer = segment.progress, segment.writer
    saved_at = time.monotonic()
    warned = segment.climb.risen
    if segment.heldout and not progress.tokens and not segment.heldout.begun:
        _measure(segment)
    if segment.stopping and segment.begun_step is None:
        _judge(segment, counts=segment.stopping.rule.lowest is None)
    while progress.step < last and not (segment.stopping and segment.stopping.over):
        if writer:
            writer.check()
        if segment.climb.diverged:
            _end_diverged(segment)
        if stopped := segment.processes.any(stop()):
            break
        tokens = progress.tokens
        recorded = segment.recovery.row(progress.step + 1)
        if recorded is not None:
            pass_over(segment, recorded)
        else:
            take_step(segment)
            if progress.skipped_in_a_row and progress.skipped_in_a_row % BAD_STEPS_IN_A_ROW == 0:
                _go_back(segment, say)
                return None
            segment.climb.add(None if progress.skipped_in_a_row else progress.loss)
            if segment.climb.risen and not warned:
                warned = True
                say(
                    f"warning: at step {progress.step} the loss of the last steps is {segment.climb.level:.3g}, and was "
                    f"{segment.climb.lowest:.3g} (guessing: {segment.climb.guessing:.3g}); the rate may be too high"
                )
        collect(segment)
        keep(segment, tokens)
        if segment.heldout and (segment.heldout.due(tokens, progress.tokens) or progress.step == last):
            _measure(segment)
        if segment.stopping and segment.stopping.due(tokens, progress.tokens):
            _judge(segment)
        due = time.monotonic() - saved_at >= execution.checkpoint_every
        if segment.sharded:  # all save together, so all must decide alike
            due = segment.processes.any(due)
        if due and progress.step < last:
            save(segment)
            saved_at = time.monotonic()
    else:
        stopped = False
        if progress.skipped_in_a_row >= BAD_STEPS_IN_A_ROW:  # no good step has followed
            _give_up(segment)
        if segment.climb.diverged:
            _end_diverged(segment)
    save(segment)
    if writer:
        writer.wait()
    if not stopped and segment.stopping and segment.stopping.over:
        say(f"stopped by rule at step {progress.step}: {segment.stopping.facts['stopped']}")
    if stopped:
        say(f"stopping after step {progress.step}; the same command goes on from there")
    return RESUMABLE if stopped else DONE


def _measure(segment: Segment) -> None:
    """The loss on held-out text with the weights of now."""
    progress = segment.progress
    assert segment.heldout is not None
    segment.heldout.measure(segment.model, progress.step, progress.tokens, segment.execution["loss_chunk"])


def _judge(segment: Segment, *, counts: bool = True) -> None:
    """Measure what the rule for stopping asks for, and keep the state if it is the lowest. Called by all processes.

    The first step of a later trunk does not count: it lies where the budgets are, not where the rule measures.
    """
    stopping, progress, loss = segment.stopping, segment.progress, None
    assert stopping is not None
    if segment.stop_text:
        line = segment.stop_text.measure(
            segment.model, progress.step, progress.tokens, segment.execution["loss_chunk"]
        )
        loss = line[f"{PREFIX}{stopping.rule.source}"]
    if stopping.add(segment.processes.tell(loss), progress.step, progress.tokens, counts=counts):
        keep_best(segment)


def _go_back(segment: Segment, say: Say) -> None:
    """Record the last steps as never to be computed again. Raises StageFailed if going back has not helped before."""
    progress, recovery = segment.progress, segment.recovery
    if progress.skipped_in_a_row > BAD_STEPS_IN_A_ROW or recovery.rollbacks >= MOST_ROLLBACKS:
        _give_up(segment)
    if segment.journal:
        record(segment.spec.paths.work, recovery, segment.journal.recent)
    say(
        f"warning: the loss or its gradient was not finite in steps {progress.step - BAD_STEPS_IN_A_ROW + 1} to "
        f"{progress.step}; training goes back to the newest checkpoint and passes them over from now on"
    )


def _give_up(segment: Segment) -> None:
    if segment.journal:
        segment.journal.mark()
        segment.journal.sync()
    step, again = segment.progress.step, segment.recovery.rollbacks
    rate = learning_rate(segment.spec.identity.schedule, step)
    first = (step - BAD_STEPS_IN_A_ROW) * segment.spec.identity.sequences_per_step
    raise StageFailed(
        f"The loss or its gradient was not finite in {BAD_STEPS_IN_A_ROW} steps in a row, the last one {step} at the rate "
        f"{rate:.3g}, after training had gone back to a checkpoint {again} time{'s' if again > 1 else ''} and skipped such "
        "steps. They changed no weights. Lower "
        f"training.learning_rate, or look at the documents from sequence {first} on."
    )


def _end_diverged(segment: Segment) -> None:
    """Keep a checkpoint of this step and raise StageFailed. The next start ends here too, without a step."""
    step, climb = segment.progress.step, segment.climb
    save(segment)
    if segment.writer:
        segment.writer.wait()
    rate = learning_rate(segment.spec.identity.schedule, max(step, 1))
    raise StageFailed(
        f"Training diverged: the loss was {climb.lowest:.3g} and is {climb.level:.3g} nats per token, worse than guessing "
        f"({climb.guessing:.3g}) in each of the last {WINDOW} steps up to step {step}, at the rate {rate:.3g}. "
        "Lower training.learning_rate, or raise training.schedule.warmup_tokens."
    )


def _with_less_memory(segment: Segment, error: Exception, say: Say) -> None:
    """Make the next attempt need less memory. With several processes, the one that ran out leaves and all are
    restarted.
    """
    path, step = segment.spec.paths.work / "execution.json", segment.progress.step + 1
    checkpointed = bool(getattr(segment.model.whole, "supports_gradient_checkpointing", False))
    told = go_smaller(path, segment.execution, step, error, checkpointed=checkpointed)
    if segment.processes.count > 1:
        raise LostOthers(f"In process {segment.processes.rank}: {told}") from error
    say(f"warning: {told}")
