from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from storage.testing import artifact_of, draft_in
from tasks.corpus import contamination, decontaminate
from tasks.corpus.benchmarks.questions import benchmark_inputs
from tasks.corpus.contamination import CountConfig, CountInputs
from tasks.corpus.decontaminate import DecontaminateConfig, DecontaminateInputs
from tests.support.corpus.quiz import LONG, QUESTIONS, SHORT, quiz, two_slices
from tests.support.corpus.slices import slice_of


def test_questions_are_counted_once_over_all_slices_and_documents_each(tmp_path: Path) -> None:
    entry, path = quiz(tmp_path, QUESTIONS)
    slices = two_slices(tmp_path)
    made = artifact_of(contamination, CountConfig(), CountInputs(slices, entry, path), tmp_path / "store")
    hits = json.loads((made.path / "hits.json").read_text())
    assert hits == {
        "quiz": {"questions": 3, "indexed": 2, "unchecked": 1, "questions_found": 2, "documents_found": 4}
    }
    assert made.stats == {"documents": 6, **hits["quiz"]}
    found = pq.read_table(made.path / "found.parquet").to_pylist()
    assert [(row["row"], row["source"]) for row in found] == [
        (0, "tales"), (1, "tales"), (0, "letters"), (0, "letters"),
    ]  # fmt: skip
    assert {row["id"] for row in found} <= {
        one for part in slices for file in part.paths for one in pq.read_table(file)["id"].to_pylist()
    }


def test_what_is_counted_is_what_decontaminate_would_have_dropped(tmp_path: Path, shared_data: Path) -> None:
    """Real text and a real benchmark: the numbers are those of the stage that drops."""
    path = shared_data / "dirty" / "part-00000.parquet"
    rows = pq.read_table(path, columns=["text"])["text"].to_pylist()
    documents = slice_of(tmp_path / "in", [text for text in rows if text][:900])
    (entry,), (questions,) = benchmark_inputs(shared_data / "benchmarks", ("sciq",))
    draft = draft_in(tmp_path)
    inputs = DecontaminateInputs(documents, (entry,), False, (questions,))
    dropped = decontaminate.run(DecontaminateConfig(benchmarks=("sciq",)), inputs, draft)
    made = artifact_of(
        contamination, CountConfig(), CountInputs((documents,), entry, questions), tmp_path / "store"
    )
    assert (made.path / "hits.json").read_bytes() == (draft.path / "hits.json").read_bytes()
    assert made.stats["documents_found"] == dropped.documents_dropped > 0


@pytest.mark.parametrize(
    ("rows", "questions"),
    [
        ([{"question": "Who?", "choices": ["he", "she"], "answer": 0}], 1),
        ([{"riddle": LONG, "solution": "none"}, {"riddle": SHORT, "solution": "green"}], 2),
    ],
)
def test_a_benchmark_that_cannot_be_looked_for_is_unchecked_and_no_error(
    tmp_path: Path, rows: list[dict[str, Any]], questions: int
) -> None:
    entry, path = quiz(tmp_path, rows)
    draft = draft_in(tmp_path)
    stats = contamination.run(CountConfig(), CountInputs(two_slices(tmp_path), entry, path), draft)
    assert (stats.questions, stats.indexed, stats.unchecked) == (questions, 0, questions)
    assert (stats.documents, stats.questions_found, stats.documents_found) == (6, 0, 0)


def test_the_key_follows_the_documents_and_the_questions_and_no_path(tmp_path: Path) -> None:
    entry, path = quiz(tmp_path, QUESTIONS)
    first, second = two_slices(tmp_path)
    store = tmp_path / "store"
    one = artifact_of(contamination, CountConfig(), CountInputs((first,), entry, path), store)
    moved = tmp_path / "elsewhere.jsonl"
    moved.write_bytes(path.read_bytes())
    assert (
        artifact_of(contamination, CountConfig(), CountInputs((first,), entry, moved), store).key == one.key
    )
    assert (
        artifact_of(contamination, CountConfig(), CountInputs((first, second), entry, path), store).key
        != one.key
    )
