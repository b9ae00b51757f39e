"""The embedded source: documentation as prose, from files that are parsed and never run."""

from __future__ import annotations

import ast
import itertools
from pathlib import Path

import pytest

from storage.errors import StageFailed
from tasks.corpus import ingest
from tasks.corpus.ingest import FileDigests, IngestConfig, SourceConfig, plan_slice
from tasks.corpus.reading import prose, python_docs
from tasks.corpus.reading.python_docs import DOMAIN, documents, groups

FILLER = "This sentence is here because a document of the corpus has to be of a certain length in words. " * 4

MODULE = f'''"""What the module is for.

{FILLER}
"""
raise SystemExit("this file was run")

class Machine:
    """Turns one thing into another.

    {FILLER}

    Parameters
    ----------
    size : int
        How large it is,
        in metres.
    colour : {{'red', 'green'}}, optional
        What it looks like to those who :func:`~engine.look` at it.

    Examples
    --------
    >>> Machine(3)
    Machine(size=3)

    Text after the example is kept.

    .. code-block:: python

        hidden = "code"

    .. note:: Do not open it.
    """

    def start(self):
        """Start it now, and
        wait for it.

        Args:
            how (str): By hand or
                by wire.
            why: For a reason.
        """

    def _secret(self):
        """Nobody should read this."""

def small():
    """A small function."""

def _hidden():
    """{FILLER}"""

add_newdoc("engine", "compiled", """
    Written in another language. {FILLER}
    """)
'''


def of_module(tmp_path: Path, source: str = MODULE, name: str = "engine/core.py") -> dict[str, str]:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source, encoding="utf-8")
    found = dict[str, str]()
    for text, meta in documents(tmp_path, [name]):
        assert text.startswith(f"# {meta['name']}") and meta["file"] == name
        found[meta["name"]] = text
    return found


def test_a_module_gives_a_document_per_class_and_one_for_the_rest(tmp_path: Path) -> None:
    found = of_module(tmp_path)
    assert list(found) == ["engine.core.Machine", "engine.core.compiled", "engine.core"]
    assert "## small\n\nA small function." in found["engine.core"]
    assert "Nobody" not in "".join(found.values()) and "_hidden" not in "".join(found.values())


def test_docstrings_become_paragraphs_without_code(tmp_path: Path) -> None:
    text = of_module(tmp_path)["engine.core.Machine"]
    lines = text.split("\n\n")
    assert "size : int: How large it is, in metres." in lines
    assert "colour : ('red', 'green'), optional: What it looks like to those who engine.look at it." in lines
    assert "Text after the example is kept." in lines and "Do not open it." in lines
    assert "## Machine.start" in lines and "Start it now, and wait for it." in lines
    assert "how (str): By hand or by wire." in lines and "why: For a reason." in lines
    assert ">>>" not in text and "hidden" not in text and "----" not in text


@pytest.mark.parametrize("broken", ["def f(:\n", "x = '''unclosed", "\x00", "class A:\n  '''doc'''\n\tdef"])
def test_files_that_do_not_parse_are_passed_over(tmp_path: Path, broken: str) -> None:
    assert of_module(tmp_path, f'"""Doc."""\n{broken}') == {}
    (tmp_path / "latin.py").write_bytes(b'"""caf\xe9"""')
    assert list(documents(tmp_path, ["latin.py", "missing.py"])) == []


def test_text_files_and_long_ones_are_cut_by_paragraph(tmp_path: Path) -> None:
    body = "Title\n=====\n\n" + "\n\n".join(f"Paragraph {n} says this. {FILLER}" for n in range(120))
    found = [text for text, _ in pieces(tmp_path, "guide.rst", body)]
    assert len(found) > 2 and all(len(text.split()) <= 3100 for text in found)
    assert found[1].startswith("# guide (2)\n\n")
    joined = "".join(found)
    assert all(joined.count(f"Paragraph {n} says") == 1 for n in range(120))
    code = "x = {1: 'a'}; y = f(x)[0]\n\n" * 100
    assert pieces(tmp_path, "table.txt", code) == []


def pieces(root: Path, name: str, body: str) -> list[tuple[str, dict]]:
    (root / name).write_text(body)
    return list(documents(root, [name]))


def test_comparisons_are_not_taken_for_markup() -> None:
    assert prose.prose("Where F(x) < G(x) holds for some x, and H(y) > G(y).") == [
        "Where F(x) < G(x) holds for some x, and H(y) > G(y)."
    ]
    assert prose.prose('A <b class="x">bold</b> word<br/>.') == ["A bold word."]


