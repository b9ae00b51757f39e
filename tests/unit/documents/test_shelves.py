"""A source of documents: which it is, what its files are, and how they lie on shelves."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from flows.config import RunConfig
from flows.dag.requests import Requests
from storage.errors import ConfigError
from storage.store import Making, Store
from storage.store_places import is_store
from tasks import stages
from tasks.corpus.reading.digests import FileDigests
from tasks.corpus.reading.hub import Remembered
from tasks.corpus.reading.sources import IngestConfig, SourceConfig
from tasks.documents import extract
from tasks.documents.folder import Listing, of_source
from tasks.documents.read import EXTRACTORS, extractor_version
from tasks.documents.shelves import Shelves, shelves_in, shelves_of
from tests.support import ROOT
from tests.support.papers import docx, pdf, word, zipped
from tests.support.read_here import ReadsHere

LINE = b'{"text": "one"}\n'
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
PAPER = pdf([[(72, 700, "words of a paper")]])


def listing(base: Path, *patterns: str) -> Listing | None:
    return of_source("notes", patterns or ("**",), base, "text")


def shelves(
    base: Path, memory: Remembered, slice_bytes: int = 10**9, order: str = "seeded", *, fix: bool = True
) -> Shelves:
    source = SourceConfig(name="notes", role="domain", weight=1, files=("**",), order=order)  # type: ignore[arg-type]
    found = shelves_of(
        IngestConfig.of(source, slice_bytes=slice_bytes, seed=1), source, base, memory, fix=fix
    )
    assert found is not None
    return found


@pytest.mark.parametrize(
    "files",
    [
        {"a.jsonl": LINE},
        {"a.txt": b"words", "b.md": b"# A", "c.jsonl.gz": gzip.compress(LINE)},
        {"a.jsonl": LINE, "b.png": b"\x89PNG\r\n\x1a\n\0"},
        {"a.jsonl": b'{\n "text": 1\n}\n'},
        {"a.png": b"\x89PNG\r\n\x1a\n\0"},
    ],
)
def test_rows_and_texts_and_what_is_to_be_mended_are_as_they_were(tmp_path: Path, files: dict[str, bytes]):
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    assert listing(tmp_path) is None


def test_the_files_of_a_mixed_folder(tmp_path: Path):
    files = {
        "a.pdf": PAPER,
        "b.zip": zipped({"x": "words"}),
        "c": docx(word("words")),
        "d.jsonl": LINE * 9,
        "e.json": b'{\n "text": 1\n}\n',
        "f.jsonl": PAPER,
        "g.md": b"# A\n\nwords",
        "h.png": b"\x89PNG\r\n\x1a\n\0",
        "i.csv": b"id,text\n1,one\n2,two\n",
        "j.txt": b"",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    found = listing(tmp_path)
    assert found is not None
    assert dict(found.kinds) == {
        "a.pdf": "pdf",
        "b.zip": "zip",
        "c": "docx",
        "f.jsonl": "pdf",
        "g.md": "markdown",
        "i.csv": "table",
    }
    assert dict(found.rows) == {"d.jsonl": 9 * len(LINE)}
    assert {name: aside.reason for name, aside in found.aside.items()} == {
        "e.json": "not_read",
        "h.png": "image",
        "j.txt": "empty",
    }


def test_without_the_packages_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a.pdf").write_bytes(PAPER)
    monkeypatch.setattr("tasks.documents.folder.missing", lambda: ("pypdfium2",))
    with pytest.raises(
        ConfigError, match=r"a\.pdf is a PDF document, and reading it needs pypdfium2: pip install"
    ):
        listing(tmp_path)
    (tmp_path / "a.pdf").unlink()
    (tmp_path / "a.txt").write_text("words")
    assert listing(tmp_path) is None


def test_files_that_came_later_make_shelves_of_their_own(tmp_path: Path):
    memory = Remembered(tmp_path / "cache.sqlite")
    folder = tmp_path / "folder"
    folder.mkdir()
    for number in range(9):
        (folder / f"{number}.html").write_text("<html><p>words</p></html>" * 9)
    first = shelves(folder, memory, 200)
    assert len(first.names) > 2 and sorted(sum(first.names, ())) == [f"{n}.html" for n in range(9)]
    assert list(sum(first.names, ())) != sorted(sum(first.names, ())), "in a seeded order"
    for name in ("0a.html", "5a.html"):
        (folder / name).write_text("<html><p>more</p></html>")
    (folder / "rows.jsonl").write_bytes(LINE)
    later = shelves(folder, Remembered(memory.path), 200)
    assert later.names[: len(first.names)] == first.names and not later.gone
    assert sorted(sum(later.names[len(first.names) :], ())) == ["0a.html", "5a.html", "rows.jsonl"]
    assert shelves(folder, Remembered(memory.path), 200).names == later.names
    (folder / first.names[0][0]).unlink()
    without = shelves(folder, Remembered(memory.path), 200)
    assert without.gone == (first.names[0][0],) and without.names[-1] == later.names[-1]
    anew = shelves(folder, Remembered(None), 200)
    assert sorted(sum(anew.names, ())) == sorted(sum(without.names, ())) and anew.names != without.names


def test_files_stay_in_their_order_where_that_is_asked(tmp_path: Path):
    for number in range(9):
        (tmp_path / f"{number}.html").write_text("<html><p>words</p></html>")
    found = shelves(tmp_path, Remembered(None), order="as_given")
    assert found.names == (tuple(f"{number}.html" for number in range(9)),)


def test_the_key_names_the_contents_and_the_extractors_of_the_kinds(tmp_path: Path):
    (tmp_path / "a.pdf").write_bytes(PAPER)
    (tmp_path / "b.html").write_text("<html><p>words</p></html>")
    (tmp_path / "d.jsonl").write_bytes(LINE)
    found = shelves(tmp_path, Remembered(None))
    inputs = extract.extract_inputs(found, 0, FileDigests(None))
    assert {one["name"] for one in inputs.files} == {"a.pdf", "b.html"} and set(found.rows(0)) == {"d.jsonl"}
    assert inputs.extractors == {kind: extractor_version(kind) for kind in ("html", "pdf")}
    assert "pypdfium2" in inputs.extractors["pdf"]
    assert set(extract.components(extract.ExtractConfig(name="notes"), inputs)) <= set(extract.COMPONENTS)
    (tmp_path / "c.zip").write_bytes(zipped({"x": "words"}))
    whole = extract.extract_inputs(shelves(tmp_path, Remembered(None)), 0, FileDigests(None))
    assert set(whole.extractors) == set(extract.COMPONENTS), "an archive may hold any kind"


def pages(folder: Path, *names: str) -> None:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text("<html><p>words</p></html>" * 9)


def test_a_plan_fixes_no_shelves(tmp_path: Path):
    memory = shelves_in(tmp_path / "store")
    assert memory.path is not None
    pages(tmp_path / "a", "1.html", "2.html")
    looked = shelves(tmp_path / "a", memory, fix=False)
    assert sorted(looked.names[0]) == ["1.html", "2.html"] and not memory.path.exists()
    pages(tmp_path / "a", "3.html")
    assert len(shelves(tmp_path / "a", memory).names) == 1, "as if nobody had looked"
    pages(tmp_path / "a", "4.html")
    assert shelves(tmp_path / "a", memory, fix=False).names[1:] == (("4.html",),)
    pages(tmp_path / "a", "5.html")
    assert sorted(shelves(tmp_path / "a", memory).names[1]) == ["4.html", "5.html"]


def test_the_memory_of_shelves_is_a_part_of_the_store_and_no_cache(tmp_path: Path):
    store = Store(tmp_path / "store")
    pages(tmp_path / "a", "1.html")
    shelves(tmp_path / "a", shelves_in(store.root))
    (store.root / ".lock").touch()
    assert (store.root / "shelves.sqlite").is_file() and is_store(store.root)
    assert not list(store.artifacts()) and not list(store.unreadable(stages.NAMES))


def test_each_project_has_its_own_shelves_and_one_that_moved_keeps_them(tmp_path: Path):
    memory = Remembered(tmp_path / "shelves.sqlite")
    pages(tmp_path / "a", "1.html", "2.html")
    shelves(tmp_path / "a", memory)
    pages(tmp_path / "a", "3.html")
    first = shelves(tmp_path / "a", memory)
    assert [len(shelf) for shelf in first.names] == [2, 1]
    pages(tmp_path / "b", "1.html", "8.html")
    other = shelves(tmp_path / "b", memory)
    assert [sorted(shelf) for shelf in other.names] == [["1.html", "8.html"]] and not other.gone
    (tmp_path / "a").rename(tmp_path / "moved")
    for again in (memory, Remembered(memory.path)):
        assert shelves(tmp_path / "moved", again, fix=False).names == first.names
    pages(tmp_path / "moved", "0.html")
    moved = shelves(tmp_path / "moved", memory)
    assert moved.names == (*first.names, ("0.html",)) and not moved.gone
    assert shelves(tmp_path / "moved", Remembered(memory.path)).names == moved.names


def test_whatever_tells_kind_or_text_of_a_file_is_in_the_key():
    """`kind_of` asks chardet of every file that its first bytes do not tell; what an extractor imports, its text is of."""
    of_bytes = {"pdf", "epub", "docx", "pptx", "odt", "odp", "sheets", "rtf", "msg"}
    for kind, one in EXTRACTORS.items():
        if kind not in of_bytes and kind != "warc":
            assert "chardet" in one.packages, kind
        module = one.function.partition(".")[0]
        source = (ROOT / "tasks" / "documents" / f"{module}.py").read_text()
        if kind in ("epub", "msg"):
            assert "read_html" in source and {"lxml", "chardet"} <= set(one.packages)
    assert "olefile" in EXTRACTORS["sheets"].packages, "it tells an XLS"


def test_only_what_has_to_be_mended_is_named(tmp_path: Path):
    pages(tmp_path / "papers", "1.html", "2.html")
    (tmp_path / "papers" / "b.bin").write_bytes(POINTER)
    with pytest.raises(ConfigError) as refused:
        of_source("notes", ("papers/**",), tmp_path, "text")
    assert str(refused.value) == (
        "corpus.sources: notes: 1 of 3 files cannot be read: papers/b.bin is a Git LFS pointer and not the data: "
        "fetch the data with git lfs pull"
    )
    for page in ("1.html", "2.html"):
        (tmp_path / "papers" / page).unlink()
    assert of_source("notes", ("papers/**",), tmp_path, "text") is None, "ingest's own check names it"


def test_a_first_document_in_a_folder_of_text_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tasks.documents.extract_shard.Reader", ReadsHere)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("words of a text " * 20)
    run = RunConfig.model_validate(
        {
            "name": "notes",
            "store": str(tmp_path / "store"),
            "corpus": {
                "sources": [
                    {
                        "name": "notes",
                        "role": "domain",
                        "weight": 1,
                        "files": [str(tmp_path / "notes" / "**")],
                    }
                ]
            },
            "model": {"base": "org/model"},
            "training": {"token_budgets": ["4K"]},
        }
    )
    store, said = Store(run.store_path), list[str]()
    source = run.corpus.sources[0]

    def ask(**options: bool) -> Requests:
        said.clear()
        return Requests(run, store, warn=said.append, **options)

    assert ask().shelves("notes") is None and not said
    store.ensure(ask().ingest(source, None), Making())
    pages(tmp_path / "notes", "b.html")
    for looks in (True, False):
        requests = ask(looks=looks)
        assert requests.shelves("notes") is not None and len(said) == 1
        assert "source notes was read as plain text before, and now holds documents" in said[0]
    store.ensure(requests.extract(source, 0), Making())
    assert ask().shelves("notes") is not None and not said
