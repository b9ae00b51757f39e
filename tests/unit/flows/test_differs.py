"""Which run is this: what it has otherwise than its file, in its name, its tags and the head of its pages."""

from __future__ import annotations

from pathlib import Path

import pytest
from prefect.utilities.names import generate_slug

from flows.config import RunConfig, parse_config
from flows.runs.differs import compared_with, differing, file_of, full_name, given_name, head_of, words_of
from flows.runs.names import id_before, run_id
from flows.runs.run import same_benchmarks
from flows.tracking.tracker import describe_run, scores_text
from storage.runs import RunRecord, read_records, rename_record, write_record
from storage.store import Store
from tests.support.runs import minimal


def run_of(**over: object) -> RunConfig:
    return parse_config(minimal(**over))


def test_a_name_shows_what_differs_from_the_file_and_nothing_of_where_it_runs() -> None:
    of_file = run_of()
    run = run_of(
        training__learning_rate=5e-3,
        training__schedule={"kind": "rewarm", "warmup_tokens": 4096},
        training__token_budgets=["60K", "150K"],
        store="elsewhere",
    )
    name, _, digest = full_name(run, of_file).rpartition(" · ")
    assert name == "small · 60K→150K · lr 0.005 · rewarm" and len(digest) == 6
    assert full_name(run, None) == f"small · 60K→150K · {digest}"
    assert full_name(of_file, of_file).count(" · ") == 2
    assert words_of(differing(run, of_file)) == ["lr 0.005", "rewarm"]


def test_runs_that_only_read_other_files_have_names_of_their_own() -> None:
    names = {full_name(run_of(benchmark_files=files), run_of()) for files in (None, "one", "two")}
    assert len(names) == 3
    assert any("benchmarks two" in name for name in names)
    other = run_of(model__base="other/model")
    assert "base model" in full_name(other, run_of())


def test_a_name_has_a_few_differences_and_the_head_all_of_them() -> None:
    run = run_of(
        seed=7, training__learning_rate=1e-3, training__batch_tokens=8192, packing__sequence_length=512
    )
    found = differing(run, run_of())
    assert len(found) == 4 and "2 more changes" in full_name(run, run_of())
    head = head_of(run, found)
    assert set(head["differs from its file"].split(" · ")) == set(words_of(found))
    assert {"batch 8192", "lr 0.001"} & set(words_of(found)) and head["sources"] == "a (domain, 1)"
    note = describe_run("a|name", None, run.store_path, head)
    assert "| learning rate | 0.001" in note and "| date | 20" in note


def test_the_command_line_is_compared_with_its_file() -> None:
    assert file_of() is None
    with compared_with(run_of()):
        assert file_of() == run_of()
    assert file_of() is None


@pytest.mark.parametrize("name", ["second try", "lr-5e3", "my-run", "small · 8K · 3f9a2c", "trial"])
def test_a_name_that_a_person_gave_is_told_from_one_that_prefect_made_up(name: str) -> None:
    assert given_name(name) == name
    assert all(given_name(generate_slug(2)) is None for _ in range(50))


@pytest.mark.parametrize(
    "name", ["tau5-fornost", "alpha-canis-majoris", "omega123-andromedae-void", "chi-barad-dur-a"]
)
def test_a_name_that_prefects_form_filled_in_is_not_a_persons(name: str) -> None:
    assert given_name(name) is None


@pytest.mark.parametrize(
    "name", ["beta-run", "alpha", "tau5", "gamma-2e-4", "fornost-tau5", "beta-fornost-again"]
)
def test_a_name_that_only_looks_like_it_stays(name: str) -> None:
    assert given_name(name) == name


def test_scores_stand_side_by_side() -> None:
    models = [
        {"name": "base", "perplexity": {"domain": 409.9}, "scores": {}},
        {"name": "8K", "perplexity": {"domain": 72.123}, "scores": {"continuation": {"acc": 0.54}}},
    ]
    assert scores_text(models).splitlines() == [
        "| scores | base | 8K |",
        "| --- | ---: | ---: |",
        "| perplexity domain | 409.90 | 72.12 |",
        "| continuation acc |  | 0.5400 |",
    ]
    assert scores_text([]) == ""


def test_two_directories_of_benchmarks_are_two_runs_and_a_record_of_before_gets_its_new_name(
    tmp_path: Path,
) -> None:
    one, two, none = (run_of(benchmark_files=files, store=str(tmp_path)) for files in ("one", "two", None))
    assert len({run_id(run) for run in (one, two, none)}) == 3
    assert {id_before(run) for run in (one, two)} == {run_id(none)}, "a run without keeps its digits"
    store, before = Store(tmp_path), f"small-{id_before(one)}"
    write_record(store, RunRecord(before, "small", one.model_dump(mode="json"), (("pack", "a" * 64),)))
    for run in (two, one):
        rename_record(store, before, f"small-{run_id(run)}", same_benchmarks(run))
    (record,) = read_records(store)
    assert record.run == f"small-{run_id(one)}" and record.artifacts == (("pack", "a" * 64),)
