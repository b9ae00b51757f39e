"""`onward explain FILE` follows a file through ingest, whatever fields are kept and whatever a condition drops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flows.config import RunConfig, parse_config
from flows.dag.requests import Requests
from flows.lineage.files import of_file
from storage.artifact import Artifact
from storage.catalog import Catalog
from storage.store import Making, Store
from tasks.corpus.documents import read_documents
from tests.support.read_here import ReadsHere

PAGE = "<html><head><title>{name}</title></head><body><main><p>{text}</p></main></body></html>"


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.documents.extract_shard.Reader", ReadsHere)


def run_of(home: Path, **source: Any) -> RunConfig:
    one = {"name": "papers", "role": "domain", "weight": 1, "files": [str(home / "papers" / "**")], **source}
    return parse_config(
        {
            "name": "papers",
            "store": str(home / "store"),
            "corpus": {"sources": [one], "max_bad_fraction": 1},
            "model": {"base": "org/model"},
            "training": {"token_budgets": ["4K"]},
        }
    )


def ingested(run: RunConfig) -> Artifact:
    store, source = Store(run.store_path), run.corpus.sources[0]
    ask = Requests(run, store, warn=print)
    extracted = store.ensure(ask.extract(source, 0), Making()).artifact
    return store.ensure(ask.ingest(source, None, ask.shelf(source, 0, extracted)), Making()).artifact


def ids(made: Artifact) -> set[int]:
    return set(read_documents(made.part("documents").paths)["id"].to_pylist())


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "papers").mkdir()
    for name in ("one", "two"):
        (tmp_path / "papers" / f"{name}.html").write_text(
            PAGE.format(name=name, text=f"words of {name} " * 9)
        )
    return tmp_path


@pytest.mark.parametrize("keep", [["title"], []])
def test_the_file_stays_whatever_fields_are_kept(home: Path, keep: list[str]):
    made = ingested(run_of(home, keep_fields=keep))
    metas = [json.loads(meta) for meta in read_documents(made.part("documents").paths)["meta"].to_pylist()]
    assert sorted(meta["file"] for meta in metas) == ["one.html", "two.html"]
    assert all(set(meta) == {"file", *keep} for meta in metas)
    told = of_file(Catalog(Store(home / "store")), "one.html")
    assert told is not None and len(told[1]) == 1 and set(told[1]) < ids(made)


def test_what_a_condition_drops_is_told_of_its_file(home: Path):
    made = ingested(run_of(home, where={"title": "one"}))
    told = of_file(Catalog(Store(home / "store")), "two.html")
    assert told is not None and told[1] == []
    assert "ingest         dropped: where  two.html: not title = one: it is two" in told[0]
    kept = of_file(Catalog(Store(home / "store")), "one.html")
    assert kept is not None and kept[1] == list(ids(made)) and "dropped" not in kept[0]


def test_only_documents_of_the_same_reading_are_followed(home: Path):
    before = ingested(run_of(home))
    (home / "papers" / "one.html").write_text(PAGE.format(name="one", text="quite other words " * 9))
    after = ingested(run_of(home, where={"title": "two"}))
    assert ids(before) and before.key != after.key
    told = of_file(Catalog(Store(home / "store")), "one.html")
    assert told is not None and told[1] == [], (
        "what the older run read is no document of this file as it is now"
    )
