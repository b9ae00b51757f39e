from __future__ import annotations

import dataclasses
import json
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest

from storage.artifact import Artifact
from storage.store import Request, Store
from storage.testing import artifact_of, draft_in
from tasks.corpus import contamination, shares
from tasks.corpus.benchmarks.questions import benchmark_inputs
from tasks.corpus.contamination import CountConfig, CountInputs
from tasks.corpus.documents import read_documents
from tasks.corpus.filter import FilterConfig
from tasks.pages.blocks import Text
from tasks.pages.data import data
from tasks.pages.data.data import data_inputs
from tasks.pages.data.examples import LENGTH, Reader, visible
from tasks.pages.data.facts import CopyGroups, GroupSize
from tasks.pages.data.figures import reasons_caption
from tasks.pages.data.inputs import DataConfig
from tasks.pages.data.page import blocks_of
from tasks.pages.markdown import markdown_of
from tests.support.corpus.line import Line, gpt2, write_source

FILTER = FilterConfig(language="en", c4=True, c4_curly_brackets=False, fineweb=True, min_edu_score=2.0)
HOSTILE = "<script>alert(1)</script> | ```` | [x](javascript:alert(2)) <img src=x onerror=alert(3)>"
MAIL, PHONE = "ada.lovelace@analytical.example.com", "+44 20 7946 0958"
QUESTION = "Which of these rivers, if any, had carried the grain of the northern plains down to the sea?"


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Line:
    """Real textbook pages and novels, with copies, near-copies, a planted question, personal data and hostile text."""
    root = tmp_path_factory.mktemp("line")
    for name, folder in (("edu", "edu"), ("novels", "general")):
        file = sorted((shared_data / folder).glob("*.parquet"))[0]
        texts = [text[:4000] for text in pq.read_table(file, columns=["text"])["text"].to_pylist()[:110]]
        rows: list[Any] = [{"text": text, "score": 1.0 + place % 5} for place, text in enumerate(texts[:90])]
        rows += [{"text": texts[3]}, {"text": texts[3].upper()}]
        rows += [
            {"text": texts[place].replace(" the ", f" the {word} ", 1)}
            for place, word in ((3, "old"), (3, "red"), (5, "new"))
        ]
        rows += [{"text": f"{text[:2000]} {QUESTION} {text[2000:]}"} for text in texts[100:110]]
        rows += [
            {"text": f"{HOSTILE} {name} {MAIL} or call {PHONE}"},
            {"text": "Viele Worte auf Deutsch. " * 40},
        ]
        rows += [b'{"text": "cut off', b'{"other": 1}']
        write_source(root / f"{name}.jsonl", rows)
    (root / "benchmarks" / "quiz").mkdir(parents=True)
    quiz = {"question": QUESTION, "choices": ["The Styx", "The Po"], "answer": 1}
    (root / "benchmarks" / "quiz" / "test.jsonl").write_text(json.dumps(quiz) + "\n")
    tokenizer = gpt2(shared_data, root / "gpt2")
    made = Line(root, root / "store", tokenizer, ("edu", "novels"), slice_bytes=150_000, filter=FILTER)
    made.benchmarks, made.files = ("quiz",), root / "benchmarks"
    return made.read().pack(100, 128).pack(60, 128)


def page(line: Line, config: DataConfig | None = None, **over: Any) -> tuple[Artifact, dict[str, Any]]:
    given = {"packed": line.packed, "first_round": 1, "counted": (), **over}
    inputs = data_inputs(line.slices, **given)
    made = artifact_of(data, config or DataConfig(filter=line.filter), inputs, line.store)
    return made, json.loads((made.path / "data.json").read_text())


def documents(line: Line, stage: str, part: str = "documents") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for one in line.slices:
        if one.artifacts[stage].has(part):
            found += read_documents(one.artifacts[stage].part(part).paths).to_pylist()
    return found


def dropped(line: Line) -> list[dict[str, Any]]:
    stages = ("ingest", "dedup", "filter", "decontaminate")
    parts = [one.artifacts[stage].part("dropped").only() for one in line.slices for stage in stages]
    return [row for path in parts for row in pq.read_table(path).to_pylist()]


