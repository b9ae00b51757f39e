"""What attempts that are gone have left for MLflow, published by a later one in the same store."""

from __future__ import annotations

from flows.tracking.account import Account, Event, left_behind
from flows.tracking.client import TRIES, is_answer, said
from flows.tracking.publisher import Publisher
from storage.store import Store

RUNS = 5
"""So many, its own among them, try what was refused; then it is given up."""


def replay(own: Publisher, store: Store, head: Event) -> str | None:
    """Publish all accounts that were left for this server; returns what was refused last, in words.

    What cannot be published while the server can be read holds up nothing: it is kept for the next run. Raises MLflow's
    exceptions where the server is away.
    """
    refused: str | None = None
    for account in left_behind(store.root):
        try:
            if account.head.get("uri") != head["uri"]:
                continue
            left, why = _publish_again(own, store, account, head)
            last = account.told + 1 >= RUNS
            if why is not None:
                refused = f"what an earlier attempt left{' (given up now)' if last else ''}: {why}"
            if why is None or last:
                account.settle()
            else:
                account.keep(left)
        finally:
            account.leave()
    return refused


def _publish_again(
    own: Publisher, store: Store, account: Account, head: Event
) -> tuple[list[Event], str | None]:
    """Publish the events of an attempt that is gone: (what failed of them, why it did). Raises where the server is away."""
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
