"""`onward inspect`: what it says of a folder, as tables, as JSON, and as rows for a source."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from flows.cli import app
from storage.errors import ConfigError
from tests.support.papers import docx, epub, pdf, word, zipped

SENTENCE = "This is a sentence in English that says something about the weather. "


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("folder")
    (path / "sub").mkdir()
    (path / ".hidden").write_text("unseen")
    (path / "a").write_bytes(pdf([[(72, 700, SENTENCE)], []], images=True))
    (path / "sub" / "b.zip").write_bytes(
        zipped({"x.txt": docx(word(SENTENCE * 9)), "y": b"\x89PNG\r\n\x1a\n"})
    )
    (path / "c.pdf").write_bytes(
        epub([f"<p>{SENTENCE * 300}</p>", "<p>Das ist ein Satz auf Deutsch, der etwas sagt.</p>"])
    )
    (path / "d").write_bytes("Привет, мир! Это русский текст для проверки кодировки.".encode("cp1251"))
    (path / "e.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    return path


def invoked(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["inspect", *arguments], env={"COLUMNS": "160"})


def test_a_folder_as_json(folder):
    found = json.loads(invoked(str(folder), "--json").stdout)
    assert (found["files"], found["documents"], found["pages"]) == (5, 4, 3)
    assert {
        name: (kind["documents"], kind["lost_files"], kind["lost_pages"])
        for name, kind in found["kinds"].items()
    } == {
        "epub": (1, 0, 0),
        "docx": (1, 0, 0),
        "pdf": (1, 0, 1),
        "text": (1, 0, 0),
        "other": (0, 1, 0),
    }
    assert list(found["languages"]) == ["en", "ru"] and found["encodings"] == {"cp1251": 1}
    assert found["rows"] == ["e.jsonl"]
    assert {reason: (lack["files"], lack["pages"]) for reason, lack in found["lost"].items()} == {
        "image": (1, 0),
        "no_text": (0, 1),
    }
    assert found["lost"]["image"]["places"][0]["place"] == "sub/b.zip!y"
    assert [sample["kind"] for sample in found["samples"]] == ["epub", "docx", "pdf"]


def test_a_folder_as_tables(folder):
    out = invoked(str(folder)).stdout
    for words in (
        "5 files",
        "Word (DOCX)",
        "rows (JSON lines, Parquet)",
        "what would be lost",
        "sub/b.zip!y",
        "languages",
        "title: A book",
    ):
        assert words in out


def test_texts_are_written_as_rows(folder, tmp_path):
    target = tmp_path / "texts.jsonl"
    assert invoked(str(folder), "--to", str(target)).exit_code == 0
    rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert [(row["place"], row["kind"]) for row in rows] == [
        ("a", "pdf"),
        ("c.pdf", "epub"),
        ("d", "text"),
        ("sub/b.zip!x.txt", "docx"),
    ]
    assert rows[1]["title"] == "A book" and rows[3]["text"] == (SENTENCE * 9).strip()


def test_one_file(folder):
    assert json.loads(invoked(str(folder / "d"), "--json").stdout)["documents"] == 1


def test_what_is_not_there_is_said(tmp_path):
    assert "is not there" in str(invoked(str(tmp_path / "none")).exception)
    (tmp_path / "there").write_text("x")
    refused = invoked(str(tmp_path), "--to", str(tmp_path / "there"))
    assert isinstance(refused.exception, ConfigError) and "is there already" in str(refused.exception)