def test_the_numbers_are_those_of_the_tables(line: Line) -> None:
    made, facts = page(line)
    stages = {stage["stage"]: stage for stage in facts["flow"]["stages"]}
    read, kept = documents(line, "ingest"), documents(line, "decontaminate")
    held, gone = documents(line, "decontaminate", "holdout"), dropped(line)
    assert facts["flow"]["problems"] == [] and made.stats["conserved"]
    assert stages["ingest"]["documents_out"] == len(read) and stages["tokenize"]["documents_out"] == len(kept)
    assert stages["decontaminate"]["documents_held_out"] == len(held) > 0
    assert stages["tokenize"]["text_out"] == sum(len(row["text"].encode()) for row in kept)
    counted = Counter((row["stage"], row["reason"]) for row in gone)
    assert {(row["stage"], row["reason"]): row["documents"] for row in facts["reasons"]} == counted
    assert {
        "malformed_json",
        "exact_duplicate",
        "near_duplicate",
        "language",
        "education",
        "benchmark_overlap",
    } <= {reason for _, reason in counted}
    fates = Counter[str]()
    for row in facts["lengths"]["before"]:
        fates[row["fate"]] += row["documents"]
    assert fates == {
        "trained on": len(kept),
        "held out": len(held),
        **{
            f"dropped by {stage}": sum(n for (s, _), n in counted.items() if s == stage)
            for stage in ("dedup", "filter", "decontaminate")
        },
    }
    assert sum(row["text"] for row in facts["lengths"]["before"]) == sum(
        len(row["text"].encode()) for row in read
    )
    for kind in ("after", "tokens"):
        assert sum(row["documents"] for row in facts["lengths"][kind]) == len(kept)


def test_a_rule_that_takes_a_large_share_stands_on_the_page(
    line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shares, "LARGE", 0.02)
    monkeypatch.setattr(shares, "FEW", 2)
    inputs = data_inputs(line.slices, line.packed, 1, ())
    facts = data.gather(DataConfig(filter=line.filter, rules=0), inputs, draft_in(tmp_path))
    rows = [(row["reason"], one.number) for one in line.slices for row in pq.read_table(
        one.artifacts["filter"].part("dropped").only()).to_pylist()]  # fmt: skip
    counts = Counter(rows)
    told = {(one.rule, one.slice): one.documents for one in facts.large}
    assert told and all(counts[pair] == count for pair, count in told.items())
    text = markdown_of([block for block in blocks_of(facts, ()) if isinstance(block, Text)])
    one = facts.large[0]
    assert "One rule takes a large share: " in text
    assert f" drops {one.documents:,} of {one.asked:,} documents (" in text
    assert f" of slice {one.slice}, source {one.source}" in text
    monkeypatch.setattr(shares, "LARGE", 1.0)
    calm = data.gather(DataConfig(filter=line.filter, rules=0), inputs, draft_in(tmp_path / "calm"))
    assert not calm.large


def test_groups_of_copies_are_counted_as_they_were_dropped(line: Line) -> None:
    _, facts = page(line)
    kept = Counter(row["detail"] for row in dropped(line) if row["stage"] == "dedup")
    sizes = Counter(count + 1 for count in kept.values())
    assert {row["size"]: row["clusters"] for row in facts["clusters"]["sizes"]} == sizes
    first = facts["clusters"]["largest"][0]
    assert (first["size"], first["exact"], first["near"]) == (5, 2, 2)
    assert kept[first["kept"]] == 4
    pair = facts["pairs"][0]
    assert pair["kept"] == first["kept"] and 0.7 <= pair["similarity"] < 1
    texts = {row["id"]: row["text"] for row in documents(line, "ingest")}
    one, two = texts[int(pair["id"])], texts[int(pair["kept"].split()[0])]
    assert pair["text"] != pair["kept_text"] and any(
        word in pair["text"] for word in (" old ", " red ", " new ")
    )
    assert one != two


def test_no_caption_tells_of_a_picture_that_is_not_drawn() -> None:
    assert "Right" not in reasons_caption(CopyGroups((), ()))
    assert "Right: groups" in reasons_caption(CopyGroups((GroupSize(2, 1),), ()))


def test_scores_are_the_rules_own_values(line: Line) -> None:
    _, facts = page(line)
    scores = {score["rule"]: score for score in facts["scores"]}
    assert list(scores)[:2] == ["language", "education"]
    gone = {row["id"]: row for row in dropped(line) if row["stage"] == "filter"}
    before = documents(line, "dedup")
    assert scores["language"]["documents"] == len(before)
    assert scores["language"]["kept"] == len(before) - len(gone) == sum(scores["language"]["after"])
    assert scores["language"]["failing"] == sum(row["reason"] == "language" for row in gone.values())
    scored = [json.loads(row["meta"]).get("score") for row in before]
    assert scores["education"]["documents"] == sum(score is not None for score in scored)
    assert scores["education"]["failing"] == sum(score is not None and score < 2 for score in scored)
    for name, score in scores.items():  # what failed first failed, by the same value's being beyond the limit
        assert score["failing"] >= sum(row["reason"] == name for row in gone.values()), name
        assert sum(score["before"]) == score["documents"]


