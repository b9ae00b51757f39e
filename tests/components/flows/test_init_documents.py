"""A first configuration for a folder of mixed files: kinds found, tokens estimated from a sample, and what is not read."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.config import load_config
from flows.runs.checks import check
from flows.runs.first_config import first_config
from storage.errors import ConfigError
from tests.support.papers import docx, epub, pdf, word
from tests.support.small import write_text


def test_thirty_mixed_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_text(tmp_path / "words", 240)
    lines = (tmp_path / "words" / "domain-0.jsonl").read_text().splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    monkeypatch.setenv("ONWARD_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "papers"
    folder.mkdir()
    random.Random(0).shuffle(texts)
    for number in range(9):
        some = texts[3 * number : 3 * number + 3]
        (folder / f"{number}.docx").write_bytes(docx("".join(map(word, some))))
        (folder / f"{number}.html").write_text(
            f"<html><body><main><p>{'</p><p>'.join(some)}</p></main></body></html>"
        )
        (folder / f"{number}.md").write_text(
            "# Note\n\n" + "\n\n".join(texts[30 + 3 * number : 33 + 3 * number])
        )
    (folder / "book.epub").write_bytes(epub([f"<p>{text}</p>" for text in texts[60:120]]))
    (folder / "scan.pdf").write_bytes(pdf([[]], images=True))
    (folder / "rows.jsonl").write_text("\n".join(lines[:20]) + "\n")
    (folder / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    done = CliRunner().invoke(app, ["init", "papers"])
    assert done.exit_code == 0, done.exception
    said = done.stderr
    assert (
        "kinds: " in said
        and "Word (DOCX) 9" in said
        and "EPUB 1" in said
        and "rows (JSON lines, Parquet) 1" in said
    )
    assert "no_text 1 (scan.pdf)" in said and "not read: picture.png (image" in said
    run = load_config(tmp_path / "papers.yaml")
    check(run)
    assert run.corpus.sources[0].files == ("papers/**",)
    whole = 2 * sum(map(len, texts[:27])) + sum(map(len, texts[30:57])) + sum(map(len, texts[60:120]))
    whole += sum(len(json.loads(line)["text"]) for line in lines[:20])
    told = (
        float(said.partition(" MB of text")[0].rpartition(" ")[2]) * 1e6
        if " MB of text" in said
        else 1000 * float(said.partition(" KB of text")[0].rpartition(" ")[2].replace(",", ""))
    )
    assert 0.9 * whole < told < 1.1 * whole


def test_a_folder_of_which_nothing_can_be_read_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    (tmp_path / "none/a.pdf").write_bytes(b"%PDF-1.7\n")
    with pytest.raises(ConfigError, match=r"a\.pdf"):
        first_config(tmp_path / "none")
