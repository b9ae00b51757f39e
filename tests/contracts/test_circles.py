"""No import circle, at any level; and in `flows/` each folder imports only those before it.

Imports count wherever they stand: at the top, in a function, and under `TYPE_CHECKING`. In each folder its children are
looked at as wholes, a sub-folder as one, so that rooms stand above what they use, not beside it.
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAYERS = ("storage", "tasks", "flows")
ORDER = {
    "flows": (
        "config",
        "keys",
        "machine",
        "dag",
        "quote",
        "tracking",
        "lineage",
        "ui",
        "runs",
        "entrypoints",
        "inspect",
        "tuning",
        "services",
        "commands",
        "cli",
        "stages",
    ),
    "tasks": ("stages", "corpus", "documents", "training", "models", "evaluation", "formats", "pages"),
}
"""From the ground up: each may import those before it. A new room is put in its place here."""


@cache
def modules() -> Mapping[str, Path]:
    found = {}
    for layer in LAYERS:
        for path in sorted((ROOT / layer).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports(name: str) -> frozenset[str]:
    """The project's modules that one imports."""
    found = set()
    for node in ast.walk(ast.parse(modules()[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name} has a relative import"
            module = node.module or ""
            for alias in node.names:
                below = f"{module}.{alias.name}"
                found.add(below if below in modules() else module)
    return frozenset(found & modules().keys() - {name})


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """One circle of a graph, closed; empty where there is none."""
    done: set[str] = set()

    def walk(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for after in sorted(graph.get(node, ())):
            if found := walk(after, [*path, node]):
                return found
        done.add(node)
        return []

    for node in sorted(graph):
        if found := walk(node, []):
            return found
    return []


def folders() -> Iterator[str]:
    for name, path in modules().items():
        if path.name == "__init__.py":
            yield name


def children(folder: str) -> dict[str, dict[str, list[str]]]:
    """Which child of a folder imports which other, and by which modules."""
    found: dict[str, dict[str, list[str]]] = {}
    for name in modules():
        if not name.startswith(f"{folder}."):
            continue
        child = name.removeprefix(f"{folder}.").split(".")[0]
        found.setdefault(child, {})
        for imported in imports(name):
            other = imported.removeprefix(f"{folder}.").split(".")[0]
            if imported.startswith(f"{folder}.") and other != child:
                found[child].setdefault(other, []).append(f"{name} imports {imported}")
    return found


def test_no_modules_import_each_other_in_a_circle():
    assert circle({name: set(imports(name)) for name in modules()}) == []


@pytest.mark.parametrize("folder", sorted(folders()))
def test_no_rooms_of_a_folder_import_each_other_in_a_circle(folder):
    graph = children(folder)
    found = circle({child: set(others) for child, others in graph.items()})
    told = [graph[a][b][0] for a, b in itertools.pairwise(found)]
    assert not found, f"{' → '.join(found)}: {'; '.join(told)}"


@pytest.mark.parametrize("layer", ORDER)
def test_no_room_imports_one_above_it(layer):
    order, graph = ORDER[layer], children(layer)
    assert sorted(graph) == sorted(order), (
        f"rooms of {layer}/ without a place in ORDER, or the other way round"
    )
    climbing = [
        told
        for child, others in graph.items()
        for other, places in others.items()
        if order.index(other) > order.index(child)
        for told in places
    ]
    assert not climbing, "\n".join(climbing)


@pytest.mark.parametrize(
    ("graph", "found"),
    [
        ({"a": {"b"}, "b": {"c"}, "c": set()}, []),
        ({"a": {"b"}, "b": {"c"}, "c": {"b"}}, ["b", "c", "b"]),
        ({"a": {"a"}}, ["a", "a"]),
    ],
)
def test_a_circle_is_found(graph, found):
    assert circle(graph) == found
