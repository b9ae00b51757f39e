"""A source of documents through the DAG: planned, read, explained, shown; files that come later cost only themselves."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.config import RunConfig
from flows.dag.plan import planned
from flows.dag.pretrain import adapt
from flows.dag.requests import Requests
from flows.dag.state import Outcome
from flows.lineage.graph import graph_of
from flows.quote.files import files_text
from flows.runs.checks import check
from storage.artifact import Artifact
from storage.store import Making, Request, Store
from tests.support.papers import docx, epub, pdf, word, zipped

OPEN = {"language": "any", "gopher": False, "c4": False, "fineweb": False, "pii": "off"}
WORDS = "the river ran past mill and barn while old men spoke of rain wheat roads and their sons in town"


def prose(seed: int, sentences: int = 12) -> str:
    rng = random.Random(seed)
    return " ".join(" ".join(rng.choices(WORDS.split(), k=9)).capitalize() + "." for _ in range(sentences))


@dataclass
class Home:
    path: Path
    run: RunConfig
    said: list[str] = field(default_factory=list)

    def adapt(self, until: str = "data") -> tuple[Outcome, list[tuple[str, str]]]:
        """What came of it, and each stage with whether it was made."""
        store, states = Store(self.run.store_path), list[tuple[str, str]]()

        def build(request: Request, **_: Any) -> Artifact:
            found = store.ensure(request, Making())
            states.append((request.stage, found.state))
            return found.artifact

        return adapt(Requests(self.run, store, warn=self.said.append), build, until=until), states


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Home:
    path = tmp_path_factory.mktemp("home")
    folder = path / "papers"
    (folder / "sub").mkdir(parents=True)
    lines = [(72.0, 700.0 - 14 * n, line) for n, line in enumerate(prose(1).split(". "))]
    (folder / "report.pdf").write_bytes(pdf([lines, [(72, 700, prose(2, 2))], []], images=True))
    (folder / "book.epub").write_bytes(epub([f"<p>{prose(seed, 40)}</p>" for seed in (3, 4)]))
    (folder / "sub" / "all.zip").write_bytes(zipped({"one.docx": docx(word(prose(5))), "two.txt": prose(6)}))
    for number in range(30):
        (folder / f"note {number}.md").write_text(f"# Note {number}\n\n{prose(100 + number)}")
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": prose(50 + n)}) + "\n" for n in range(10)))
    (folder / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    source = {"name": "papers", "role": "domain", "weight": 1, "files": [str(folder / "**")]}
    run = RunConfig.model_validate(
        {
            "name": "papers",
            "store": str(path / "store"),
            "corpus": {"sources": [source], "slice_bytes": "1M", "holdout_fraction": 0.1, "filter": OPEN},
            "model": {"base": str(shared_data / "models" / "stories260K-hf")},
            "packing": {"sequence_length": 64, "window_tokens": 4096},
            "training": {"token_budgets": ["4K"], "batch_tokens": 256, "learning_rate": 1e-3},
        }
    )
    return Home(path, run)


@pytest.fixture(scope="module")
def first(home: Home) -> Outcome:
    check(home.run)
    before = planned(home.run)
    assert [row.state for row in before.rows if row.stage == "extract"] == ["to build"]
    assert [row.why for row in before.rows if row.stage == "ingest"] == [("waits for extract",)]
    text = "\n".join(files_text(before.shelves))
    assert "papers: 35 files" in text and "Markdown 30" in text and "zip 1" in text
    assert "set aside 1 (image: it is an image (PNG)): picture.png" in text
    outcome, states = home.adapt()
    assert [stage for stage, _ in states if stage in ("extract", "ingest")] == ["extract", "ingest"]
    return outcome


def test_all_of_it_is_read_and_the_page_shows_what(home: Home, first: Outcome):
    (one,) = first.slices
    assert one.artifacts["extract"].stats["documents_out"] == 34
    assert one.artifacts["ingest"].stats["documents_out"] == 44, "with the rows"
    assert first.data is not None and first.data.stats["conserved"]
    page = next(path for path in first.data.part("page").paths if path.name == "data.md").read_text()
    assert "## What was read out of files" in page and "### EPUB: book.epub" in page
    assert "picture.png" in page and "1 (no text)" in page
    assert planned(home.run).rows[0].state == "cached"


def explained(home: Home, asked: str) -> str:
    return CliRunner().invoke(app, ["explain", asked, "--store", str(home.path / "store")]).stdout


def test_a_file_and_a_page_are_explained(home: Home, first: Outcome):
    whole = explained(home, "report.pdf")
    assert "read as PDF" in whole and "on 2 pages" in whole and "lost: no_text  report.pdf, page 3" in whole
    assert "ingest         kept" in whole
    page = explained(home, "report.pdf#2")
    assert "page 2 read:" in page and prose(2, 2)[:40] in page
    assert "of the page's 1 lines" in page
    assert "page 3 lost: no_text" in explained(home, "report.pdf#3")
    assert "its pages go up to 3" in explained(home, "report.pdf#9")
    entry = explained(home, "sub/all.zip!one.docx")
    assert "read as Word (DOCX)" in entry and "ingest         kept" in entry
    assert "lost: image  picture.png" in explained(home, "picture.png")
    assert "its documents: " in explained(home, "all.zip")
    assert "note 7.md" in explained(home, "note 7.md")


def test_lineage_leads_back_to_the_files(home: Home, first: Outcome):
    graph = graph_of(Store(home.run.store_path), first.packed[0])
    names = {one.name for one in graph.sources if one.kind == "file"}
    assert {"report.pdf", "sub/all.zip", "rows.jsonl", "picture.png"} <= names and not graph.missing


def test_files_that_came_later_cost_only_themselves(home: Home, first: Outcome):
    for number in range(30, 34):
        (home.path / "papers" / f"note {number}.md").write_text(f"# Note {number}\n\n{prose(100 + number)}")
    home.run = home.run.model_copy(
        update={"training": home.run.training.model_copy(update={"token_budgets": (4000, 40000)})}
    )
    outcome, states = home.adapt("tokenize")
    assert [state for _, state in states[: len(states) // 2]].count("built") == 0
    assert [stage for stage, state in states if state == "built"] == [
        "extract",
        "ingest",
        "dedup",
        "filter",
        "decontaminate",
        "tokenize",
    ]
    made = outcome.slices[1].artifacts["extract"]
    assert made.stats["files"] == 4 and len(outcome.slices) == 2
    everything, _ = home.adapt("extract")
    assert [one.artifacts["extract"].key for one in everything.slices] == [
        one.artifacts["extract"].key for one in outcome.slices
    ]
