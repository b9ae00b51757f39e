"""The layers: flows → tasks → storage, never back; and the trainer runs with a handful of packages alone."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.support import ROOT

ALLOWED = {"storage": {"storage"}, "tasks": {"storage", "tasks"}, "flows": {"storage", "tasks", "flows"}}
ORCHESTRA = {"prefect", "mlflow"}
TRAINER = {"torch", "transformers", "safetensors", "pyarrow", "numpy"}


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("layer", ALLOWED)
def test_no_layer_imports_one_above_it(layer):
    files = modules(layer)
    assert files
    for path in files:
        climbing = {name for name in imports_of(path) if name.split(".")[0] in set(ALLOWED) - ALLOWED[layer]}
        assert not climbing, f"{path.relative_to(ROOT)} imports {climbing}"


@pytest.mark.parametrize("layer", ["storage", "tasks"])
def test_stages_know_nothing_of_prefect_and_mlflow(layer):
    for path in modules(layer):
        known = {name for name in imports_of(path) if name.split(".")[0] in ORCHESTRA}
        assert not known, f"{path.relative_to(ROOT)} imports {known}"


def test_the_trainer_needs_a_handful_of_packages():
    import sys

    waiting = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in modules("tasks/training")]
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        path = ROOT.joinpath(*name.split("."))
        file = path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"
        if name in seen or not file.is_file():
            continue
        seen.add(name)
        for imported in imports_of(file):
            top = imported.split(".")[0]
            if top in ("tasks", "storage"):
                waiting.append(imported)
            else:
                assert top in TRAINER or top in sys.stdlib_module_names, f"{name} imports {imported}"
    assert "tasks.training.loop" in seen
    assert not any(name.startswith("tasks.corpus") for name in seen)
