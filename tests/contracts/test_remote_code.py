"""No call that reads a foreign model may run its code, ask for it on the terminal, or unpickle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SAID: dict[str, dict[str, bool]] = {
    "from_pretrained": {"trust_remote_code": False, "local_files_only": True},
    "from_config": {"trust_remote_code": False},
}
"""What each call says by name, whichever class it is of."""
UNPICKLE = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "torch"}


def wrong(source: str) -> Iterator[str]:
    """The calls of a module that do not say it, and its ways to unpickle."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        given = {word.arg: word.value for word in node.keywords}
        for name, value in SAID.get(node.func.attr, {}).items():
            said = given.get(name)
            if not (isinstance(said, ast.Constant) and said.value is value):
                yield f"line {node.lineno}: {node.func.attr} without {name}={value}"
        owner = ast.unparse(node.func.value)
        if owner in UNPICKLE and node.func.attr in ("load", "loads", "open", "Unpickler"):
            yield f"line {node.lineno}: {owner}.{node.func.attr}"


@pytest.mark.parametrize("package", ["storage", "tasks", "flows"])
def test_every_call_says_that_no_code_is_run(package: str) -> None:
    found = {
        f"{path.relative_to(ROOT)}, {line}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for line in wrong(path.read_text(encoding="utf-8"))
    }
    assert found == {line for line in found if line.startswith("storage/executors.py")}
    assert len(found) <= 1, "what a Dask worker is sent: a cluster is trusted (docs/operations.md)"


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ("AutoModel.from_pretrained(x, local_files_only=True, trust_remote_code=False)", 0),
        ("AutoModel.from_pretrained(x, local_files_only=True)", 1),
        ("AutoModel.from_pretrained(x, trust_remote_code=False)", 1),
        ("AutoModel.from_pretrained(x, trust_remote_code=True, local_files_only=True)", 1),
        ("AutoModel.from_pretrained(x, trust_remote_code=asked, local_files_only=True)", 1),
        ("AutoModel.from_pretrained(x, **safe)", 2),
        ("loader().from_config(config)", 1),
        ("pickle.loads(raw)", 1),
        ("joblib.load(path)", 1),
        ("torch.load(path, weights_only=True)", 1),
    ],
)
def test_what_counts(code: str, count: int) -> None:
    assert len(list(wrong(code))) == count
