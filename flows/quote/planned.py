"""A plan with its quote, as `onward plan` and a dry run show it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flows.config import RunConfig
from flows.dag.plan import Plan, PlanRow, planned
from flows.quote.quote import Measured, Quote, quote_of
from flows.quote.rates import rates_of
from flows.quote.table import render
from flows.quote.training import with_estimates
from flows.quote.work import made_of, work_of


@dataclass(frozen=True)
class Quoted:
    """What a run would do, row by row and in all."""

    run: RunConfig
    rows: list[PlanRow]
    quote: Quote
    when: str | None

    def text(self, width: int) -> str:
        """For a person."""
        return render(
            self.rows, self.quote, free=free_bytes(self.run.store_path), when=self.when, width=width
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
    measured = Measured(recorded=rates_of(made_of(plan))) if here else Measured()
    return Quoted(run, rows, _quote(run, plan, rows, measured), None)


def _quote(run: RunConfig, plan: Plan, rows: list[PlanRow], measured: Measured) -> Quote:
    return quote_of(run, work_of(run, plan, measured.known), measured, rows, run.corpus.execution.count)


def free_bytes(store: Path) -> int | None:
    """Bytes free on the disk of a store that may not be there yet; None if that cannot be told."""
    try:
        return shutil.disk_usage(next(path for path in (store, *store.parents) if path.exists())).free
    except (OSError, StopIteration):
        return None
