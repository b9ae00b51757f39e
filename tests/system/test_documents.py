"""A folder of mixed files from the command line: `init`, `run`, `explain`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support import small
from tests.support.papers import docx, epub, pdf, word

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("runs_share_a_server")]


def test_a_folder_of_mixed_files(tmp_path: Path) -> None:
    small.write_text(tmp_path / "text", 160)
    lines = (tmp_path / "text" / "domain-0.jsonl").read_text().splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    folder = tmp_path / "papers"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number}.docx").write_bytes(docx("".join(map(word, texts[number : number + 4]))))
    (folder / "book.epub").write_bytes(epub([f"<p>{text}</p>" for text in texts[20:60]]))
    (folder / "scan.pdf").write_bytes(pdf([[]], images=True))
    (folder / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    written = small.onward(tmp_path, "init", "papers")
    assert written.returncode == 0 and "Word (DOCX) 12" in written.stderr, written.stderr
    done = small.run_json(tmp_path, tmp_path / "papers.yaml", "--until", "ingest")
    assert {row["stage"] for row in done["stages"]} == {"extract", "ingest"}
    (extract,) = [row for row in done["stages"] if row["stage"] == "extract"]
    assert (extract["documents_in"], extract["documents_out"]) == (15, 13)
    told = small.onward(tmp_path, "explain", "book.epub#2", "--config", "papers.yaml")
    assert "page 2 read" in told.stdout, told.stdout + told.stderr
