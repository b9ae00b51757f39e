"""Conditions on the fields of rows: what they let through, and that what they do not is set aside and not bad."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from pydantic import ValidationError

from storage.settings import identity_of
from storage.testing import artifact_of
from tasks.corpus import ingest
from tasks.corpus.documents import read_documents
from tasks.corpus.ingest import FileDigests, IngestConfig, SourceConfig, plan_slice
from tasks.corpus.reading.where import conditions_of


@pytest.mark.parametrize(
    ("condition", "value", "holds"),
    [
        ("pdf", "pdf", True),
        ("en|de", "de", True),
        ("en | de", "fr", False),
        ("= en", "en", True),
        ("!= table|sheets", "sheets", False),
        ("!= table", None, True),
        ("pdf", None, False),
        (">= 2015", "2015-03-01", True),
        (">= 2015", 2014, False),
        ("> 9", 10, True),
        ("> 9", "10", True),
        ("<= 3.5", 3.5, True),
        ("< b", "a", True),
        ("> 1", None, False),
        ("3", 3.0, True),
        ("true", True, True),
        ("1", True, False),
        ("nan", "nan", True),
        ("!= nan", "NaN", True),
        ("!= inf", "inf", False),
        ("infinity|nan", "nan", True),
        ("< 9e999", "5", True),
        ('["a","b"]', ["a", "b"], True),
    ],
)
def test_a_condition(condition: str, value: Any, holds: bool):
    (one,) = conditions_of({"field": condition})
    assert one.holds(value) is holds


@pytest.mark.parametrize("words", ["", ">=", "en|", "!= "])
def test_a_condition_without_a_value_is_refused(words: str):
    with pytest.raises(ValueError, match="names no value"):
        conditions_of({"language": words})


def source(**more: Any) -> SourceConfig:
    return SourceConfig.model_validate(
        {"name": "notes", "role": "domain", "weight": 1, "files": ["a.jsonl"], **more}
    )


def test_the_configuration_takes_what_yaml_makes_of_it():
    assert source(where={"year": 2015, "kind": "pdf"}).where == {"year": "2015", "kind": "pdf"}
    written = yaml.safe_load(
        "where: {reviewed: true, draft: false, day: 2015-03-01, at: 2015-03-01 10:00:00, x: .nan}"
    )
    given = source(**written)
    assert given.where == {
        "reviewed": "true",
        "draft": "false",
        "day": "2015-03-01",
        "at": "2015-03-01T10:00:00",
        "x": "nan",
    }
    row = {"reviewed": True, "draft": False, "day": "2015-03-01", "at": "2015-03-01T10:00:00", "x": "nan"}
    assert all(one.holds(row[one.field]) for one in conditions_of(given.where))
    with pytest.raises(ValidationError, match="names no value"):
        source(where={"language": ">="})
    plain = IngestConfig.of(source(), slice_bytes=1000, seed=0)
    assert "where" not in identity_of(plain), "no key changes without it"
    assert identity_of(IngestConfig.of(source(where={"a": "b"}), slice_bytes=1000, seed=0))["where"] == {
        "a": "b"
    }


@pytest.mark.parametrize("keep", [None, (), ("n",)])
def test_rows_that_do_not_meet_them_are_set_aside_and_not_bad(tmp_path: Path, keep: tuple[str, ...] | None):
    rows = [{"text": f"text {n}", "n": n, "kind": "a" if n % 3 else "b"} for n in range(60)]
    lines = [json.dumps(row) for row in rows]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\nno json\n")
    given = source(where={"kind": "b", "n": "< 30"}, keep_fields=keep)
    config = IngestConfig.of(given, slice_bytes=10**6, seed=0, max_bad_fraction=0.02)
    plan = plan_slice(config, given, None, tmp_path, FileDigests(None))
    assert plan is not None
    made = artifact_of(ingest, plan.config, plan.inputs, tmp_path / "store")
    kept = read_documents(made.part("documents").paths).to_pylist()
    assert [row["text"] for row in kept] == [f"text {n}" for n in range(0, 30, 3)]
    assert made.stats["dropped_by_reason"] == {"malformed_json": 1, "where": 50}
    assert made.stats["documents_in"] == 61 == made.stats["documents_out"] + made.stats["documents_dropped"]
    dropped = pq.read_table(made.part("dropped").only()).to_pylist()
    assert any(row["detail"] == "a.jsonl: not kind = b: it is a" and row["id"] is not None for row in dropped)
    assert json.loads(made.part("cursor").only().read_bytes())["dropped"] == 1


def test_slices_go_on_behind_what_was_passed_over(tmp_path: Path):
    lines = [json.dumps({"text": f"text {n} " + "w " * 40, "odd": bool(n % 2)}) for n in range(200)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    texts: list[str] = []
    for wanted in ("true", "false"):
        given, cursor = source(where={"odd": wanted}), None
        config = IngestConfig.of(given, slice_bytes=3000, seed=0)
        slices = 0
        while (plan := plan_slice(config, given, cursor, tmp_path, FileDigests(None))) is not None:
            made = artifact_of(ingest, plan.config, plan.inputs, tmp_path / "store")
            texts += read_documents(made.part("documents").paths)["text"].to_pylist()
            cursor, slices = made.part("cursor"), slices + 1
        assert slices > 2
    assert len(texts) == len(set(texts)) == 200, "two sources of opposite conditions read each row once"
