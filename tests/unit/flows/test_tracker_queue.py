"""What waits for MLflow: of several events of a model, the last one has all scores."""

from __future__ import annotations

from collections import deque

from flows.tracking.tracker import newest_of_each


def _model(key: str, scores: int, prefix: str = "") -> dict[str, object]:
    return {
        "event": "model",
        "stage": "decay",
        "key": key,
        "prefix": prefix,
        "scores": [["evaluate", str(number), str(number)] for number in range(scores)],
    }


def test_of_a_model_only_the_last_event_is_told_and_all_else_stays_in_its_order() -> None:
    end = {"event": "end", "stage": "evaluate", "key": "e"}
    close = {"event": "close", "state": "FINISHED"}
    trunk = _model("a", 1, "trunk/")
    waiting = deque(
        (event, 0) for event in (_model("a", 0), end, _model("b", 1), _model("a", 2), trunk, end, close)
    )
    told = [event for event, _ in newest_of_each(waiting)]
    assert told == [end, _model("b", 1), _model("a", 2), trunk, end, close]


def test_what_was_tried_before_keeps_its_count() -> None:
    waiting = deque([({"event": "end", "stage": "s", "key": "k"}, 2), (_model("a", 1), 1)])
    assert newest_of_each(waiting) == waiting