def test_a_score_that_the_filter_does_not_ask_is_shown_without_a_limit(line: Line) -> None:
    unasked = FilterConfig(**{**line.filter.model_dump(), "min_edu_score": None})
    made, facts = page(line, DataConfig(filter=unasked))
    [score] = [score for score in facts["scores"] if score["rule"] == "education"]
    assert score["limit"] is None and score["failing"] == 0
    scored = [json.loads(row["meta"]).get("score") for row in documents(line, "dedup")]
    assert score["documents"] == sum(one is not None for one in scored) > score["kept"]
    assert "| education | not asked |" in (made.path / "data.md").read_text()


def test_packing_stands_beside_concatenate_and_cut(line: Line) -> None:
    _, facts = page(line)
    first, second = facts["packing"]["rounds"]
    stats = line.packed[0].stats
    assert (first["round"], second["round"], first["sequence_length"]) == (1, 2, 128)
    assert first["concatenation_cut"] == stats["documents_cut"] + stats["concatenation_cuts"] >= first["cut"]
    for source in facts["packing"]["sources"]:
        assert source["tokens_placed"] == sum(one["tokens"] for one in source["rounds"])


def test_examples_are_what_was_dropped_and_the_question_is_in_sight(line: Line) -> None:
    _, facts = page(line)
    examples = {(row["stage"], row["reason"]): row["examples"] for row in facts["examples"]}
    assert {stage for stage, _ in examples} == {"ingest", "filter", "decontaminate"}
    [aside, *_] = examples["ingest", "malformed_json"]
    assert aside["text"] is None and "jsonl" in aside["detail"]
    for one in examples["decontaminate", "benchmark_overlap"]:
        assert "carried the grain" in one["text"] and one["detail"].startswith("quiz:0 ")
    texts = {row["id"]: row["text"] for row in documents(line, "ingest")}
    for (stage, _), shown in examples.items():
        for one in shown if stage == "filter" else ():
            assert one["characters"] <= len(texts[int(one["id"])]) and len(one["text"]) <= LENGTH + 4
            head = one["text"].split()[:3]
            assert all(word in texts[int(one["id"])] for word in head if "|||" not in word)


