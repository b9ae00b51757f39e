"""The card of a model that leaves: scores as the report has them, licences as the run states them, and roundings."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

from flows.inspect.about import about_of
from storage.catalog import Catalog
from storage.runs import RunRecord, write_record
from storage.store import Store
from storage.testing import artifact_of
from tasks.models.card import About, Measured, _of_report, model_card
from tasks.models.form import Form
from tasks.pages.report import report
from tests.support.pages.report_world import SECTION, World


def test_a_card_has_the_reports_intervals_and_the_runs_licences(tmp_path: Path) -> None:
    world = World(tmp_path)
    outcome = world.outcome()
    base = outcome.models[0].export
    made = artifact_of(report, *report.report_request(SECTION, outcome), tmp_path / "store")
    store = Store(tmp_path / "store")
    config = {
        "model": {"licence": "Apache-2.0"},
        "corpus": {"sources": [{"name": "edu", "licence": "CC-BY-4.0"}, {"name": "general"}]},
    }
    write_record(store, RunRecord("a-123456", "a", config, ((base.stage, base.key), (made.stage, made.key))))
    about = about_of(store, base)
    assert about.licence == "Apache-2.0" and about.licences == {"edu": "CC-BY-4.0"}
    assert about.report is not None and about.report["models"][0]["key"] == base.key
    card = model_card(Catalog(store), base, about=about)
    assert card.startswith(
        '---\nlibrary_name: transformers\npipeline_tag: text-generation\nlicense: "apache-2.0"\n---\n'
    )
    assert "| sciq | acc | 20 | 10.0 [" in card and "| 25.0 | 4 of 900 |" in card
    assert "| edu | 12 | 20.09 [" in card
    assert "- base, a local model (digest ``): Apache-2.0" in card


def test_the_adapted_model_is_set_beside_its_base(tmp_path: Path) -> None:
    world = World(tmp_path)
    outcome = world.outcome()
    made = artifact_of(report, *report.report_request(SECTION, outcome), tmp_path / "store")
    facts = json.loads((made.path / "report.json").read_bytes())
    last = next(one for one in facts["models"] if one["name"] == "20K")
    model = SimpleNamespace(key=last["key"])
    blocks = _of_report(model, facts)  # type: ignore[arg-type]
    assert (
        "| benchmark | metric | questions | before, % | this model, % | change, points | chance, % | in the text |"
        in blocks[0]
    )
    [sciq] = [line for line in blocks[0].splitlines() if line.startswith("| sciq ")]
    assert "+70.0 [" in sciq and ": improved" in sciq
    assert "−63.2 [" in blocks[2] and blocks[2].splitlines()[0].endswith(
        "| before | this model | change, % |"
    )


def test_what_rounding_changed_stands_in_the_card(tmp_path: Path) -> None:
    world = World(tmp_path)
    base = world.outcome().models[0].export
    about = About(measured=[Measured("edu", 12, 13.15, 13.1), Measured("plain", 9, 20.0, 20.2)])
    card = model_card(Catalog(Store(tmp_path / "store")), base, Form("gguf", "q4_0"), about)
    assert "| edu | 12 | 13.100 | 13.150 | +0.38 % |" in card and "−0.99 %" in card
    assert "not stated" in card and "license:" not in card
