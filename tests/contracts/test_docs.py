"""What the documents say exists: commands and their options, links, files and stages; and what exists is said."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path

import pytest
import typer

from flows.cli import app
from tasks import stages

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
DOCUMENTS = [
    path
    for path in (*sorted(ROOT.glob("*.md")), *PAGES, ROOT / "benchmarks/results.md", ROOT / "tests/README.md")
    if path.is_file()
]
COMMANDS = typer.main.get_command(app).commands
_SPAN = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"!?\[[^\]\n]*\]\(([^)\s]+)\)")
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
_MODULE = re.compile(
    r"(?:flows|tasks|storage|tests|configs|docs|docker|benchmarks)/[\w./-]+\.(?:py|md|ya?ml|sh)"
)

documents = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


@cache
def options_of(command: str) -> frozenset[str]:
    """Every option of a command."""
    return frozenset(
        name
        for parameter in COMMANDS[command].params
        for name in (*parameter.opts, *parameter.secondary_opts)
    ) | {"--help"}


def said_commands(text: str) -> list[tuple[str, str]]:
    """(command, the rest of it) of each `onward …` in a document: in code, and in blocks of a shell."""
    blocks = re.findall(r"^```(?:sh|bash|console)?\n(.*?)^```", text, re.S | re.M)
    lines = [line.split("#")[0] for block in blocks for line in block.splitlines()]
    spans = [*_SPAN.findall(text), *lines]
    found = (
        re.match(r"(?:\$ )?(?:\.venv/bin/|[A-Z_]+=\S+ )*onward ([a-z]+)\b(?![/.])(.*)", span.strip())
        for span in spans
    )
    return [(match[1], match[2]) for match in found if match]


def table(document: Path, head: str) -> list[list[str]]:
    """Rows of the table with that heading; a `|` in code separates nothing."""
    lines = document.read_text().split(f"| {head} |", 1)[1].splitlines()[2:]
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return rows


def test_the_table_of_commands_is_that_of_the_command_line():
    rows = {cells[0].strip("`").split()[1]: " ".join(cells) for cells in table(ROOT / "README.md", "command")}
    assert set(rows) == set(COMMANDS)
    for command, row in rows.items():
        unknown = set(_OPTION.findall(row)) - options_of(command)
        assert not unknown, f"README.md: onward {command} has no {unknown}"


@documents
def test_commands_in_a_document_exist_with_their_options(path):
    for command, rest in said_commands(path.read_text()):
        assert command in COMMANDS, f"there is no onward {command}"
        unknown = set(_OPTION.findall(rest)) - options_of(command)
        assert not unknown, f"onward {command} has no {unknown}"


def test_the_documents_name_commands_at_all():
    """So that the test above has something to fail on."""
    named = {command for path in DOCUMENTS for command, _ in said_commands(path.read_text())}
    assert named == set(COMMANDS)


@documents
def test_links_lead_somewhere(path):
    for target in _LINK.findall(path.read_text()):
        place, _, heading = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        found = (path.parent / place) if place else path
        assert found.exists(), f"{target} is not there"
        if heading:
            titles = re.findall(r"^#+ (.*)$", found.read_text(), re.M)
            slugs = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert heading in slugs, f"{target}: no such heading"


@documents
def test_files_named_in_a_document_are_there(path):
    known = set(
        subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
    )
    for name in set(_MODULE.findall(path.read_text())):
        if re.search(r"[A-Z]{3,}", name) or name.endswith(("configs/mine.yaml", "configs/my.yaml")):
            continue  # a place holder
        assert name in known or any(one.endswith(f"/{name}") for one in known), f"{name} is not there"


@documents
def test_tests_named_in_a_document_are_there(path):
    for name, test in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", path.read_text()):
        assert f"def {test}(" in (ROOT / name).read_text(), f"{name} has no {test}"


@documents
def test_modules_named_in_a_document_are_there(path):
    """`tasks.training.join`, or what a module defines: `storage.testing.artifact_of`."""
    for name in set(re.findall(r"(?<![\w/.-])(?:flows|tasks|storage)(?:\.[a-z_]+)+", path.read_text())):
        place, module = (
            ROOT.joinpath(*name.split(".")),
            ROOT.joinpath(*name.split(".")[:-1]).with_suffix(".py"),
        )
        defined = module.is_file() and re.search(rf"\b{name.rpartition('.')[2]}\b", module.read_text())
        assert place.is_dir() or place.with_suffix(".py").is_file() or defined, f"{name} is not there"


def test_the_readme_has_a_row_for_each_page():
    linked = set(_LINK.findall((ROOT / "README.md").read_text()))
    assert {f"docs/{page.name}" for page in PAGES} <= linked


def test_the_tree_of_the_readme_is_that_of_the_project():
    tree = (ROOT / "README.md").read_text().split("## Layout", 1)[1].split("```")[1]
    layers = ("flows", "tasks", "storage")
    said: set[str] = set()
    parent = ""
    for line in tree.strip().splitlines():
        name = line.split()[0]
        parent = "" if not line.startswith(" ") else parent
        said.add(parent + name.rstrip("/"))
        parent = parent or name
    for name in said:
        assert (ROOT / name).exists(), f"README.md names {name}"
    real = {
        str(path.relative_to(ROOT))
        for layer in layers
        for path in [ROOT / layer, *(ROOT / layer).iterdir()]
        if path.is_dir() and path.name != "__pycache__" and any(path.glob("*.py"))
    }
    assert real <= said, f"README.md does not name {real - said}"


def test_the_glossary_is_sorted_and_knows_the_stages_that_its_words_name():
    words = [
        re.findall(r"\*\*([^*]+)\*\*", cells[0])[0].lower()
        for cells in table(ROOT / "docs/glossary.md", "word")
    ]
    assert words == sorted(words)
    text = (ROOT / "docs/glossary.md").read_text()
    assert set(re.findall(r"stage `(\w+)`", text)) <= set(stages.NAMES)
