"""stages.lock is as the code stands; a change that was not accepted is found."""

from __future__ import annotations

import ast
import importlib

import pytest

from flows.stages import current, locked, unaccepted
from storage.code import bare_source
from tasks.stages import ENDS, TABLE
from tests.support import ROOT


def test_every_stage_is_accepted_as_it_stands():
    assert unaccepted(current(), locked()) == []


@pytest.mark.parametrize("stage", TABLE, ids=lambda stage: stage.name)
def test_a_stage_is_called_as_its_module_is(stage):
    module = importlib.import_module(stage.module)
    assert stage.name == module.STAGE and isinstance(module.VERSION, int) and callable(module.run)


def test_every_module_with_a_stage_is_in_the_table():
    found = set()
    for path in sorted((ROOT / "tasks").rglob("*.py")):
        names = set()
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign):
                names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
            elif isinstance(node, ast.ImportFrom):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.FunctionDef):
                names.add(node.name)
        if names >= {"STAGE", "VERSION", "run"}:
            found.add(".".join(path.relative_to(ROOT).with_suffix("").parts))
    assert found == {stage.module for stage in TABLE}


def test_a_run_can_end_where_the_dag_looks_for_it():
    """Every stage that the DAG compares `until` with is one that a run can be ended after, and the other way round."""
    source = (ROOT / "flows/dag/pretrain.py").read_text() + (ROOT / "flows/dag/slices.py").read_text()
    compared = {
        value.value
        for node in ast.walk(ast.parse(source.replace("from __future__ import annotations", "")))
        if isinstance(node, ast.Compare) and getattr(node.left, "id", "") == "until"
        for value in ast.walk(node)
        if isinstance(value, ast.Constant)
    }
    assert compared <= set(ENDS)
    assert {"report", "data", "train", "evaluate", "pack", "tokenize"} <= compared


@pytest.mark.parametrize(
    ("before", "words"),
    [
        ({}, "not in stages.lock"),
        ({"a": {"version": 1, "code": "x"}}, "raise VERSION"),
        ({"a": {"version": 0, "code": "x"}}, "VERSION: 0 → 1"),
        ({"a": {"version": 0, "code": "y"}}, "VERSION: 0 → 1"),
    ],
)
def test_what_is_not_accepted_is_named(before, words):
    assert words in unaccepted({"a": {"version": 1, "code": "y"}}, before)[0]


@pytest.mark.parametrize(
    ("before", "words"),
    [
        ({"version": 1, "code": "x", "components": {"c4": 2}}, "raise VERSION, or that of the component"),
        ({"version": 1, "code": "x"}, "c4: (absent) → 2 is not in stages.lock"),
        ({"version": 1, "code": "y", "components": {"c4": 3}}, "c4: 3 → 2 is not in stages.lock"),
    ],
)
def test_versions_of_components_are_locked_too(before, words):
    now = {"version": 1, "code": "y", "components": {"c4": 2}}
    assert words in unaccepted({"a": now}, {"a": before})[0]


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
    """Of the field,
    in two lines."""
'''


def test_comments_docstrings_and_blank_lines_do_not_count():
    assert bare_source(DRESSED) == bare_source(PLAIN)


def test_code_counts():
    assert bare_source(PLAIN.replace("+ 1", "+ 2")) != bare_source(PLAIN)
    assert bare_source(PLAIN.replace("no comment", "a comment")) != bare_source(PLAIN)
