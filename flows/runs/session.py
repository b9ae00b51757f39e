"""The surroundings of every flow: its log, its pages while it runs, a readable end, and a stop within seconds.

`flows.runs.run` and `flows.runs.evaluate` use it.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from prefect.context import FlowRunContext
from prefect.exceptions import TerminationSignal
from prefect.states import Failed

from flows.dag.plan import Reasons
from flows.machine.environment import outlive_readers
from flows.machine.processes import on_hangup
from flows.quote.quote import Quote
from flows.runs.attempt import Attempt
from flows.runs.ending import Ending, ending_of, standing, ways_to_go_on
from flows.runs.failure import RunFailed, run_failed
from flows.runs.prefect_away import End, keep_end, reached
from flows.runs.prefect_states import is_cancelling, set_stopped, set_true_states
from flows.runs.stage_task import Builder
from flows.tracking.tracker import Tracker, public_address, scores_text
from flows.tracking.view import AS_TRAINING, address
from flows.ui import publish
from flows.ui.console import Console
from flows.ui.front import ENDING
from flows.ui.live import Live, own_artifacts
from flows.ui.run_pages import WholePage
from flows.ui.whole import Forecast
from storage.errors import OnwardError
from storage.store import Store


def current_flow_run() -> str | None:
    """The id of the current flow run; None outside a flow run."""
    context = FlowRunContext.get()
    return str(context.flow_run.id) if context and context.flow_run else None


def _deployed() -> bool:
    context = FlowRunContext.get()
    return bool(context and context.flow_run and context.flow_run.deployment_id)


def in_flow_run(console: Console, act: Callable[[], Any]) -> Any:
    """The result of `act`. If it raises RunFailed inside a flow run: the failed state with the error's text as message.

    The end is kept for the caller of the flow (`end_of`), because Prefect's engine fails if its server is away.
    """
    outlive_readers()
    on_hangup(lambda: signal.raise_signal(signal.SIGTERM))
    with publish.logged_in_prefect(console):
        try:
            result = act()
        except RunFailed as failed:
            keep_end(End(error=failed))
            if current_flow_run() is None:
                raise
            return Failed(message=str(failed), data=failed)
        keep_end(End(result))
        return result


@contextmanager
def failure_explained(
    store: Store, attempt: Callable[[], Attempt | None], say: Callable[[str], None]
) -> Iterator[None]:
    """Turn an error into RunFailed: what is kept, what repeats, how to continue, and the attempt's summary.

    The account is the first of the flow run's pages, and a run that was stopped is so called in Prefect. If Prefect
    cannot be told how the block ended, the attempt's record keeps it. `say` tells the user of the wait for it.
    """

    def told(state: str, message: str, seconds: float | None = None) -> bool:
        this = attempt()
        here = current_flow_run() is not None
        if here and not reached(say, seconds) and this is not None:
            this.leave_untold(state, message)
            return False
        return here

    try:
        yield
    except RunFailed as error:
        told("FAILED", str(error))
        raise
    except Exception as error:
        this = attempt()
        ending = _ending(error, store, this)
        failed = run_failed(error, ending)
        failed.summary = this.summary if this else None
        if not isinstance(error, OnwardError | OSError):
            logging.getLogger("onward").error("unexpected", exc_info=error)
        if told("FAILED", str(failed)):
            publish.ending_page(current_flow_run(), ending.title, ending.page)
        raise failed from error
    except BaseException as error:  # asked to stop
        ending = _ending(error, store, attempt())
        flow_run = current_flow_run()
        if told("CRASHED", ending.message, publish.LAST_WORD_SECONDS) and flow_run is not None:
            publish.ending_page(flow_run, ending.title, ending.page, seconds=1.0)
            if set_stopped(flow_run, ending.state, ending.message):
                raise _as_prefects(error) from error
        raise
    told("COMPLETED", "All stages completed")


def _as_prefects(error: BaseException) -> BaseException:
    """Ctrl-C as the signal that Prefect passes on once it knows a run's last state; it would set a KeyboardInterrupt's."""
    return TerminationSignal(signal.SIGINT) if isinstance(error, KeyboardInterrupt) else error


@contextmanager
def ending_kept(attempt: Attempt) -> Iterator[None]:
    """Keep the account of an error that ends the attempt, and give it to MLflow."""
    try:
        yield
    except BaseException as error:
        ending = attempt.ending = _ending(error, attempt.store, attempt)
        attempt.tracker.ended(ending.state, ending.page)
        raise
    attempt.tracker.ended("completed", scores_text(attempt.summary.models) if attempt.summary else "")


def _ending(error: BaseException, store: Store, attempt: Attempt | None) -> Ending:
    if attempt is not None and attempt.ending is not None:
        return attempt.ending
    flow_run = current_flow_run()
    ways = ways_to_go_on(publish.flow_run_url(flow_run), _deployed())
    found = ending_of(error, store, attempt.builder.calls if attempt else [], ways)
    if not isinstance(error, Exception) and flow_run is not None and is_cancelling(flow_run):
        found = replace(found, state="cancelled", cause="The run was cancelled in Prefect.")
    return found


@contextmanager
def shown(
    builder: Builder,
    tracker: Tracker,
    name: str,
    known: frozenset[str] = frozenset(),
    quote: Callable[[], Quote] | None = None,
    beside: Callable[[], str] | None = None,
) -> Iterator[publish.PrefectPages | None]:
    """Publish a run to Prefect while the block runs, and leave all its tasks in correct states.

    `known` are keys that earlier attempts made; `quote` says what is left of the whole, and `beside` in Markdown what was
    promised beside what it took. If the block is asked to stop,
    everything that runs beside it stops too.
    """
    flow_run = current_flow_run()
    pages = publish.PrefectPages(flow_run) if flow_run else None
    live = (
        _begin(builder, tracker, name, flow_run, pages, known, quote, beside) if flow_run and pages else None
    )
    try:
        yield pages
    except Exception:
        _end(builder, flow_run, live)
        raise
    except BaseException:  # asked to stop
        builder.halt()
        builder.console.line("\n".join(["stopped", *standing(builder.store, builder.calls).lines()]))
        if live is not None:
            live.close(publish.LAST_WORD_SECONDS)
        raise
    _end(builder, flow_run, live)


def _begin(
    builder: Builder,
    tracker: Tracker,
    name: str,
    flow_run: str,
    pages: publish.PrefectPages,
    known: frozenset[str],
    quote: Callable[[], Quote] | None,
    beside: Callable[[], str] | None,
) -> Live:
    context = FlowRunContext.get()
    if context and context.flow_run and context.flow_run.run_count > 1:
        publish.published(lambda: pages.drop(ENDING))  # of the attempt before
    reasons = Reasons(builder.store, own_artifacts(flow_run, set(known)))
    whole = WholePage(Forecast(quote) if quote is not None else None, beside)
    live = Live(pages, name, builder.store.work_of, reasons.brief, builder.force, whole=whole)

    def link(run: str, experiment: str) -> None:
        if (base := public_address(tracker.tracked.uri)) is not None:
            runs = f"{base}/#/experiments/{experiment}/runs"
            pages.mlflow_run = f"{runs}/{run}"
            live.link("mlflow", f"{runs}/{run}?{AS_TRAINING}", "This run in MLflow")
            live.link("mlflow-runs", address(experiment, base), "Compare runs in MLflow")

    builder.listeners.append(live.listen)
    builder.followers.append(live.follow)
    tracker.call_with_parent(link)
    live.start()
    return live


def _end(builder: Builder, flow_run: str | None, live: Live | None) -> None:
    away = flow_run is not None and not reached(builder.console.warn)
    if live is not None:
        live.close(0.0 if away else publish.PATIENCE_SECONDS)
    if away:
        return
    set_true_states(flow_run, builder.calls)
