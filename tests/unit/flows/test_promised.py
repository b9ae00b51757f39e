"""What a run was promised beside what it took, in a store: of its rehearsal, else of its first quote."""

from __future__ import annotations

import json
from pathlib import Path

from flows.quote.promised import beside_text, keep_first, kept_beside, promised
from flows.quote.quote import Line, Quote
from flows.services.status import collect, render
from storage.runs import RunRecord, amend_record
from storage.store import Store
from storage.testing import artifact_of
from tests.support import letters_stage

RUN = "small-3f9a2c"


def quote_of(seconds: float, done: int = 0, to_do: int = 1) -> Quote:
    line = Line("letters", done, to_do, 1.0, "bytes", seconds, 0.0, "assumed")
    return Quote((line,), (), 0.0, seconds, (), 0.0, 0.0, None, None, None)


def test_the_first_quote_is_kept_and_that_of_a_rehearsal_goes_before_it(tmp_path: Path) -> None:
    assert promised(tmp_path, RUN) is None
    keep_first(tmp_path, RUN, quote_of(7.0, done=1, to_do=0))
    assert promised(tmp_path, RUN) is None, "a run that finds everything was promised nothing"
    keep_first(tmp_path, RUN, quote_of(100.0))
    keep_first(tmp_path, RUN, quote_of(5.0))
    assert promised(tmp_path, RUN)["lines"][0]["seconds"] == 100.0  # type: ignore[index]
    rehearsed = tmp_path / ".rehearsed" / f"{RUN}.json"
    rehearsed.write_text(json.dumps({"quote": quote_of(40.0).to_json()}))
    assert promised(tmp_path, RUN)["lines"][0]["seconds"] == 40.0  # type: ignore[index]
    rehearsed.write_text("{")
    assert promised(tmp_path, RUN)["lines"][0]["seconds"] == 100.0  # type: ignore[index]


def test_it_stands_beside_what_the_artifacts_took_on_the_page_and_in_status(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    made = artifact_of(
        letters_stage, letters_stage.LettersConfig(), letters_stage.LettersInputs(), store.root
    )
    record = RunRecord(RUN, "small", {}, ((made.stage, made.key),), (), "completed", {})
    amend_record(store, RUN, lambda before: record)
    [plain] = collect(store.root)["records"]
    assert plain["beside"] == []
    keep_first(store.root, RUN, quote_of(100.0))
    took = float(made.manifest.provenance["seconds"])
    each, whole = kept_beside(store.root, RUN, [made])
    assert (each.stage, each.quoted, each.took, whole.stage) == ("letters", 100.0, took, "in all")
    assert "| letters | 2 min | " in beside_text([each, whole]) and beside_text([]) == ""
    found = collect(store.root)
    assert [row["stage"] for row in found["records"][0]["beside"]] == ["letters", "in all"]
    assert "letters               2 min" in render(found, secret=True)
