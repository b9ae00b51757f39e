"""Publishes what ended attempts left for MLflow. A later attempt in the same store does this."""

from __future__ import annotations

from flows.tracking.account import Account, Event, damaged_lines, left_behind
from flows.tracking.client import TRIES, is_answer, said
from flows.tracking.publisher import Publisher
from storage.store import Store

RUNS = 5
"""Number of runs that try a refused event, the original run included. After that, the event is dropped."""


def replay(own: Publisher, store: Store, head: Event) -> tuple[int, str | None]:
    """Publish all accounts that were left for this server. Returns their number, and the last refusal as text.

    An event that cannot be published although the server can be read blocks nothing; it is kept for the next run. Raises
    MLflow's exceptions if the server is away.
    """
    refused: str | None = None
    told = 0
    for account in left_behind(store.root):
        try:
            if account.head.get("uri") != head["uri"]:
                continue
            told += 1
            damaged = damaged_lines(account.path)
            left, why = _publish_again(own, store, account, head)
            last = account.told + 1 >= RUNS
            if why is not None:
                refused = f"events of an earlier attempt{' (given up now)' if last else ''}: {why}"
            if damaged:
                refused = (
                    f"{damaged} lines of an earlier attempt's account were not what was written, and are left out: its "
                    "run, started again, tells them anew"
                )
            if why is None or last:
                account.settle()
            else:
                account.keep(left)
        finally:
            account.leave()
    return told, refused


def _publish_again(
    own: Publisher, store: Store, account: Account, head: Event
) -> tuple[list[Event], str | None]:
    """Publish the events of an ended attempt. Returns (events that failed, the reason). Raises if the server is away."""
    left: list[Event] = []
    why: str | None = None
    unanswered = 0
    try:
        attempt = Publisher(own.client, store, account.head)
        same = bool(head["flow_run"]) and account.head.get("flow_run") == head["flow_run"]
        attempt.begin(at_work=False)
        for number, event in enumerate(account.left):
            try:
                if not (same and event["event"] == "close"):
                    attempt.publish(event)
            except Exception as error:
                own.runs.read()
                left.append(event)
                why = f"{event['event']} {event.get('stage', '')}: {said(error)}"
                unanswered += not is_answer(error)
                if unanswered >= TRIES:  # each may have waited for long
                    left += account.left[number + 1 :]
                    break
        attempt.runs.flush()
        if not same:
            attempt.ended(account.events)
    except Exception as error:
        own.runs.read()
        return account.left, said(error)
    return left, why
