"""The embedded source: documentation of the installed Python, as prose. Files are parsed, never imported or run.

    domain    numeric and machine-learning libraries, as installed
    general   the standard library, and every other installed distribution

The text comes from docstrings of modules, classes and functions, from documentation files (.rst, .md, .txt), from the
long description of each distribution, and from Python's own help topics. Each top-level class or function gives one
document; small ones are grouped by module. Doctests and code blocks are removed; hard-wrapped paragraphs become one
line.
"""

from __future__ import annotations

import ast
import csv
import functools
import importlib.metadata
import inspect
import os
import platform
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from storage.errors import StageFailed
from tasks.corpus.reading.prose import is_prose, prose, word_count

Kind = Literal["domain", "general"]

DOMAIN = frozenset(
    re.findall(
        r"\S+",
        """
        accelerate catboost datasets diffusers evaluate flax gensim jax jaxlib joblib keras lightgbm lm-eval
        matplotlib mpmath networkx nltk numba numpy pandas patsy peft polars pyarrow safetensors scikit-image
        scikit-learn scipy seaborn sentence-transformers skops spacy statsmodels sympy tensorflow tokenizers
        torch torchaudio torchvision transformers xarray xgboost
        """,
    )
)
_OWN = "onward"
_NOT_DOCUMENTATION = frozenset(
    re.findall(
        r"\S+",
        """
        tests test testing_data _vendor vendor vendored _vendored third_party thirdparty externals extern
        site-packages dist-packages __pycache__ idlelib lib2to3 turtledemo ensurepip _bundled licenses
        benchmarks examples
        """,
    )
)
_NOT_A_TEXT = re.compile(
    r"(licen[cs]e|copying|notice|authors|top_level|entry_points|requirements|sources|record|wheel|installer|namespace"
    r"_packages|dependency_links|third.?party|cmakelists|vendor|words|sbom)",
    re.IGNORECASE,
)
_SUFFIXES = (".py", ".rst", ".md", ".txt")
_FILES_PER_GROUP = 10
_MIN_WORDS, _MAX_WORDS = 50, 3000
_PROSE_SHARE = {".py": 0.15, ".txt": 0.5}  # rough share of a file's bytes; only plans depend on it
_DOCSTRING_CALLS = frozenset({"add_newdoc", "add_docstr", "_add_docstr", "add_newdoc_for_scalar_type"})


@dataclass(frozen=True)
class Group:
    """Some files of one distribution, or of the standard library. A group is read as one unit."""

    distribution: str
    version: str
    root: Path
    files: tuple[str, ...]
    estimated_bytes: int


@functools.lru_cache(maxsize=2)  # every slice calls this; the installation does not change during a process
def groups(kind: Kind) -> dict[str, Group]:
    """The units of an embedded source, by name (such as `numpy/003`). The same installation gives the same units."""
    found: dict[str, Group] = {}
    taken: set[tuple[str, str]] = set()
    for name, version, root, sizes in _distributions(kind):
        fresh = sorted(path for path in sizes if (str(root), path) not in taken)
        taken.update((str(root), path) for path in fresh)
        for start in range(0, len(fresh), _FILES_PER_GROUP):
            files = tuple(fresh[start : start + _FILES_PER_GROUP])
            size = sum(int(sizes[path] * _PROSE_SHARE.get(Path(path).suffix, 1.0)) for path in files)
            unit = f"{name}/{start // _FILES_PER_GROUP:03d}"
            found[unit] = Group(name, version, root, files, size)
    return found


def python_version() -> str:
    """Version of the Python whose files and parser are used."""
    return ".".join(map(str, sys.version_info[:3]))


def _distributions(kind: Kind) -> Iterator[tuple[str, str, Path, dict[str, int]]]:
    """Name, version, root and documentation files (path to size) of each distribution, ordered by name."""
    if kind == "general":
        yield _standard_library()
    for name, (version, distribution) in sorted(_installed().items()):
        if name == _OWN or (name in DOMAIN) != (kind == "domain"):
            continue
        root = Path(str(distribution.locate_file("")))
        sizes = {path: size for path, size in _recorded(distribution) if _is_documentation(path)}
        if sizes:
            yield name, version, root, sizes


@functools.cache
def _installed() -> dict[str, tuple[str, importlib.metadata.Distribution]]:
    """Version and distribution by normalised name; of two with the same name, the one that Python finds first."""
    found: dict[str, tuple[str, importlib.metadata.Distribution]] = {}
    for distribution in importlib.metadata.distributions():
        name, version = _named(distribution)
        if name:
            found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), (version, distribution))
    return found


def _named(distribution: importlib.metadata.Distribution) -> tuple[str | None, str]:
    """Name and version, from the headers alone: parsing all of METADATA takes ten times as long."""
    head = (distribution.read_text("METADATA") or "").partition("\n\n")[0]
    fields = dict(re.findall(r"^(Name|Version):[ \t]*(\S+)[ \t]*$", head, re.MULTILINE))
    if len(fields) == 2:
        return fields["Name"], fields["Version"]
    return distribution.metadata["Name"], distribution.version


def _recorded(distribution: importlib.metadata.Distribution) -> Iterator[tuple[str, int]]:
    """Relative path and size of each installed file. RECORD is parsed as text: ten times as fast as `.files`."""
    record = distribution.read_text("RECORD")
    if record is None:
        return
    for row in csv.reader(record.splitlines()):
        if len(row) >= 3 and row[2].isdigit():
            yield row[0], int(row[2])


