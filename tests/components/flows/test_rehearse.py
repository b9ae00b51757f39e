"""A rehearsal of a tiny run: everything is made, small, beside the real store; what it quotes is kept there."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path

import pytest

from flows.config import RunConfig, load_config
from flows.quote import small
from flows.quote.planned import quoted
from flows.quote.rehearsed import newest
from flows.runs.rehearsal import rehearse
from flows.ui.console import Console
from storage.errors import OnwardError, StageFailed
from tasks import stages
from tests.support.small import write_config


@pytest.fixture
def run(tmp_path: Path, reference_run: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """A run that goes on from a base of a few thousand weights, over a store in which another has ended."""
    monkeypatch.setenv("ONWARD_HOME", str(tmp_path))
    monkeypatch.setattr(small, "MOST_STEPS", 12)
    shutil.copytree(reference_run / "text", tmp_path / "text")
    shutil.copytree(reference_run / "store", tmp_path / "store", symlinks=True)
    [base] = (tmp_path / "store" / "base").glob("*/export")
    shutil.copytree(base, tmp_path / "base")
    return load_config(
        write_config(
            tmp_path,
            model__base="base",
            corpus__execution={"workers": 1},
            price_per_hour=3.6,
            benchmark_files=str(shared_data / "benchmarks"),
            evaluation__domain=["arc_easy"],
            evaluation__limit=50,
        )
    )


def files_of(store: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file that is no cache."""
    return {
        str(path.relative_to(store)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in store.rglob("*")
        if path.is_file() and not path.relative_to(store).parts[0].startswith(".")
    }


def test_everything_is_made_small_and_nothing_of_the_store_is_touched(run: RunConfig) -> None:
    store = run.store_path
    before = files_of(store)
    said = io.StringIO()
    found = rehearse(run, Console(said))
    assert files_of(store) == before
    assert not small.store_beside(run).exists()
    assert sorted(path.name for path in (store / ".rehearsed").iterdir()) == [".lock", found.path.name]

    for stage in set(stages.NAMES) - {"tokenizer", "checkpoint", "extract", "likeness", "merge"}:
        assert f"✓ {stage}" in said.getvalue(), f"{stage} was not rehearsed"
    rates = found.rehearsed.rates
    assert all(
        rates.of(stage) for stage in ("ingest", "filter", "pack", "train", "decay", "samples", "report")
    )
    assert {kind for kind in rates.kinds if kind.startswith(("perplexity", "evaluate"))} == {
        "perplexity/domain", "perplexity/general", "evaluate/continuation", "evaluate/arc_easy",
    }  # fmt: skip
    train = rates.kinds["train"]
    assert train.unit_seconds > 0 and train.fixed_seconds > 0 and train.fixed_bytes > 100_000
    assert found.rehearsed.checkpoint_bytes > 100_000
    assert min(found.rehearsed.memory.values()) > 10**7 and found.rehearsed.seconds > 1

    quote = found.quoted.quote
    assert quote.open == () and quote.seconds > 0 and quote.price == pytest.approx(quote.seconds / 1000)
    assert {line.rate for line in quote.lines if line.to_do} <= {"measured", "recorded"}
    assert any(line.done for line in quote.lines)  # what the run that ended there shares with this one
    again = newest(run)
    assert again is not None and again.quote["seconds"] == pytest.approx(quote.seconds)
    assert "measured on" in quoted(run).text(80)
    assert json.loads(found.path.read_text())["when"] == again.when


def test_what_fails_is_said_as_a_run_says_it_and_leaves_nothing(run: RunConfig) -> None:
    nothing = run.corpus.filter.model_copy(update={"thresholds": {"gopher_too_few_words": 10**6}})
    corpus = run.corpus.model_copy(update={"filter": nothing, "slice_bytes": 10**6})
    broken = run.model_copy(update={"store": "other", "corpus": corpus})
    with pytest.raises(StageFailed, match="is used up and gave no token"):
        rehearse(broken, Console(io.StringIO()))
    assert not small.store_beside(broken).exists() and newest(broken) is None
    assert [path.name for path in (broken.store_path / ".rehearsed").iterdir()] == [".lock"]


def test_a_directory_that_holds_something_is_not_taken(run: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(OnwardError, match="is not empty; name a new directory with --keep"):
        rehearse(run, Console(io.StringIO()), keep=tmp_path / "text")
    assert os.listdir(tmp_path / "text")
