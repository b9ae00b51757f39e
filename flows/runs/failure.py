"""The message when a run ends early: what failed and why, what is kept, what repeats, and how to continue.

It is the message of the flow run's state in Prefect and the last output of the command line, so it holds no traceback
and no secret. Finished work is in the store; continuing costs only what is listed under `Repeats`.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from flows.dag.call import Call
from flows.runs.attempt import Summary
from storage.errors import ConfigError, OnwardError, said
from storage.secrets import without_secrets
from storage.store import Store
from tasks import stages
from tasks.models.progress import newest_checkpoint, tokens_at


class RunFailed(OnwardError):
    """A run that could not finish. The text is complete. `summary` is the attempt's result, if it had begun."""

    summary: Summary | None = None


class RunRefused(RunFailed, ConfigError):
    """A run that was refused because its configuration cannot be run. The text is complete."""


def run_failed(error: Exception, store: Store, calls: Sequence[Call], to_go_on: str) -> RunFailed:
    """The account of an error that ends a run. `calls` are the stages of the attempt."""
    kind = RunRefused if isinstance(error, ConfigError) else RunFailed
    failed = next((call for call in reversed(calls) if call.error is error), None)
    head = f"{failed.label} failed: {said(error)}" if failed else said(error)
    if kind is RunRefused and not calls:
        return kind(f"{without_secrets(head)}\nNothing was begun. Put it right, and start the run again.")
    return kind("\n".join([without_secrets(head), *standing(store, calls), f"To go on: {to_go_on}"]))


def standing(store: Store, calls: Sequence[Call]) -> list[str]:
    """What is kept and what repeats, one line each."""
    finished = [call for call in calls if call.state in ("built", "cached")]
    made = sum(call.state == "built" for call in finished)
    kept = [
        f"{len(finished)} finished stages ({made} made in this attempt)"
        if finished
        else "no stage is finished yet"
    ]
    repeats = []
    for call in calls:
        if call.state not in ("failed", "running"):
            continue
        work = store.work_of(call.request.stage, call.request.key)
        checkpoint = newest_checkpoint(work)
        if checkpoint is not None:
            tokens = tokens_at(work / "journal.jsonl", checkpoint.step)
            seen = f" ({tokens:,} tokens seen)" if tokens is not None else ""
            kept.append(f"a checkpoint of {call.name} at step {checkpoint.step:,}{seen}")
            repeats.append(f"{call.name} from step {checkpoint.step:,} on")
        elif call.request.stage not in stages.TRAINING and (shards := _shards(work)):
            kept.append(f"{shards} finished shards of {call.name}")
            repeats.append(f"{call.name} without those")
        else:
            repeats.append(f"{call.name} from its start")
    repeats.append("then what was not begun")
    return [f"Kept: {'; '.join(kept)}.", f"Repeats: {', '.join(repeats)}."]


def _shards(work: Path) -> int:
    return sum(1 for _ in work.glob("**/.shard.json"))


def how_to_go_on(flow_run: str | None, deployed: bool) -> str:
    """How to continue: a retry for a deployed run, the exact command for one started in a terminal."""
    if deployed and flow_run:
        return f"Retry this run in Prefect, or: prefect flow-run retry {flow_run}"
    if Path(sys.argv[0]).stem in ("onward", "cli") and len(sys.argv) > 1:
        return without_secrets(shlex.join(["onward", *sys.argv[1:]]))
    return "run the same again"
