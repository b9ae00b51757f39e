"""The account of a run that ends early: why, what is kept, what repeats, and how to continue.

Its message is that of the flow run's state in Prefect, of the JSON summary, and the last output of the command line, so it
holds no traceback and no secret. Its page is the first of the flow run's artifacts, and heads the run's page in MLflow.
Finished work is in the store; continuing costs only what is listed under `Repeats`.

Where the same again would fail in the same way, the message asks for the change first, and names no retry.
"""

from __future__ import annotations

import errno
import re
import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.dag.call import Call
from flows.machine.environment import command_line
from storage.errors import OnwardError, said
from storage.runs import RunRecord
from storage.secrets import without_secrets
from storage.store import Store
from storage.store_places import WORK
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
LOST = "The process of this run is gone: it was killed, or the machine was restarted."
_NOTHING_BEGUN = "Nothing was begun."
_NOTHING_KEPT = "nothing, because nothing was finished yet"


@dataclass(frozen=True)
class Ways:
    """How a run is continued: `again` as it is, `changed` with another configuration."""

    again: str
    changed: str
    command: str | None = None
    """`again`, where it is a command."""


@dataclass(frozen=True)
class Standing:
    """What is kept of a run, and what repeats when it goes on."""

    begun: bool
    kept: tuple[str, ...] = ()
    repeats: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """One line each."""
        if not self.begun:
            return [_NOTHING_BEGUN]
        return [f"Kept: {'; '.join(self.kept) or _NOTHING_KEPT}.", f"Repeats: {', '.join(self.repeats)}."]


@dataclass(frozen=True)
class Ending:
    """A run that ended early. `state`: `failed`, `cancelled`, `interrupted` or `crashed`."""

    state: str
    cause: str
    standing: Standing
    help: str
    """How to go on: a sentence with the button or the command."""
    command: str | None = None
    """The command of that sentence."""

    @property
    def message(self) -> str:
        """All of it, a line each."""
        return "\n".join([self.cause, *self.standing.lines(), self.help])

    @property
    def title(self) -> str:
        """Its state with the first line of the cause, for a list."""
        return f"{self.state.capitalize()}: {self.cause.splitlines()[0] if self.cause else ''}"[:300]

    @property
    def page(self) -> str:
        """All of it, as Markdown."""
        parts = [
            f"## {self.state.capitalize()}",
            "  \n".join(_plain(line) for line in self.cause.splitlines()),
        ]
        if self.standing.begun:
            parts += [_list("What is kept", self.standing.kept or (_NOTHING_KEPT,))]
            parts += [_list("What will repeat", self.standing.repeats)]
        else:
            parts += [_NOTHING_BEGUN]
        told, code = _plain(self.help), ""
        if self.command and self.help.endswith(self.command):
            told, code = _plain(self.help.removesuffix(self.command).rstrip()), f"```\n{self.command}\n```"
        return "\n\n".join(part for part in (*parts, f"**What helps**\n\n{told}", code) if part) + "\n"


def _list(title: str, items: Sequence[str]) -> str:
    return "\n".join([f"**{title}**", "", *(f"- {_plain(item)}" for item in items)])


def _plain(text: str) -> str:
    """The text in Markdown, which takes `<` for HTML, and `*` and `_` for emphasis."""
    return re.sub(r"([\\`*_<>\[\]#|])", r"\\\1", text)


def ending_of(error: BaseException, store: Store, calls: Sequence[Call], ways: Ways) -> Ending:
    """The account of an error that ends a run; of a `BaseException` that is no `Exception`, an interruption.

    `calls` are the stages of the attempt.
    """
    kept = standing(store, calls)
    if not isinstance(error, Exception):
        return Ending("interrupted", _asked(error), kept, f"To go on: {ways.again}", ways.command)
    failed = next((call for call in reversed(calls) if call.error is error), None)
    head = f"{failed.label} failed: {said(error)}" if failed else said(error)
    return Ending("failed", without_secrets(head), kept, advice(error, ways), ways.command)


