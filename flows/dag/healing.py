"""How a run heals: what a stage finds damaged among its inputs is made again first, and then the stage is asked again."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from flows.dag.call import Call
from storage.errors import DamagedArtifact, DamagedInput, StageFailed
from storage.runs import read_records
from storage.store import Ensured, Request, Store
from tasks import stages

_MOST_HEALINGS = 5
"""How often a stage's inputs are made again before the run gives up: a disk may lose bytes faster."""


def healed(
    call: Call,
    ask: Callable[[Call], Ensured],
    calls: Callable[[], Iterable[Call]],
    store: Store,
    warn: Callable[[str], None],
    again: Callable[[Call, Ensured], None] = lambda call, outcome: None,
) -> Ensured:
    """The artifact of a call. `ask` finds or makes it; `calls` are those that this run has made so far.

    What is damaged is asked for again, with all that it needs, and `again` is told where that made it. Raises StageFailed
    if it is not of this run, and says which run makes it again. Damage that a stage met, but that is not on the disk (any
    more), is worth one more try.
    """
    met = False
    for _ in range(_MOST_HEALINGS):
        try:
            return ask(call)
        except DamagedInput as damaged:
            warn(f"{damaged}; it is made again first")
            for stage, place in damaged.artifacts:
                before = _call_of(calls(), stage, place)
                if before is None:
                    raise StageFailed(f"{damaged}. {_who_made(store, stage, place)}") from damaged
                outcome = healed(before, ask, calls, store, warn, again)
                if outcome.state == "built":
                    again(before, outcome)
        except DamagedArtifact as error:
            if met:
                raise
            met = True
            warn(f"{error} All that it reads is sound now, so it is asked for once more")
    return ask(call)


def handed_out(request: Request) -> bool:
    """Whether a run hands out what the stage makes: models, scores and pages. These are verified also where they are found.

    Text and tokens are verified when a stage reads them.
    """
    return request.stage not in stages.CORPUS and request.stage != "pack"


def _call_of(calls: Iterable[Call], stage: str, place: str) -> Call | None:
    found = (one for one in calls if one.request.stage == stage)
    return next((one for one in found if one.request.key.startswith(place)), None)


def _who_made(store: Store, stage: str, place: str) -> str:
    runs = [
        record.run
        for record in read_records(store)
        if any(one == stage and key.startswith(place) for one, key in record.artifacts)
    ]
    how = f"Start the run {runs[0]} again" if runs else "Start the run that made it again"
    return f"It is not of this run. {how}, which makes it anew; then start this one again"
