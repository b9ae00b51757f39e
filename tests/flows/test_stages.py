"""stages.lock is as the code stands; a change that was not accepted is found."""

from __future__ import annotations

import pytest

from flows.stages import current, locked, unaccepted
from storage.code import bare_source


def test_every_stage_is_accepted_as_it_stands():
    assert unaccepted(current(), locked()) == []


@pytest.mark.parametrize(
    ("before", "words"),
    [
        ({}, "not in stages.lock"),
        ({"a": {"version": 1, "code": "x"}}, "raise VERSION"),
        ({"a": {"version": 0, "code": "x"}}, "VERSION 0 → 1"),
        ({"a": {"version": 0, "code": "y"}}, "VERSION 0 → 1"),
    ],
)
def test_what_is_not_accepted_is_named(before, words):
    assert words in unaccepted({"a": {"version": 1, "code": "y"}}, before)[0]


def test_an_accepted_stage_is_fine():
    entry = {"a": {"version": 1, "code": "y"}}
    assert unaccepted(entry, dict(entry)) == []


PLAIN = "def f(x):\n    return x + 1\n\n\nclass A:\n    y = 'text # no comment'\n"
DRESSED = '''"""Module."""

# why
def f(x):  # what
    """Doc
    string."""

    return x + 1


class A:
    """Doc."""

    y = 'text # no comment'
'''


def test_comments_docstrings_and_blank_lines_do_not_count():
    assert bare_source(DRESSED) == bare_source(PLAIN)


def test_code_counts():
    assert bare_source(PLAIN.replace("+ 1", "+ 2")) != bare_source(PLAIN)
    assert bare_source(PLAIN.replace("no comment", "a comment")) != bare_source(PLAIN)