class Seen(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def every_example(line: Line) -> DataConfig:
    return DataConfig(filter=line.filter, reasons=100, examples=20)


def test_hostile_text_is_shown_and_does_nothing(line: Line) -> None:
    made, _ = page(line, every_example(line))
    seen = Seen()
    seen.feed((made.path / "data.html").read_text())
    assert "<script>alert(1)</script>" in seen.text
    assert not any(tag == "script" for tag, _ in seen.tags)
    assert not any(name.startswith("on") for _, attributes in seen.tags for name in attributes)
    assert not any(tag in ("img", "a") or "src" in attributes for tag, attributes in seen.tags)
    assert [tag for tag, _ in seen.tags].count("svg") == 5
    links = [
        value or "" for _, attributes in seen.tags for name, value in attributes.items() if "href" in name
    ]
    assert links and all(link.startswith("#") for link in links)  # glyphs and marks inside the figures
    outside, fence = [], ""
    for text in (made.path / "data.md").read_text().split("\n"):
        if not fence and text.startswith("```"):
            fence = text.removesuffix("text")
        elif fence and text == fence:
            fence = ""
        elif not fence:
            outside.append(text)
    assert not fence and "alert(" not in "\n".join(outside)


def test_personal_data_is_masked_before_it_is_cut_where_the_filter_masks_it(line: Line) -> None:
    made, _ = page(line, every_example(line))
    for name in ("data.md", "data.html", "data.json"):
        text = (made.path / name).read_text()
        assert MAIL not in text and PHONE not in text and "lovelace" not in text, name
        assert "EMAIL_ADDRESS" in text and "PHONE_NUMBER" in text, name
    off = FilterConfig(**{**line.filter.model_dump(), "pii": "off"})
    made, facts = page(line, DataConfig(filter=off, reasons=100, examples=20))
    assert MAIL in (made.path / "data.json").read_text() and not facts["sample"]["masked"]
    reader = Reader(tables=None, masked=True)  # type: ignore[arg-type]
    for start in range(0, 200, 7):
        text = "word " * 20 + MAIL + " word" * 200
        assert not any(
            piece in reader.excerpt(text, start, length=60) for piece in ("lovelace", "analytical", "@")
        )


def test_the_same_inputs_give_the_same_bytes_and_no_place_of_this_machine(line: Line, tmp_path: Path) -> None:
    made, _ = page(line)
    draft = draft_in(tmp_path)
    data.run(DataConfig(filter=line.filter), data_inputs(line.slices, line.packed, 1, ()), draft)
    names = [str(path.relative_to(made.path)) for path in made.part("page").paths]
    assert {
        f"figures/{name}.{kind}"
        for name in ("flow", "reasons", "lengths", "scores", "tokens")
        for kind in ("svg", "png")
    } == {name for name in names if name.startswith("figures/")}
    for name in names:
        assert (draft.path / name).read_bytes() == (made.path / name).read_bytes(), name
        assert str(line.root).encode() not in (made.path / name).read_bytes(), name


def test_what_was_counted_afterwards_stands_apart(line: Line) -> None:
    (entry,), (path,) = benchmark_inputs(line.files, ("quiz",))
    parts = tuple(one.artifacts["filter"].part("documents") for one in line.slices)
    counted = artifact_of(contamination, CountConfig(), CountInputs(parts, entry, path), line.store)
    made, facts = page(line, counted=(counted,))
    found = sum(row["reason"] == "benchmark_overlap" for row in dropped(line))
    assert facts["counted"] == [
        {
            "benchmark": "quiz",
            "questions": 1,
            "indexed": 1,
            "unchecked": 0,
            "questions_found": 1,
            "documents_found": found,
        }
    ]
    assert "Counted afterwards" in (made.path / "data.md").read_text()
    assert "Counted afterwards" not in (page(line)[0].path / "data.md").read_text()


def test_lengths_are_of_a_sample_where_there_is_much_and_the_page_says_so(line: Line) -> None:
    made, facts = page(line, DataConfig(filter=line.filter, length_bytes=100_000, score_bytes=50_000))
    assert facts["sample"]["shards"] < facts["sample"]["shards_in_all"] == len(line.slices)
    assert (
        f"Lengths are of {facts['sample']['shards']} of {len(line.slices)} files"
        in (made.path / "data.md").read_text()
    )
    assert 0 < max(score["documents"] for score in facts["scores"]) < len(documents(line, "dedup"))


def test_the_page_says_what_the_sample_for_the_rules_leaves_out(line: Line) -> None:
    config = DataConfig(filter=line.filter, score_bytes=20_000)
    made, facts = page(line, config)
    longer = sum(len(row["text"].encode()) > 2000 for row in documents(line, "dedup"))
    assert facts["sample"]["longer"] == longer > 0
    said = f"{longer:,} documents of more than 2 KB are left out of the sample."
    assert said in (made.path / "data.md").read_text()
    assert "left out of the sample" not in (page(line)[0].path / "data.md").read_text()


def test_the_page_says_that_a_classifiers_scores_are_not_shown(line: Line, tmp_path: Path) -> None:
    config = DataConfig(filter=line.filter.model_copy(update={"edu_classifier": Path("scorer")}))
    assert line.filter.min_edu_score is not None
    draft = draft_in(tmp_path)
    data.run(config, data_inputs(line.slices, line.packed, 1, ()), draft)
    said = "What the filter's classifier scored is not measured again"
    assert said in (draft.path / "data.md").read_text()
    assert said not in (page(line)[0].path / "data.md").read_text()


@pytest.mark.parametrize(
    "sign", ["\u061c", "\u00ad", "\u2028", "\u2029", "\u202e", "\ufeff", "\x1b", "\r", "\U000e0041"]
)
def test_what_is_not_seen_is_shown_as_a_dot(sign: str) -> None:
    assert visible(f"a{sign}b\t\n\u00e9\u6f22\U0001f30a") == "a·b\t\n\u00e9\u6f22\U0001f30a"


def test_a_document_that_vanished_is_a_warning(line: Line) -> None:
    one = line.slices[0]
    stats = {
        **one.artifacts["filter"].stats,
        "documents_out": one.artifacts["filter"].stats["documents_out"] - 1,
    }
    inputs = data_inputs(line.slices, line.packed, 1, ())
    first = inputs.slices[0]
    stages = {**first.stages, "filter": dataclasses.replace(first.stages["filter"], stats=stats)}
    inputs = dataclasses.replace(
        inputs, slices=(dataclasses.replace(first, stages=stages), *inputs.slices[1:])
    )
    outcome = Store(line.store).ensure(Request(data, DataConfig(filter=line.filter), inputs))
    assert not outcome.artifact.stats["conserved"] and outcome.artifact.manifest.provenance["warnings"]
    assert "Does not add up: filter, slice 1 (edu)" in (outcome.artifact.path / "data.md").read_text()


def test_a_corpus_as_far_as_it_is_made_has_a_page_too(line: Line) -> None:
    begun = [
        SimpleNamespace(number=1, source="edu", artifacts={"ingest": line.slices[0].artifacts["ingest"]})
    ]
    inputs = data_inputs(begun, (), 1, ())
    made = artifact_of(data, DataConfig(filter=line.filter), inputs, line.store)
    assert made.stats["left"] == line.slices[0].artifacts["ingest"].stats["documents_out"]
    nothing = artifact_of(data, DataConfig(), data_inputs([], (), 1, ()), line.store)
    assert (nothing.stats["read"], list(nothing.stats["findings"])) == (0, ["No document was read."])
