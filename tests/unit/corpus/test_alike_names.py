"""Files that have one name in several folders, or names that differ in little: each is read, and told apart."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from flows.lineage.graph import as_text, graph_of
from storage.store import Store
from storage.testing import artifact_of
from tasks.corpus import ingest
from tasks.corpus.ingest import plan_slice
from tasks.corpus.reading.digests import FileDigests
from tests.support.corpus.sources import config_of, documents, source_of

NAMES = (
    "2023/notes.jsonl",
    "2024/notes.jsonl",
    "2024/Notes.jsonl",
    "2024/notes.txt",
    "2024/notes.jsonl.gz",
    "2024/deep/2024/notes.jsonl",
    "notes.jsonl",
    "n\u00f6tes.jsonl",
    "no\u0308tes.jsonl",
)
LISTS = {
    "one pattern": ("**/*",),
    "a pattern for each folder": ("2023/*", "2024/**/*", "n*"),
    "each by its name": NAMES,
    "twice": ("**/*.jsonl", "2024/*", "**/*"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Each file holds one document, which says where it is."""
    for name in NAMES:
        path = tmp_path / "text" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        line = (json.dumps({"text": f"this is {name}"}, ensure_ascii=False) + "\n").encode()
        if name.endswith(".gz"):
            line = gzip.compress(line)
        path.write_bytes(f"this is {name}".encode() if name.endswith(".txt") else line)
    return tmp_path / "text"


@pytest.mark.parametrize("patterns", LISTS)
def test_each_file_is_read_once_and_has_a_name_of_its_own(
    folder: Path, tmp_path: Path, patterns: str
) -> None:
    source = source_of(*LISTS[patterns])
    config, made = config_of(source, 40), []
    while plan := plan_slice(
        config, source, made[-1].part("cursor") if made else None, folder, FileDigests(None)
    ):
        made.append(artifact_of(ingest, config, plan.inputs, tmp_path / "store"))
    table = documents(made)
    assert sorted(table["text"].to_pylist()) == sorted(f"this is {name}" for name in NAMES)
    assert len(set(table["id"].to_pylist())) == len(NAMES)
    files = {file["name"]: file["sha256"] for one in made for file in one.manifest.inputs["files"]}
    assert len(files) == len(NAMES) and all(
        Path(name).name in {Path(n).name for n in NAMES} for name in files
    )
    told = "".join(as_text(graph_of(Store(tmp_path / "store"), one)) for one in made)
    for name, digest in files.items():
        assert f"file books · {name}  " in told and f"sha256 {digest}" in told
