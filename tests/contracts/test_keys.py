"""Every key of a configuration is written down, and editors that read the schema take what the program takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from flows.config import load_config
from flows.keys.advice import ADVICE
from flows.keys.reference import DOCUMENT, SCHEMA, document, keys, schema

ROOT = Path(__file__).parents[2]
SHIPPED = sorted([*ROOT.glob("configs/*.yaml"), *ROOT.glob("benchmarks/*.yaml")])


def test_both_files_are_as_they_would_be_written() -> None:
    """`python -m flows.keys.reference` writes them anew."""
    assert (ROOT / DOCUMENT).read_text(encoding="utf-8") == document()
    assert (ROOT / SCHEMA).read_text(encoding="utf-8") == schema()


def test_each_key_is_told_once_and_with_when_to_change_it() -> None:
    names = [key.name for key in keys()]
    assert set(names) == set(ADVICE) and len(names) == len(set(names))
    assert all(key.description and key.values for key in keys())


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_what_is_shipped_is_right_by_the_schema_and_names_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not list(Draft202012Validator(json.loads(schema())).iter_errors(yaml.safe_load(text)))
    load_config(path)
    if path.parent.name == "configs":
        assert text.splitlines()[0] == "# yaml-language-server: $schema=schema.json"


@pytest.mark.parametrize(
    "change",
    [
        {"colour": "red"},
        {"seed": "many"},
        {"corpus": {"sources": []}},
        {"training": {"token_budgets": ["400 million"]}},
        {"training": {"token_budgets": [], "learning_rate": 1e-3}},
        {"training": {"token_budgets": ["4M"], "schedule": {"kind": "wsd", "decay_fraction": 1}}},
        {"training": {"token_budgets": ["4M"], "schedule": {"kind": "cosine"}}},
        {"model": {"base": {"hidden_size": 64}}},
        {"evaluation": {"domain": [7]}},
    ],
    ids=str,
)
def test_what_the_program_refuses_an_editor_marks(tmp_path: Path, change: dict[str, Any]) -> None:
    raw = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text(encoding="utf-8"))
    raw.update(change)
    assert list(Draft202012Validator(json.loads(schema())).iter_errors(raw))
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    with pytest.raises(Exception, match=r"wrong\.yaml"):
        load_config(tmp_path / "wrong.yaml")


@pytest.mark.parametrize("budget", ["4M", "4_000_000", "1.5G", "4e6", "64KB", 4_000_000, " 4 M "])
def test_an_editor_takes_numbers_as_people_write_them(budget: Any) -> None:
    raw = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text(encoding="utf-8"))
    raw["training"]["token_budgets"] = [budget]
    assert not list(Draft202012Validator(json.loads(schema())).iter_errors(raw))
