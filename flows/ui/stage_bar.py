"""The progress bar of a stage in Prefect: the words beside it."""

from __future__ import annotations

from pathlib import Path

from flows.dag.call import Call
from flows.ui.stage_progress import StageProgress
from storage.errors import said
from storage.secrets import without_secrets
from tasks import stages
from tasks.models.heldout import measured, sources_of
from tasks.models.progress import last_row, newest_checkpoint
from tasks.training.state.heldout import PREFIX


def percent(stage: StageProgress) -> float:
    """How far its bar is."""
    return round(100 * (1.0 if stage.over and stage.call.state != "failed" else stage.share), 1)


def description(stage: StageProgress, work: Path) -> str:
    """The text beside a progress bar, in Markdown. `work`: the directory in which the stage is made."""
    call = stage.call
    lines = [f"**{call.label}**"]
    if stage.over and call.state == "failed":
        lines.append(_failure(call))
    elif stage.over:
        lines.append(" · ".join([f"{call.state} in {duration(call.seconds)}", *_ended_with(stage)]))
    elif stage.note:
        lines.append(stage.note)
    else:
        lines.append(" · ".join(word for word in (stage.amount, stage.rate, _left(stage)) if word))
    if call.request.stage in stages.TRAINING and not stage.over:
        lines.append(_training(work))
    return "  \n".join(line for line in lines if line)


def duration(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def _left(stage: StageProgress) -> str:
    left = stage.seconds_left
    return "" if left is None else f"about {duration(left)} left"


def _ended_with(stage: StageProgress) -> list[str]:
    """The last loss of a training that has ended."""
    loss = (
        (stage.stats.get("result") or {}).get("loss") if stage.call.request.stage in stages.TRAINING else None
    )
    return [f"loss {loss:.3f} at the last step"] if isinstance(loss, int | float) else []


def _training(work: Path) -> str:
    words = []
    if (checkpoint := newest_checkpoint(work)) is not None:
        words.append(f"last checkpoint {duration(checkpoint.age_seconds)} ago, at step {checkpoint.step:,}")
    if (row := last_row(work / "journal.jsonl")) is not None:
        words.append(f"step {row['step']:,}, {row.get('tokens', 0):,} tokens seen by the model")
        if isinstance(row.get("loss"), int | float):
            words.append(f"loss {row['loss']:.3f}")
    if lines := measured(work):
        found = [(name, lines[-1].get(f"{PREFIX}{name}")) for name in sources_of(lines)]
        words += [f"held-out {name} {value:.3f}" for name, value in found if value is not None]
    return " · ".join(words)


def _failure(call: Call) -> str:
    if call.error is None or isinstance(call.error, Exception):
        reason = without_secrets(said(call.error) if call.error else "").splitlines()
        return f"failed after {duration(call.seconds)}{': ' + reason[0][:500] if reason else ''}"
    return f"stopped after {duration(call.seconds)}; the next attempt goes on from there"