def test_groups_are_disjoint_sorted_and_hold_no_tests() -> None:
    domain, general = groups("domain"), groups("general")
    assert {"numpy", "scipy", "torch"} <= {group.distribution for group in domain.values()} <= DOMAIN
    others = {group.distribution for group in general.values()}
    assert "python" in others and not others & DOMAIN and "onward" not in others
    paths = [
        (str(group.root), file) for group in (*domain.values(), *general.values()) for file in group.files
    ]
    assert len(paths) == len(set(paths)) > 5000
    folders = {part for _, file in paths for part in file.split("/")[:-1]}
    assert not folders & {"tests", "test", "_vendor", "third_party", "__pycache__"}
    assert all(len(group.files) <= 10 for group in domain.values())
    assert groups.__wrapped__("domain") == domain


def test_real_documents_are_prose(tmp_path: Path) -> None:
    chosen = [group for name, group in groups("domain").items() if name.startswith(("networkx/", "mpmath/"))]
    found = [text for group in chosen for text, _ in documents(group.root, group.files)]
    assert len(found) > 300
    words = [len(text.split()) for text in found]
    assert min(words) >= 50 and max(words) < 3600
    assert sum(map(len, found)) > 500_000
    assert sum(">>>" in text for text in found) == 0
    assert all("{" not in text for text in found)


def test_help_topics_of_python_are_read_without_importing_them() -> None:
    group = next(group for group in groups("general").values() if "pydoc_data/topics.py" in group.files)
    found = {
        meta["name"]: text
        for text, meta in documents(group.root, ["pydoc_data/topics.py"])
    }  # fmt: skip
    assert len(found) > 30 and "Python: exceptions" in found
    tree = ast.parse(Path(python_docs.__file__).read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert "pydoc_data" not in imported and not {"exec", "eval", "__import__"} & {
        node.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }


def test_slices_of_the_embedded_source_go_on_from_each_other(tmp_path: Path) -> None:
    from storage.testing import artifact_of
    from tasks.corpus.documents import read_documents

    source = SourceConfig(name="docs", role="domain", weight=1, python_docs="domain")
    config = IngestConfig.of(source, slice_bytes=400_000, seed=1)
    cursor, seen, ids = None, list[str](), list[int]()
    for number in range(1, 4):
        plan = plan_slice(config, source, cursor, tmp_path, FileDigests(None))
        assert plan is not None and plan.number == number and plan.inputs.files == ()
        versions = plan.inputs.distributions
        assert versions is not None and versions["python"] == python_docs.python_version()
        assert len(versions) >= 2 and len(versions) <= len(plan.inputs.reading["units"]) + 1
        made = artifact_of(ingest, config, plan.inputs, tmp_path / "store")
        table = read_documents(made.part("documents").paths)
        seen += table["text"].to_pylist()
        ids += table["id"].to_pylist()
        cursor = made.part("cursor")
        assert made.stats["documents_dropped"] == 0 and 0 < made.stats["bytes_out"] < 600_000
    assert len(ids) == len(set(ids)) and len(set(seen)) > 0.95 * len(seen)
    libraries = {text.split(".")[0] for text in itertools.islice(seen, 400)}
    assert len(libraries) >= 2


def test_an_installation_that_is_not_on_this_machine_is_no_empty_one(tmp_path):
    with pytest.raises(StageFailed, match="is not on this machine"):
        list(documents(tmp_path / "elsewhere", ["a.py"]))


def test_name_and_version_are_read_from_the_headers_alone(tmp_path: Path) -> None:
    from importlib.metadata import PathDistribution

    def distribution(name: str, text: str) -> PathDistribution:
        (tmp_path / name).mkdir()
        (tmp_path / name / "METADATA").write_text(text)
        return PathDistribution(tmp_path / name)

    plain = "Metadata-Version: 2.1\nName: some.Thing\nVersion: 1.2\nSummary: s\n\nName: other\nVersion: 9\n"
    assert python_docs._named(distribution("a.dist-info", plain)) == ("some.Thing", "1.2")
    unusual = "metadata-version: 2.1\nname: lower\nversion: 1.3\n\nName: other\nVersion: 9\n"
    assert python_docs._named(distribution("b.dist-info", unusual)) == ("lower", "1.3")


def test_the_standard_library_has_no_file_of_installed_packages() -> None:
    _, _, root, sizes = python_docs._standard_library()
    assert "argparse.py" in sizes and "json/decoder.py" in sizes
    assert not any("site-packages" in path or "/test/" in f"/{path}" for path in sizes)
    assert all((root / path).stat().st_size == size for path, size in sizes.items())
