"""What `onward explain` says of a document, at each stage that can change, keep or drop it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from flows.explain import fate
from storage.catalog import Catalog
from storage.store import Store
from storage.testing import artifact_of
from tasks.corpus import contamination
from tasks.corpus.contamination import CountConfig, CountInputs
from tasks.corpus.dedup import DedupConfig
from tasks.corpus.documents import read_documents
from tasks.corpus.filter import PUBLISHED, FilterConfig
from tasks.corpus.paragraphs import ParagraphConfig
from tasks.corpus.questions import benchmark_inputs
from tests.tasks.corpus.line import Line, gpt2, write_source

QUESTION = "Which of these rivers, if any, had carried the grain of the northern plains down to the sea?"
LATER = "How many of the old mills that stood along the eastern bank were still in use that year?"
BANNER = "This line of good length stands above each of the chapters, and it says nothing."
MAIL = "ada@analytical.example.com"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> tuple[Catalog, dict[str, int]]:
    """A catalog of a corpus of real pages with one of everything, and the ids of those by name."""
    root = tmp_path_factory.mktemp("corpus")
    file = sorted((shared_data / "edu").glob("*.parquet"))[0]
    texts = [
        text[:3000] for text in pq.read_table(file, columns=["text"])["text"].to_pylist() if len(text) > 6000
    ]
    pages = {
        "plain": texts[0],
        "copy": texts[0],
        "near": texts[0].replace(" the ", " the very ", 2),
        "short": "The miller of the old village had two sons, and that was all.",
        "mailed": f"{texts[1]}\nWrite to {MAIL} about it, she will answer every one of you.",
        "cut": f"{texts[2]}\nmenu\nlogin\nsearch",
        "asked": f"{texts[3]}\n{QUESTION}",
        "later": f"{texts[4]}\n{LATER}",
        "first": f"{BANNER}\n{texts[5]}",
        "second": f"{BANNER}\n{texts[6]}",
    }
    more = {f"page {number}": text for number, text in enumerate(texts[7:40])}
    rows = [{"text": text, "name": name} for name, text in (pages | more).items()]
    write_source(root / "pages.jsonl", rows)
    for name, question in (("quiz", QUESTION), ("riddles", LATER)):
        (root / "benchmarks" / name).mkdir(parents=True)
        row = {"question": question, "choices": ["none", "all"], "answer": 0}
        (root / "benchmarks" / name / "test.jsonl").write_text(json.dumps(row) + "\n")
    others = {
        rule: None for rule in PUBLISHED if rule.startswith("gopher_") and rule != "gopher_too_few_words"
    }
    filters = FilterConfig(language="any", c4_curly_brackets=False, fineweb=False, thresholds=others)
    line = Line(
        root, root / "store", gpt2(shared_data, root / "gpt2"), ("pages",), slice_bytes=10**7, filter=filters
    )
    line.dedup = DedupConfig(paragraphs=ParagraphConfig())
    line.benchmarks, line.files = ("quiz",), root / "benchmarks"
    line.read().pack(50, 128)
    (entry,), (path,) = benchmark_inputs(line.files, ("riddles",))
    documents = (line.slices[0].artifacts["decontaminate"].part("documents"),)
    artifact_of(contamination, CountConfig(), CountInputs(documents, entry, path), line.store)
    table = read_documents(line.slices[0].artifacts["ingest"].part("documents").paths)
    names = [json.loads(meta)["name"] for meta in table["meta"].to_pylist()]
    return Catalog(Store(line.store)), dict(zip(names, table["id"].to_pylist(), strict=True))


def lines_of(corpus: tuple[Catalog, dict[str, int]], name: str) -> list[str]:
    catalog, ids = corpus
    return fate(catalog, ids[name]).splitlines()


def stages_of(lines: list[str]) -> list[str]:
    return [line.split()[0] for line in lines[1:] if not line.startswith(" " * 10)]


def test_copies_name_the_document_that_stayed(corpus) -> None:
    kept = [
        name
        for name in ("plain", "copy", "near")
        if not any("dropped" in line for line in lines_of(corpus, name))
    ]
    assert len(kept) == 1
    for name in {"plain", "copy", "near"} - set(kept):
        *_, last, model = lines_of(corpus, name)
        assert "no model" in model and last.split()[0] == "dedup" and "duplicate (" in last
        assert f"{corpus[1][kept[0]]} of pages" in last


def test_a_filtered_document_has_its_reason_what_was_measured_and_the_limit(corpus) -> None:
    text = "\n".join(lines_of(corpus, "short"))
    assert re.search(r"  filter         dropped: gopher_too_few_words \(1[2-5]\)  at least 50  filter/", text)
    assert "decontaminate" not in text


def test_edits_are_told_beside_what_was_kept(corpus) -> None:
    assert "edited (e-mail addresses masked: 1" in "\n".join(lines_of(corpus, "mailed"))
    cut = next(line for line in lines_of(corpus, "cut") if "characters in" in line)
    assert "lines cut: " in cut and "masked" not in cut


def test_repeated_lines_are_told_where_they_were_taken_out(corpus) -> None:
    told = [
        line for name in ("first", "second") for line in lines_of(corpus, name) if "earlier documents" in line
    ]
    assert len(told) == 1 and "bytes taken out" in told[0]


def test_a_benchmarks_question_is_named_whether_it_cost_the_document_its_place_or_was_counted_afterwards(
    corpus,
) -> None:
    dropped = lines_of(corpus, "asked")
    assert any(
        "decontaminate  dropped: benchmark_overlap" in line and "quiz:0 which of these" in line
        for line in dropped
    )
    later = lines_of(corpus, "later")
    held = any("held out" in line for line in later)
    assert any(line.endswith("question found afterwards: riddles:0") for line in later) != held


def test_every_document_ends_in_one_place(corpus) -> None:
    catalog, ids = corpus
    ends = {"kept": 0, "held": 0, "dropped": 0}
    for one in ids.values():
        lines = [
            line for line in fate(catalog, one).splitlines() if "decontaminate " in line or "dropped:" in line
        ]
        assert len(lines) == 1, lines
        ends["dropped" if "dropped:" in lines[0] else "held" if "held out" in lines[0] else "kept"] += 1
    assert all(ends.values())


def test_an_unknown_document_is_said_to_be_unknown(corpus) -> None:
    assert "has seen it" in fate(corpus[0], 1)
