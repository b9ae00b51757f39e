"""A plan with its quote, as `onward plan` and a dry run show it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flows.config import RunConfig
from flows.dag.plan import Plan, PlanRow, planned
from flows.quote.files import files_text
from flows.quote.happened import Beside, beside
from flows.quote.quote import Measured, Quote, quote_of
from flows.quote.rates import Rates, rates_of
from flows.quote.rehearsed import newest
from flows.quote.table import bytes_text, render
from flows.quote.training import with_estimates
from flows.quote.work import made_of, work_of


@dataclass(frozen=True)
class Quoted:
    """What a run would do, row by row and in all."""

    run: RunConfig
    rows: list[PlanRow]
    quote: Quote
    when: str | None
    happened: list[Beside]
    """What a rehearsal of this run quoted, beside what it took so far."""

    free: int | None
    """Bytes free on the store's disk, where the plan is for this machine."""

    files: Sequence[str] = ()
    """Of each source of documents, its files by kind, and what is set aside."""

    def text(self, width: int) -> str:
        """For a person."""
        return render(
            self.rows,
            self.quote,
            free=self.free,
            when=self.when,
            width=width,
            happened=self.happened,
            files=self.files,
        )


def quoted(
    run: RunConfig,
    warn: Callable[[str], None] = lambda message: None,
    memory: int | None = None,
    device: str | None = None,
) -> Quoted:
    """Plan a run and quote it. `memory` (bytes) and `device` name another machine, of which nothing was measured.

    `warn` is told what the run would be warned of. Raises ConfigError.
    """
    plan = planned(run, warn)
    rows = with_estimates(run, plan.rows, memory, device)
    here = memory is None and device is None
    rehearsed = newest(run) if here else None
    measured = Measured(recorded=rates_of(made_of(plan)) if here else Rates())
    if rehearsed is not None:
        measured = replace(
            measured,
            rates=rehearsed.rates,
            start_seconds=rehearsed.start_seconds,
            checkpoint_seconds=rehearsed.checkpoint_seconds,
            memory=rehearsed.memory,
            device_memory=rehearsed.device_memory,
        )
    when = rehearsed.when.partition("+")[0].replace("T", " ") if rehearsed else None
    same = rehearsed is not None and list(rehearsed.budgets) == list(run.training.token_budgets)
    happened = beside(rehearsed.quote, made_of(plan)) if rehearsed and same else []
    quote = _quote(run, plan, rows, measured)
    free = free_bytes(run.store_path) if here else None
    if free is not None and (needed := quote.bytes + quote.passing_bytes) > free:
        warn(
            f"store: the run needs about {bytes_text(needed)} on the disk of {run.store_path}, and {bytes_text(free)} are "
            "free; make room, or name another place in the configuration's store"
        )
    return Quoted(run, rows, quote, when, happened, free, list(files_text(plan.shelves)))


def _quote(run: RunConfig, plan: Plan, rows: list[PlanRow], measured: Measured) -> Quote:
    return quote_of(run, work_of(run, plan, measured.known), measured, rows, run.corpus.execution.count)


def free_bytes(store: Path) -> int | None:
    """Bytes free on the disk of a store that may not be there yet; None if that cannot be told."""
    try:
        return shutil.disk_usage(next(path for path in (store, *store.parents) if path.exists())).free
    except (OSError, StopIteration):
        return None
