"""What rounding costs is measured on the text that the model was measured on, and stands in the card."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.inspect.export import export_model
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