def _asked(error: BaseException) -> str:
    """Who ended the run: Prefect's signal has the number."""
    number = signal.SIGINT if isinstance(error, KeyboardInterrupt) else getattr(error, "signal", None)
    by = (
        " by Ctrl-C"
        if number == signal.SIGINT
        else " by a request to end"
        if number == signal.SIGTERM
        else ""
    )
    return f"The run was stopped{by}."


def advice(error: Exception, ways: Ways) -> str:
    """The line that says how to continue after this error."""
    if isinstance(error, OSError) and error.errno in _STAYS:
        return f"The same fails again until this is put right. Then: {ways.again}"
    if isinstance(error, OSError | MemoryError) or (isinstance(error, OnwardError) and error.passing):
        return f"To go on: {ways.again}"
    if isinstance(error, OnwardError) and error.passing is False:
        return f"The same fails again in the same way. Change what is said above, then: {ways.changed}"
    return f"Onward does not know this error, and it may come again. To go on: {ways.again}"


def standing(store: Store, calls: Sequence[Call]) -> Standing:
    """What is kept of these stages, and what repeats."""
    if not calls:
        return Standing(False)
    finished = [call for call in calls if call.state in ("built", "cached")]
    made = sum(call.state == "built" for call in finished)
    kept = [f"{len(finished)} finished stages ({made} made in this attempt)"] if finished else []
    half_made = [
        (call.request.stage, call.name, store.work_of(call.request.stage, call.request.key))
        for call in calls
        if call.state in ("failed", "running")
    ]
    return _standing(kept, half_made)


def standing_in(store: Store, record: RunRecord) -> Standing:
    """What is kept of a run whose process is gone, by its record, and by what lies half-made in its store."""
    kept = [f"{len(record.artifacts)} finished stages"] if record.artifacts else []
    half_made = [
        (stage, f"{stage} · {key[:6]}", work)
        for work in sorted((store.root / ".work").glob("*"))
        if WORK.fullmatch(work.name) and work.is_dir()
        for stage, _, key in [work.name.rpartition("-")]
    ]
    return _standing(kept, half_made)


def _standing(kept: list[str], half_made: Iterable[tuple[str, str, Path]]) -> Standing:
    """`half_made`: stage, name and work directory of what was at work."""
    repeats = []
    for stage, name, work in half_made:
        checkpoint = newest_checkpoint(work)
        if checkpoint is not None:
            tokens = tokens_at(work / "journal.jsonl", checkpoint.step)
            seen = f" ({tokens:,} tokens seen)" if tokens is not None else ""
            kept.append(f"a checkpoint of {name} at step {checkpoint.step:,}{seen}")
            repeats.append(f"{name} from step {checkpoint.step:,} on")
        elif stage not in stages.TRAINING and (shards := _shards(work)):
            kept.append(f"{shards} finished shards of {name}")
            repeats.append(f"{name} without those")
        else:
            repeats.append(f"{name} from its start")
    repeats.append("then what was not begun")
    return Standing(True, tuple(kept), tuple(repeats))


def _shards(work: Path) -> int:
    return sum(1 for _ in work.glob("**/.shard.json"))


def lost_ending(store: Store | None, record: RunRecord | None, ways: Ways) -> Ending:
    """The account of a run whose process is gone. Without its record, all that is known is that the store has it."""
    known = (
        standing_in(store, record)
        if store is not None and record is not None
        else Standing(
            True, ("every finished stage, and training up to its newest checkpoint",), ("the rest",)
        )
    )
    return Ending("crashed", LOST, known, f"To go on: {ways.again}", ways.command)


def ways_of_lost(*, deployed: bool) -> Ways:
    """How a run is continued whose process is gone: its command line is not known any more."""
    if deployed:
        return ways_to_go_on(None, True)
    same = "the same command that started it, `onward run` with the same configuration and options"
    return Ways(same, same)


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
    return Ways(command, command, command)
