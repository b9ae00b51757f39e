"""One segment of training, from top to bottom: open, resume, step, checkpoint, finish.

What must stay true: nothing here looks at the clock but to decide when to checkpoint. Of several processes
(processes.py) each steps through this with its share of every batch; the first alone writes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext

from storage.errors import StageFailed
from tasks.training import checkpoint as checkpoints
from tasks.training.config import Spec
from tasks.training.outputs import collect, finish, keep, save
from tasks.training.processes import ALONE, Processes
from tasks.training.schedule import learning_rate
from tasks.training.segment import Segment, open_segment, same_weights
from tasks.training.step import take_step
from tasks.training.work import Say, check_earlier_work, held_alone

DONE, RESUMABLE = 0, 75
"""Exit codes; a failure is 1."""
BAD_STEPS_IN_A_ROW = 5
"""Skipped steps after which training stops."""


def train(spec: Spec, stop: Callable[[], bool], say: Say, processes: Processes = ALONE) -> int:
    """Run the segment to its end (DONE), or until `stop` is true after a step (RESUMABLE).

    May be called again in the same work directory whatever happened to the call before. Raises OnwardError.
    """
    work = spec.paths.work
    with held_alone(work, stop, say) if processes.first else nullcontext(True) as alone:
        code = processes.tell(_what_is_left(spec, alone, say) if processes.first else None)
        if code is not None:
            return int(code)
        segment = open_segment(spec, say, processes)
        try:
            if not _steps(segment, stop, say):
                processes.wait()
                return RESUMABLE
        finally:
            if segment.journal:
                segment.journal.close()
        same_weights(segment)
        if processes.first:
            finish(segment)
        processes.wait()
        say(f"done at step {segment.progress.step}, {segment.progress.tokens} tokens seen")
        return DONE


def _what_is_left(spec: Spec, alone: bool, say: Say) -> int | None:
    """The code to leave with at once, or None where there is work to do."""
    work = spec.paths.work
    if not alone:
        return RESUMABLE
    check_earlier_work(work, spec.identity)
    if (work / "result.json").exists():
        say(f"finished before: {work / 'result.json'}")
        return DONE
    checkpoints.clean(work / "checkpoints")
    checkpoints.clean(work)
    return None


def _steps(segment: Segment, stop: Callable[[], bool], say: Say) -> bool:
    """Step to the end. False: asked to stop, and a checkpoint holds all that was done."""
    execution, last = segment.spec.execution, segment.spec.identity.last_step
    saved_at = time.monotonic()
    while segment.progress.step < last:
        if segment.processes.any(stop()):
            save(segment, say)
            say(f"stopping after step {segment.progress.step}; the same command goes on from there")
            return False
        tokens = segment.progress.tokens
        take_step(segment)
        if segment.progress.skipped_in_a_row >= BAD_STEPS_IN_A_ROW:
            _give_up(segment)
        collect(segment)
        keep(segment, tokens)
        if time.monotonic() - saved_at >= execution.checkpoint_every and segment.progress.step < last:
            save(segment, say)
            saved_at = time.monotonic()
    save(segment, say)
    return True


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
