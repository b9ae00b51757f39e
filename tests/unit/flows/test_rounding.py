"""What rounding costs is measured on the text that the model was measured on, and stands in the card."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows.inspect.export import export_model
from flows.inspect.push import staged
from flows.inspect.rounding import measured
from storage.catalog import Catalog
from storage.store import Store
from storage.testing import artifact_of
from tasks.evaluation import perplexity
from tasks.evaluation.perplexity import PerplexityConfig, PerplexityInputs
from tasks.models.form import Form
from tests.support.evaluation.cases import Case, case  # noqa: F401 (a fixture)


def test_a_card_says_what_rounding_changed_if_it_is_asked_for(case: Case, tmp_path: Path) -> None:  # noqa: F811
    held = case.holdout([text[:600] for text in case.texts[:3]])
    inputs = PerplexityInputs(case.base.part("export"), held.part("holdout"))
    of_store = artifact_of(perplexity, PerplexityConfig(max_length=64, device="cpu"), inputs, case.store)
    catalog = Catalog(Store(case.store))
    found = {}
    for form in (Form(dtype="bf16"), Form("gguf", "q8_0"), Form("gguf", "q4_0")):
        to = tmp_path / form.said
        export_model(catalog, case.base, to, form)
        [one] = measured(catalog, case.base, to, form)
        assert one.documents == 3 and one.of_store == pytest.approx(of_store.stats["perplexity"])
        found[form.said] = abs(one.perplexity / one.of_store - 1)
    assert 0 < found["q8_0"] < found["q4_0"] < 0.5 and 0 < found["bf16"] < 0.01, found
    export_model(catalog, case.base, tmp_path / "told", Form(dtype="bf16"), measure=True)
    assert (
        "| held-out text | documents | perplexity in the store |"
        in (tmp_path / "told" / "README.md").read_text()
    )
    assert "perplexity in the store" not in (tmp_path / "bf16" / "README.md").read_text()


def test_a_push_that_goes_on_measures_what_was_not_measured_yet(
    case: Case,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ONWARD_HOME", str(tmp_path))
    held = case.holdout([text[:600] for text in case.texts[:2]])
    inputs = PerplexityInputs(case.base.part("export"), held.part("holdout"))
    artifact_of(perplexity, PerplexityConfig(max_length=64, device="cpu"), inputs, case.store)
    catalog, said = Catalog(Store(case.store)), list[str]()

    def card(measure: bool) -> str:
        form = Form("gguf", "q4_0")
        return (
            staged(catalog, case.base, "me/mine", form, measure=measure, say=said.append) / "README.md"
        ).read_text()

    assert "perplexity in the store" not in card(False) and not said
    assert "perplexity in the store" in card(True) and len(said) == 1
    [figures] = (tmp_path / ".onward" / "push").glob("*.measured.json")
    found = json.loads(figures.read_bytes())
    found[0]["documents"] = 98_765
    figures.write_text(json.dumps(found))
    assert "| 98,765 |" in card(True), "it was measured again"
    assert "perplexity in the store" not in card(False)
