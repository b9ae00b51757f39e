"""Text is read and written in a named encoding everywhere: a locale is no part of what a run is made of."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.support import ROOT

_OTHER_OPEN = {"os", "tarfile", "zipfile", "Image", "webbrowser", "request"}
"""What has an `open` that knows no encoding."""
_TEXT_FILES = {"open", "fdopen", "NamedTemporaryFile", "TemporaryFile", "SpooledTemporaryFile"}
_BINARY_FILES = {"NamedTemporaryFile", "TemporaryFile", "SpooledTemporaryFile"}
"""Opened for bytes, where no mode is given."""


def without_encoding(source: str) -> Iterator[ast.Call]:
    """The calls that read or write text in the locale's encoding, as far as it can be told from the code alone."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or any(word.arg in ("encoding", None) for word in node.keywords):
            continue
        words = {str(word.arg): word.value for word in node.keywords}
        method = isinstance(node.func, ast.Attribute)
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in ("read_text", "write_text") and method:
            if len(node.args) <= (name == "write_text"):
                yield node
        elif name in _TEXT_FILES and not any(isinstance(one, ast.Starred) for one in node.args):
            if _is_text(node, name, words):
                yield node
        elif any(_is_true(words.get(word)) for word in ("text", "universal_newlines")):
            yield node


def _is_text(node: ast.Call, name: str, words: dict[str, ast.expr]) -> bool:
    owner = node.func.value if isinstance(node.func, ast.Attribute) else None
    owner_name = getattr(owner, "id", getattr(owner, "attr", ""))
    if name == "open" and (owner_name in _OTHER_OPEN or owner_name[:1].isupper() or owner_name == "cls"):
        return False
    of_module = owner is None or owner_name in ("io", "os", "gzip", "bz2", "lzma", "codecs", "tempfile")
    first = 1 if of_module and name not in _BINARY_FILES else 0
    mode = words.get("mode") or (node.args[first] if len(node.args) > first else None)
    if mode is None:
        return name not in _BINARY_FILES and owner_name not in ("gzip", "bz2", "lzma")
    if not (isinstance(mode, ast.Constant) and isinstance(mode.value, str)):
        return not isinstance(mode, ast.Constant) and owner is None
    return "b" not in mode.value and (owner_name not in ("gzip", "bz2", "lzma") or "t" in mode.value)


def _is_true(value: ast.expr | None) -> bool:
    return isinstance(value, ast.Constant) and value.value is True


@pytest.mark.parametrize("package", ["flows", "tasks", "storage", "benchmarks"])
def test_every_text_has_its_encoding(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    found = [
        f"{path.relative_to(ROOT)}:{call.lineno}"
        for path in files
        for call in without_encoding(path.read_text(encoding="utf-8"))
    ]
    assert not found


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ("path.read_text()", 1),
        ("path.read_text(encoding='utf-8')", 0),
        ("path.read_text('utf-8')", 0),
        ("path.write_text(text)", 1),
        ("path.write_text(text, 'utf-8')", 0),
        ("path.open()", 1),
        ("path.open('a')", 1),
        ("path.open('rb')", 0),
        ("TokenShard.open(path)", 0),
        ("os.open(path, os.O_RDONLY)", 0),
        ("open(path)", 1),
        ("open(path, 'w', encoding='ascii')", 0),
        ("open(path, 'ab')", 0),
        ("os.fdopen(number, 'w')", 1),
        ("gzip.open(path)", 0),
        ("gzip.open(path, 'rt')", 1),
        ("tempfile.NamedTemporaryFile()", 0),
        ("tempfile.NamedTemporaryFile('w')", 1),
        ("subprocess.run(command, text=True)", 1),
        ("subprocess.run(command, encoding='utf-8')", 0),
        ("subprocess.run(command, text=False)", 0),
    ],
)
def test_what_counts_as_text(code: str, count: int) -> None:
    assert len(list(without_encoding(code))) == count
