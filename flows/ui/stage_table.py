"""The table of a run's stages in Prefect: a row for each, and for what is still to come."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from flows.dag.call import named
from flows.quote.table import hours_text
from flows.ui.stage_bar import duration
from flows.ui.stage_progress import StageProgress
from flows.ui.whole import Ahead
from storage.store import Request

DONE = ("built", "cached")


def rows_of(
    found: Sequence[StageProgress],
    ahead: Iterable[Ahead],
    why: Callable[[Request], str],
    forced: frozenset[str],
) -> list[dict[str, Any]]:
    """What is under way first, then what is done, in order, and what is to come."""
    under_way = [stage for stage in found if stage.state not in DONE]
    done = [stage for stage in found if stage.state in DONE]
    rows = [_row(stage, why, forced) for stage in (*reversed(under_way), *done)]
    return [*rows, *map(_to_come, ahead)]


def _row(stage: StageProgress, why: Callable[[Request], str], forced: frozenset[str]) -> dict[str, Any]:
    call = stage.call
    seconds = call.seconds if stage.over else max(0.0, time.time() - call.began)
    return {
        "stage": call.request.stage,
        "of": " · ".join(named(call.slice, call.round, call.item)),
        "state": stage.state,
        "time": duration(seconds) if call.state != "cached" else "",
        "why": _why(stage, why, forced),
        "documents": _documents(stage.stats),
        "tokens": f"{stage.stats['tokens']:,}" if stage.stats.get("tokens") is not None else "",
        "key": call.request.key[:12],
    }


def _why(stage: StageProgress, why: Callable[[Request], str], forced: frozenset[str]) -> str:
    """Why the stage is made. Determined when it is first shown, because then it is not in the store yet."""
    call = stage.call
    if call.state == "cached":
        return "reproduced" if call.request.stage in forced else ""
    if stage.why is None:
        reason = "forced" if call.request.stage in forced else why(call.request)
        reason = "forced: other bytes than before" if call.differs else reason
        stage.why = "; ".join(["begun before", reason] if call.resumed else [reason])
    return stage.why


def _to_come(ahead: Ahead) -> dict[str, Any]:
    """The row of what is still to come of one kind of stage."""
    took = "" if ahead.seconds is None else f"about {hours_text(ahead.seconds)}"
    return {
        "stage": ahead.stage,
        "of": f"{ahead.to_do:,} ×",
        "state": "to come",
        "time": took,
        "why": "by a rule of thumb" if ahead.assumed else "",
        "documents": "",
        "tokens": "",
        "key": "",
    }


def _documents(stats: Mapping[str, Any]) -> str:
    """Documents in → out."""
    came, went = stats.get("documents_in"), stats.get("documents_out")
    if came is not None and went is not None:
        return f"{came:,} → {went:,}"
    return f"{stats['documents']:,}" if stats.get("documents") is not None else ""