def _standard_library() -> tuple[str, str, Path, dict[str, int]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    sizes: dict[str, int] = {}
    for folder, folders, files in os.walk(root):
        folders[:] = [
            one for one in folders if one not in _NOT_DOCUMENTATION
        ]  # site-packages is the largest by far
        for file in files:
            path = Path(folder, file)
            relative = path.relative_to(root).as_posix()
            if file.endswith(".py") and _is_documentation(relative):
                sizes[relative] = path.stat().st_size
    return "python", python_version(), root, sizes


def _is_documentation(path: str) -> bool:
    *folders, name = path.split("/")
    if ".." in folders or path.startswith("/") or not _NOT_DOCUMENTATION.isdisjoint(folders):
        return False
    if folders and folders[-1].endswith(".dist-info"):
        return name == "METADATA"
    if not name.endswith(_SUFFIXES) or name.startswith(("test_", "conftest")) or name.endswith("_test.py"):
        return False
    return name.endswith(".py") or not _NOT_A_TEXT.search(name)


# ── From files to documents ──────────────────────────────────────────────────────────────────────────────────────────


def documents(root: Path, files: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Text and meta (`name`, `file`) of each document in these files, in their order. Skips files that do not parse.

    Raises StageFailed if the installation is not on this machine; otherwise a worker elsewhere would skip every file.
    """
    if not root.is_dir():
        raise StageFailed(f"{root} is not on this machine ({platform.node()}): the embedded source reads it")
    for file in files:
        try:
            source = (root / file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        name = _dotted_name(file)
        if file.endswith("topics.py") and "pydoc_data" in file:
            pieces: Iterable[tuple[str, list[str]]] = _topics(source)
        elif file.endswith(".py"):
            pieces = _docstrings(source, name)
        else:
            pieces = [(name, prose(_body(source) if file.endswith("METADATA") else source))]
        for heading, paragraphs in pieces:
            for text in _sized(heading, paragraphs):
                if is_prose(text):
                    yield text, {"name": heading, "file": file}


def _dotted_name(file: str) -> str:
    path = Path(file)
    if path.name == "METADATA":
        return path.parent.name.removesuffix(".dist-info").split("-")[0]
    parts = [*path.parts[:-1], path.stem] if path.stem != "__init__" else list(path.parts[:-1])
    return ".".join(parts) if path.suffix == ".py" else "/".join([*path.parts[:-1], path.stem])


def _body(metadata: str) -> str:
    """The long description of a distribution: the text after the headers."""
    head, _, body = metadata.partition("\n\n")
    folded = [line.removeprefix("        ").removeprefix("       |") for line in head.splitlines()]
    return body or "\n".join(folded)


def _topics(source: str) -> Iterator[tuple[str, list[str]]]:
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            for name, text in ast.literal_eval(node.value).items():
                blocks = re.split(r"\n\s*\n", text)  # blocks indented by three or more are code
                running = [block for block in blocks if not block.startswith("   ")]
                yield f"Python: {name}", prose("\n\n".join(running))


def _docstrings(source: str, module: str) -> Iterator[tuple[str, list[str]]]:
    """Each large class or function of a module; last, the module's own docstring together with the small ones."""
    if '"""' not in source and "'''" not in source:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in foreign files
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    gathered = prose(ast.get_docstring(tree) or "")
    for name, paragraphs in _members(tree.body):
        if sum(map(word_count, paragraphs)) >= _MIN_WORDS:
            yield f"{module}.{name}", paragraphs
        elif paragraphs:
            gathered += [f"## {name}", *paragraphs]
    yield module, gathered


def _members(body: list[ast.stmt]) -> Iterator[tuple[str, list[str]]]:
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, _class_paragraphs(node)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield node.name, prose(ast.get_docstring(node) or "")
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            yield from _attached(node.value)
        elif isinstance(node, ast.If | ast.Try):
            yield from _members(node.body)


def _class_paragraphs(node: ast.ClassDef) -> list[str]:
    paragraphs = prose(ast.get_docstring(node) or "")
    for inner in node.body:
        if not isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if inner.name.startswith("_") and inner.name not in ("__init__", "__call__"):
            continue
        own = prose(ast.get_docstring(inner) or "")
        if own:
            paragraphs += [f"## {node.name}.{inner.name}", *own]
    return paragraphs


def _attached(call: ast.Call) -> Iterator[tuple[str, list[str]]]:
    """Documentation attached to compiled functions: add_newdoc("numpy", "dot", "…"), add_docstr(torch.abs, "…")."""
    function = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if function not in _DOCSTRING_CALLS or not call.args:
        return
    texts = [n.value for n in ast.walk(call) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    longest = max(texts, key=len, default="")
    names = [arg.value for arg in call.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
    names = [name for name in names if name is not longest and name.replace(".", "").isidentifier()]
    name = names[-1] if names else ast.unparse(call.args[0]).removeprefix("torch.")
    if len(name) < 80 and "\n" not in name:
        yield name, prose(inspect.cleandoc(longest))


def _sized(heading: str, paragraphs: list[str]) -> Iterator[str]:
    """Documents of at most about `_MAX_WORDS` words, each under its heading."""
    part, words, number = list[str](), 0, 1
    for paragraph in [*paragraphs, None]:
        count = word_count(paragraph) if paragraph else 0
        if part and (paragraph is None or words + count > _MAX_WORDS):
            if words >= _MIN_WORDS:
                yield "\n\n".join([f"# {heading}" + (f" ({number})" if number > 1 else ""), *part])
            part, words, number = [], 0, number + 1
        if paragraph:
            part.append(paragraph)
            words += count
