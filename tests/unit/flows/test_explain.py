"""What `onward explain` says of a document, at each stage that can change, keep or drop it."""

from __future__ import annotations

import json
import re
import shutil
from itertools import dropwhile, takewhile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from flows.lineage.edits import SHOWN_LINES
from flows.lineage.explain import fate
from flows.lineage.find import find, shown
from storage.atomic import make_writable
from storage.catalog import Catalog
from storage.errors import DamagedArtifact
from storage.store import Store
from storage.testing import artifact_of
from tasks.corpus import contamination
from tasks.corpus.benchmarks.questions import benchmark_inputs
from tasks.corpus.contamination import CountConfig, CountInputs
from tasks.corpus.dedup import DedupConfig
from tasks.corpus.documents import read_documents
from tasks.corpus.duplicates.paragraphs import ParagraphConfig
from tasks.corpus.filter import PUBLISHED, FilterConfig
from tests.support.corpus.line import Line, gpt2, write_source
from tests.support.corpus.prose import sentences

QUESTION = "Which of these rivers, if any, had carried the grain of the northern plains down to the sea?"
LATER = "How many of the old mills that stood along the eastern bank were still in use that year?"
BANNER = "This line of good length stands above each of the chapters, and it says nothing."
NOTICE = "This work is licensed to everybody under the same terms as the last one."
MAIL = "ada@analytical.example.com"
PAIR = {"first", "second"}


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
        "cut": f"{texts[2]}\nmenu\nlogin\nsearch\nSwitch on JavaScript \x1b to write to {MAIL}"
        + " about it" * 40,
        "cited": f"{texts[7]}\nThe mill stood there[12] for many years[citation needed] after the war.",
        "listed": "\n".join([texts[8], *(f"item {number}" for number in range(SHOWN_LINES + 4))]),
        "asked": f"{texts[3]}\n{QUESTION}",
        "later": f"{texts[4]}\n{LATER}",
        "first": f"{BANNER}\n{texts[5]}",
        "second": f"{BANNER}\n{texts[6]}",
        "emptied": f"{BANNER}\n{NOTICE}",
    }
    for name in PAIR:
        pages[name] += f"\n{BANNER.upper()}"
    pages["plain"] += f"\n{NOTICE}"
    more = {f"page {number}": text for number, text in enumerate(texts[9:40])}
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


def told_by(corpus: tuple[Catalog, dict[str, int]], name: str, stage: str) -> list[str]:
    """The lines below a stage's own: what it changed."""
    lines = iter(lines_of(corpus, name))
    below = dropwhile(lambda line: line.split()[0] != stage, lines)
    next(below)
    return [line.strip() for line in takewhile(lambda line: line.startswith(" " * 10), below)]


def texts_of(corpus: tuple[Catalog, dict[str, int]], name: str, *stages: str) -> list[str]:
    catalog, ids = corpus
    found = []
    for stage in stages:
        (artifact,) = catalog.store.artifacts(stage)
        table = read_documents(artifact.part("documents").paths, ["id", "text"])
        found.append(dict(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))[ids[name]])
    return found


def sizes(corpus: tuple[Catalog, dict[str, int]], name: str, *stages: str) -> str:
    before, after = map(len, texts_of(corpus, name, *stages))
    return f"{before:,} characters in, {after:,} out"


def test_what_was_masked_is_counted_and_not_shown(corpus) -> None:
    told = told_by(corpus, "mailed", "filter")[0]
    assert told.startswith("edited (e-mail addresses masked: 1")
    assert told.endswith(sizes(corpus, "mailed", "dedup", "filter"))
    assert MAIL not in "\n".join(lines_of(corpus, "mailed"))


def test_lines_that_a_rule_cut_are_shown_with_the_rule(corpus) -> None:
    before, after = texts_of(corpus, "cut", "dedup", "filter")
    gone = [line for line in before.splitlines() if line.strip() and line.strip() not in after.splitlines()]
    told, *shown = told_by(corpus, "cut", "filter")
    assert told == f"edited (lines cut: {len(gone)}): {sizes(corpus, 'cut', 'dedup', 'filter')}"
    assert len(shown) == len(gone) and "− menu  (c4_short_lines)" in shown
    long = shown[-1]
    assert long.startswith("− Switch on JavaScript · to write to |||EMAIL_ADDRESS||| about it")
    assert long.endswith(" …  (c4_javascript_lines)") and len(long) < 200


def test_citations_are_counted(corpus) -> None:
    told, *shown = told_by(corpus, "cited", "filter")
    before, after = texts_of(corpus, "cited", "dedup", "filter")
    assert "citations cut: 2)" in told and told.endswith(sizes(corpus, "cited", "dedup", "filter"))
    assert before.endswith("there[12] for many years[citation needed] after the war.")
    assert after.endswith("there for many years after the war.")
    assert not any("many years" in line for line in shown)


def test_repeated_lines_are_shown_where_they_were_taken_out(corpus) -> None:
    banners = [f"− {BANNER}", f"− {BANNER.upper()}"]
    told = {name: told_by(corpus, name, "dedup") for name in PAIR}
    (edited,) = (name for name in PAIR if banners[0] in told[name])
    (kept,) = PAIR - {edited}
    assert not {*banners} & {*told[kept]}, "it stood there first, both times"
    before, after = texts_of(corpus, edited, "ingest", "dedup")
    gone = [line for line in before.split("\n") if line and line not in after.split("\n")]
    line, *shown = told[edited]
    assert shown == [f"− {one}" for one in gone] and {*banners} <= {*shown}
    size = sum(len(one.encode()) + 1 for one in gone)
    counted = f"edited (lines that stood in earlier documents: {len(gone)}): {size:,} bytes taken out, "
    assert line == counted + sizes(corpus, edited, "ingest", "dedup")


