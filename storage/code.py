"""A digest of the code that determines a stage's bytes: its module and the project modules that the module imports.

Comments, docstrings and blank lines do not count. In `storage/`, only the modules that write file formats count.
`stages.lock` holds the VERSION and this digest of each stage. A test fails if the code changed but neither was renewed.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import io
import tokenize
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_PACKAGES = ("tasks", "storage")
_STORAGE_FORMATS = ("storage.tokens", "storage.packing")


def stage_code_digest(module: Any) -> str:
    """Hex sha256 over the stage's sources. A module may name more roots in `CODE_ROOTS` (a process that it starts)."""
    file = getattr(module, "__file__", None)
    if file is None or not Path(file).resolve().is_relative_to(ROOT):
        return "unknown"
    return _digest((_module_name(Path(file).resolve()), *getattr(module, "CODE_ROOTS", ())))


def project_digest() -> str:
    """Hex sha256 over all sources of `tasks/` and `storage/`. A worker on another machine must have the same sources."""
    digest = hashlib.sha256()
    for package in _PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


@functools.cache
def _digest(roots: tuple[str, ...]) -> str:
    waiting, seen = list(roots), set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen or (name.startswith("storage") and name not in _STORAGE_FORMATS):
            continue
        path = _source(name)
        if path is None:
            continue
        seen.add(name)
        waiting += _read(name, path)[1]
    digest = hashlib.sha256()
    for name in sorted(seen):
        path = _source(name)
        if path is not None:
            digest.update(f"{name}\0{_read(name, path)[0]}\0".encode())
    return digest.hexdigest()


@functools.cache
def _read(name: str, path: Path) -> tuple[str, list[str]]:
    """A module's bare source and the project modules that it imports. Read once for all stages that share it."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    return _bare(text, tree), _imports(tree, name, path)


def bare_source(text: str) -> str:
    """Source text without comments, docstrings and blank lines. The result is the same under every Python version."""
    return _bare(text, ast.parse(text))


def _bare(text: str, tree: ast.Module) -> str:
    lines = text.splitlines(keepends=True)
    for (row, start), (_, end) in _comments(text):
        lines[row - 1] = lines[row - 1][:start] + lines[row - 1][end:]
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for told in body if isinstance(body, list) else ():
            if not isinstance(told, ast.Expr) or not isinstance(told.value, ast.Constant):
                continue
            if isinstance(told.value.value, str):  # a docstring, of a module, class, function or field
                for row in range(told.lineno, (told.end_lineno or told.lineno) + 1):
                    lines[row - 1] = ""
    return "\n".join(line.rstrip() for line in lines if line.strip())


def _comments(text: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    if "#" not in text:
        return []
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return [(token.start, token.end) for token in tokens if token.type == tokenize.COMMENT]


def _imports(tree: ast.Module, name: str, path: Path) -> list[str]:
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parent, *([node.module] if node.module else [])])
            found += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return [item for item in found if item.split(".")[0] in _PACKAGES]


def _source(name: str) -> Path | None:
    path = ROOT.joinpath(*name.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def _module_name(path: Path) -> str:
    relative = path.relative_to(ROOT).with_suffix("")
    parts = relative.parts[:-1] if relative.name == "__init__" else relative.parts
    return ".".join(parts)
