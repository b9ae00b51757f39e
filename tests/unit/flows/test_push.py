"""What a push says of an error of the hub's client, and which licences it finds unstated."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from flows.inspect.push import _refused
from storage.errors import HubUnreachable, OnwardError


class Refused(Exception):
    def __init__(self, status: int) -> None:
        super().__init__("the client's words")
        self.response = SimpleNamespace(status_code=status)


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def test_a_card_that_the_hub_refuses_is_told_with_all_that_is_wrong_and_is_not_tried_again() -> None:
    error = ValueError(
        f'Invalid metadata in README.md.\n- "license" must be one of [{"mit, " * 100}]\n- no title'
    )
    told = _refused(caused(error, Refused(400)), "me/mine", Path("kept"))
    assert type(told) is OnwardError and not told.passing
    assert (
        '"license" must be one of [mit' in str(told)
        and "- no title" in str(told)
        and "kept in kept" in str(told)
    )


@pytest.mark.parametrize(
    ("error", "passing"),
    [
        (caused(RuntimeError("Error while uploading"), Refused(403)), False),
        (caused(RuntimeError("Error while uploading"), caused(OSError(), Refused(422))), False),
        (caused(RuntimeError("Error while uploading"), Refused(503)), True),
        (json.JSONDecodeError("no JSON", "<html>", 0), True),
        (ConnectionError("refused"), True),
        (Refused(429), True),
    ],
)
def test_what_may_pass_is_told_from_what_will_not(error: Exception, passing: bool) -> None:
    told = _refused(error, "me/mine", Path("kept"))
    assert isinstance(told, HubUnreachable) is passing is told.passing
