"""Ingest of a source of documents: slices go on from shelf to shelf, beside rows, and each document has its own id."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from storage.artifact import Artifact, Input
from storage.keys import key_inputs
from storage.testing import artifact_of
from tasks.corpus import ingest
from tasks.corpus.documents import read_documents
from tasks.corpus.ingest import FileDigests, IngestConfig, SourceConfig, plan_slice
from tasks.corpus.reading.extracted import Shelf


def part(directory: Path, name: str, texts: list[str], group: int = 4) -> Input:
    """A part of `extract`: one file in row groups of so many documents."""
    path = directory / name / "documents" / "00000" / "documents.parquet"
    path.parent.mkdir(parents=True)
    metas = [json.dumps({"file": f"{text.split()[0]}.pdf", "title": text[:3], "pages": 2}) for text in texts]
    columns = [pa.array(texts, pa.large_string()), pa.array(metas, pa.large_string())]
    pq.write_table(pa.table(columns, names=["text", "meta"]), path, row_group_size=group)
    file = str(path.relative_to(directory / name))
    return Input("extract", "k" * 64, "documents", f"digest of {name}", directory / name, (file,))


class Reading:
    def __init__(self, root: Path, slice_bytes: int, **source: object) -> None:
        self.root = root
        self.source = SourceConfig(name="notes", role="domain", weight=1, files=("*",), **source)  # type: ignore[arg-type]
        self.config = IngestConfig.of(self.source, slice_bytes=slice_bytes, seed=0)
        self.made: list[Artifact] = []

    def slice(self, shelf: Shelf) -> Artifact:
        cursor = self.made[-1].part("cursor") if self.made else None
        plan = plan_slice(self.config, self.source, cursor, self.root, FileDigests(None), None, shelf)
        assert plan is not None and plan.number == len(self.made) + 1
        self.made.append(artifact_of(ingest, plan.config, plan.inputs, self.root / "store"))
        return self.made[-1]

    def whole(self, shelf: Shelf) -> None:
        """Slices to the shelf's end."""
        while not self.slice(shelf).stats["exhausted"]:
            assert len(self.made) < 50

    def documents(self) -> list[dict[str, object]]:
        paths = [path for one in self.made for path in one.part("documents").paths]
        return list(read_documents(paths).to_pylist())


def texts(letter: str, count: int) -> list[str]:
    return [f"{letter}{number} " + "words of a document " * 5 for number in range(count)]


def test_slices_go_on_from_shelf_to_shelf(tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts("r", 7)))
    first = Shelf(part(tmp_path, "first", texts("a", 19)), {"rows.jsonl": tmp_path / "rows.jsonl"})
    second = Shelf(part(tmp_path, "second", texts("b", 5)), {})
    reading = Reading(tmp_path, 700)
    reading.whole(first)
    begun = len(reading.made)
    reading.whole(second)
    assert begun > 2 and len(reading.made) > begun
    found = reading.documents()
    assert len({row["id"] for row in found}) == len(found) == 31
    assert sorted(str(row["text"]) for row in found) == sorted(texts("a", 19) + texts("r", 7) + texts("b", 5))
    meta = json.loads(next(str(row["meta"]) for row in found if str(row["text"]).startswith("a3 ")))
    assert meta == {"file": "a3.pdf", "title": "a3 ", "pages": 2}
    assert sum(one.stats["documents_out"] for one in reading.made) == 31
    again = Reading(tmp_path, 700)
    again.whole(first)
    again.whole(second)
    assert [one.key for one in again.made] == [one.key for one in reading.made]


def test_the_key_names_the_documents_and_the_rows_that_are_read(tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\n')
    shelf = Shelf(part(tmp_path, "first", texts("a", 3)), {"rows.jsonl": tmp_path / "rows.jsonl"})
    reading = Reading(tmp_path, 10**6)
    plan = plan_slice(reading.config, reading.source, None, tmp_path, FileDigests(None), None, shelf)
    assert plan is not None
    found = key_inputs(plan.inputs)
    assert found["extracted"] == "digest of first"
    assert [one["name"] for one in found["files"]] == ["rows.jsonl"]
    rows = plan_slice(
        reading.config, reading.source, None, tmp_path, FileDigests(None), None, Shelf(None, dict(shelf.rows))
    )
    assert rows is not None and "extracted" not in key_inputs(rows.inputs), (
        "as before, where nothing was extracted"
    )


def test_fields_are_kept_by_name_and_an_empty_shelf_is_an_empty_slice(tmp_path: Path):
    reading = Reading(tmp_path, 10**6, keep_fields=["title"])
    reading.whole(Shelf(part(tmp_path, "none", []), {}))
    assert reading.made[0].stats["documents_out"] == 0 and reading.made[0].stats["exhausted"]
    reading.whole(Shelf(part(tmp_path, "some", texts("a", 2)), {}))
    assert [json.loads(str(row["meta"])) for row in reading.documents()] == [
        {"file": "a0.pdf", "title": "a0 "},  # by its file a document is explained
        {"file": "a1.pdf", "title": "a1 "},
    ]


def test_a_shelf_that_is_only_planned_has_a_slice_of_the_size_that_is_expected(tmp_path: Path):
    waiting = Input("extract", "f" * 64, "documents", "pending:extract", tmp_path / "nowhere", ())
    reading = Reading(tmp_path, 10**6)
    plan = plan_slice(
        reading.config,
        reading.source,
        None,
        tmp_path,
        FileDigests(None),
        None,
        Shelf(waiting, {}, waits=1234),
    )
    assert plan is not None and plan.estimated_bytes == 1234
    assert key_inputs(plan.inputs)["extracted"] == "pending:extract"
