"""The message when a run ends early: what failed and why, what is kept, what repeats, and how to continue.

It is the message of the flow run's state in Prefect, of the JSON summary, and the last output of the command line, so it
holds no traceback and no secret. Finished work is in the store; continuing costs only what is listed under `Repeats`.

Where the same again would fail in the same way, the message asks for the change first, and names no retry.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.dag.call import Call
from flows.machine.environment import command_line
from flows.runs.attempt import Summary
from storage.errors import ConfigError, OnwardError, said
from storage.secrets import without_secrets
from storage.store import Store
from tasks import stages
from tasks.models.progress import newest_checkpoint, tokens_at

_STAYS = {
    errno.EACCES,
    errno.EEXIST,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOSPC,
    errno.ENOTDIR,
    errno.EDQUOT,
    errno.EPERM,
    errno.EROFS,
}
"""Errors of the system that stay until somebody puts something right: a right, a path, a full disk."""


class RunFailed(OnwardError):
    """A run that could not finish. The text is complete. `summary` is the attempt's result, if it had begun."""

    summary: Summary | None = None


class RunRefused(RunFailed, ConfigError):
    """A run that was refused because its configuration cannot be run. The text is complete."""


@dataclass(frozen=True)
class Ways:
    """How a run is continued: `again` as it is, `changed` with another configuration."""

    again: str
    changed: str


def run_failed(error: Exception, store: Store, calls: Sequence[Call], ways: Ways) -> RunFailed:
    """The account of an error that ends a run. `calls` are the stages of the attempt."""
    kind = RunRefused if isinstance(error, ConfigError) else RunFailed
    failed = next((call for call in reversed(calls) if call.error is error), None)
    head = f"{failed.label} failed: {said(error)}" if failed else said(error)
    return kind("\n".join([without_secrets(head), *standing(store, calls), advice(error, ways)]))


def advice(error: Exception, ways: Ways) -> str:
    """The line that says how to continue after this error."""
    if isinstance(error, OSError) and error.errno in _STAYS:
        return f"The same fails again until this is put right. Then: {ways.again}"
    if isinstance(error, OSError | MemoryError) or (isinstance(error, OnwardError) and error.passing):
        return f"To go on: {ways.again}"
    if isinstance(error, OnwardError) and error.passing is False:
        return f"The same fails again in the same way. Change what is said above, then: {ways.changed}"
    return f"Onward does not know this error, and it may come again. To go on: {ways.again}"


def standing(store: Store, calls: Sequence[Call]) -> list[str]:
    """What is kept and what repeats, one line each."""
    if not calls:
        return ["Nothing was begun."]
    finished = [call for call in calls if call.state in ("built", "cached")]
    made = sum(call.state == "built" for call in finished)
    kept = [f"{len(finished)} finished stages ({made} made in this attempt)"] if finished else []
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
    return [
        f"Kept: {'; '.join(kept) or 'nothing, because nothing was finished yet'}.",
        f"Repeats: {', '.join(repeats)}.",
    ]


def _shards(work: Path) -> int:
    return sum(1 for _ in work.glob("**/.shard.json"))


def ways_to_go_on(page: str | None, deployed: bool) -> Ways:
    """How to continue: in Prefect for a deployed run, by the exact command for one started in a terminal.

    `page` is the run's address for browsers.
    """
    if deployed:
        where = f" ({page})" if page else ""
        return Ways(
            f"the button Retry on this run's page in Prefect{where}",
            "start a new run of its deployment; what is finished is found in the store",
        )
    command = command_line()
    return Ways(command, command)
