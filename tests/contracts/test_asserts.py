"""`python -O` removes every assert: one in the project's code says what a type checker cannot see, and decides nothing."""

from __future__ import annotations

import ast

import pytest

from tests.support import ROOT

FILES = sorted(path for layer in ("flows", "tasks", "storage") for path in (ROOT / layer).rglob("*.py"))


def decides(test: ast.expr) -> bool:
    """Whether it does more than to say that a value is there, or of a type."""
    if isinstance(test, ast.BoolOp):
        return any(map(decides, test.values))
    if isinstance(test, ast.Compare):
        named = isinstance(test.left, ast.Name | ast.Attribute)
        (way, *more), (other, *_) = test.ops, test.comparators
        absent = isinstance(other, ast.Constant) and other.value is None
        return bool(more) or not (named and absent and isinstance(way, ast.Is | ast.IsNot))
    if isinstance(test, ast.Call) and isinstance(test.func, ast.Name) and test.func.id == "isinstance":
        return not isinstance(test.args[0], ast.Name | ast.Attribute)
    return True


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x is not None", False),
        ("isinstance(a.b, Path) and (c is None or isinstance(c, int))", False),
        ("queue.get() is not None", True),
        ("(found := x) is not None", True),
        ("isinstance(read(), Path)", True),
        ("count > 0", True),
        ("path.exists()", True),
    ],
)
def test_what_decides_is_told_from_what_does_not(text: str, expected: bool) -> None:
    assert decides(ast.parse(text, mode="eval").body) is expected


def test_no_assert_decides_anything() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}: assert {ast.unparse(node.test)}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Assert) and decides(node.test)
    ]
    assert len(FILES) > 100 and not found, "raise an error of the project's own: " + "; ".join(found)
