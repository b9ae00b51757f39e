"""What is kept and which command goes on is said in one place (flows/runs/failure.py), which looks before it speaks."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.support import ROOT

CLAIM = re.compile(r"heckpoints? (are|is) kept|[Ss]ame command|[Rr]etry (it|this)")


def claims(path: Path) -> list[str]:
    """Texts of errors that promise what only the end of a run knows."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Raise):
            texts = [one.value for one in ast.walk(node) if isinstance(one, ast.Constant)]
            found += [text for text in texts if isinstance(text, str) and CLAIM.search(text)]
    return found


def test_no_error_promises_what_is_kept_or_which_command_goes_on() -> None:
    sources = [path for room in ("flows", "tasks", "storage") for path in (ROOT / room).rglob("*.py")]
    assert len(sources) > 200
    found = {str(path.relative_to(ROOT)): told for path in sources if (told := claims(path))}
    assert found == {}