def test_a_document_of_repeated_lines_alone_is_dropped_with_them_shown(corpus) -> None:
    assert any("dropped: repeated_paragraphs (2)" in line for line in lines_of(corpus, "emptied"))
    (*_, one, two, _) = lines_of(corpus, "emptied")
    assert [one.strip(), two.strip()] == [f"− {BANNER}", f"− {NOTICE}"]


def test_rules_are_named_only_where_they_give_the_text_that_was_left(corpus, monkeypatch) -> None:
    """Another version of the stage, or rules that give another text: what the two texts show by themselves."""
    from tasks.corpus import filter as stage

    with monkeypatch.context() as patched:
        patched.setattr(stage, "VERSION", stage.VERSION + 1)
        by_looks = told_by(corpus, "cut", "filter")
    with monkeypatch.context() as patched:
        patched.setitem(stage.c4.LINE_RULES, "c4_short_lines", 40)
        assert told_by(corpus, "cut", "filter") == by_looks
    (told,) = by_looks
    assert told.startswith("edited (lines cut: ")
    assert told.endswith(sizes(corpus, "cut", "dedup", "filter"))


def test_of_many_lines_the_first_are_shown(corpus) -> None:
    told, *shown = told_by(corpus, "listed", "filter")
    assert f"lines cut: {SHOWN_LINES + 4})" in told
    assert len(shown) == SHOWN_LINES + 1 and shown[-1] == "− and 4 more"


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


def test_a_page_with_a_held_out_text_and_a_copy_that_the_filter_made_name_the_other_document(
    tmp_path: Path, shared_data: Path
) -> None:
    menu = "Home page\nLog in\nNews"
    texts = [sentences(12, seed) for seed in range(40)]
    write_source(tmp_path / "tales.jsonl", [{"text": text} for text in texts])
    pages = [*texts[20:], *(sentences(12, seed) for seed in range(100, 104))]
    write_source(tmp_path / "letters.jsonl", [{"text": f"{menu}\n{page}"} for page in pages])
    line = Line(tmp_path, tmp_path / "store", gpt2(shared_data, tmp_path / "gpt2"), ("tales", "letters"))
    line.slice_bytes, line.holdout, line.dedup = 10**7, 0.3, DedupConfig(minhash=None)
    line.filter = FilterConfig(language="any", gopher=False, fineweb=False, pii="off")
    one, two = line.read().slices
    catalog = Catalog(Store(line.store))
    held = set(read_documents(one.artifacts["decontaminate"].part("holdout").paths)["id"].to_pylist())
    first = read_documents(one.artifacts["filter"].part("documents").paths).to_pylist()
    named = {row["text"]: row["id"] for row in first}
    dropped = pq.read_table(two.artifacts["decontaminate"].part("dropped").only()).to_pylist()
    assert {row["reason"] for row in dropped} == {"held_out_overlap", "copy_after_filter"}
    given = {
        row["id"]: row["text"]
        for row in read_documents(two.artifacts["filter"].part("documents").paths).to_pylist()
    }
    for row in dropped:
        other = named[given[row["id"]]]
        said = "in common with held-out document" if other in held else "made it a copy of document"
        (told,) = (text for text in fate(catalog, row["id"]).splitlines() if "dropped" in text)
        assert told.startswith(f"  decontaminate  dropped: {row['reason']} (1)  ")
        assert f" {said} {other} of tales  decontaminate/" in told
    assert len(dropped) == 20


def test_nothing_is_told_of_a_damaged_store(corpus: tuple[Catalog, dict[str, int]], tmp_path: Path) -> None:
    catalog, ids = corpus
    store = Store(shutil.copytree(catalog.store.root, tmp_path / "store", symlinks=True))
    assert fate(Catalog(store), ids["plain"]) == fate(catalog, ids["plain"]).replace(
        str(catalog.store.root), str(store.root)
    )
    (artifact,) = store.artifacts("filter")
    (table,) = artifact.part("documents").paths
    sound = table.read_bytes()
    table.chmod(0o644)
    table.write_bytes(sound[:4] + bytes(len(sound) - 8) + sound[-4:])
    with pytest.raises(DamagedArtifact, match=r"document 7.* filter/.*part\.parquet has other bytes"):
        fate(Catalog(store), 7)
    table.write_bytes(sound)
    (artifact,) = store.artifacts("ingest")
    make_writable(artifact.path)
    (artifact.path / "manifest.json").write_bytes(b"{")
    with pytest.raises(DamagedArtifact, match=r"ingest/.*manifest\.json cannot be read"):
        fate(Catalog(store), ids["plain"])


def test_a_document_is_found_by_its_words_and_by_its_other_fields(corpus) -> None:
    catalog, ids = corpus
    [found] = find(catalog, "the MILLER of  the\told village")
    assert (found.id, found.where) == (ids["short"], "text") and "had two sons" in found.around
    assert {one.id for one in find(catalog, QUESTION)} == {ids["asked"]}
    banners = {ids[name] for name in ("first", "second", "emptied")}
    assert {one.id for one in find(catalog, BANNER)} == banners  # as it was read
    assert find(catalog, "mill(er") == [] and find(catalog, "  ") == []  # no pattern, and nothing to look for
    [named] = [one for one in find(catalog, "Page 12") if one.where == "name"]
    assert named.id == ids["page 12"]
    assert len(find(catalog, "the", most=3)) == 3
    told = shown(find(catalog, BANNER), BANNER)
    assert told.startswith("3 documents hold “This line") and str(ids["second"]) in told
