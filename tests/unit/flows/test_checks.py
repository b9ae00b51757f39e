"""What cannot work is refused before the first document is read, with the field named; what is odd is said."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from flows.config import RunConfig, parse_config
from flows.dag.plan import make_plan
from flows.runs.checks import advice, check
from storage.errors import ConfigError
from tests.support.runs import minimal


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ONWARD_HOME", str(tmp_path))
    return tmp_path


def run_of(**over: Any) -> RunConfig:
    return parse_config(minimal(**over))


INIT = {
    "init": {
        "hidden_size": 64,
        "layers": 2,
        "heads": 2,
        "pretrain_tokens": "400K",
        "tokenizer": {"vocabulary": 300},
    }
}


def source(name: str, text: str, home: Path, **more: Any) -> dict[str, Any]:
    (home / f"{name}.txt").write_text(text)
    return {"name": name, "role": "domain", "weight": 1, "files": [f"{name}.txt"], **more}


# ---- a place for the store --------------------------------------------------------------------------------------------


def test_a_store_that_is_there_or_can_be_made_is_taken(home):
    (home / "there").mkdir()
    for store in ("there", "new", "new/deeper/still", str(home / "absolute")):
        check(run_of(store=store))
    assert [path.name for path in home.iterdir()] == ["there"]  # nothing is made by looking


@pytest.mark.parametrize(
    "store", ["file", "file/below", "dangling", "loop/below", "\N{GREEK SMALL LETTER ALPHA}" * 120 + "/x"]
)
def test_a_store_that_cannot_be_made_is_refused(home, store):
    (home / "file").write_text("no directory")
    (home / "dangling").symlink_to(home / "nowhere")
    (home / "loop").symlink_to(home / "loop")
    if store.startswith("\N{GREEK SMALL LETTER ALPHA}"):  # 240 bytes are a name
        return check(run_of(store=store))
    with pytest.raises(ConfigError, match="^store: "):
        check(run_of(store=store))


def test_a_store_on_a_read_only_place_is_refused(home):
    """`/proc` is read-only also for root."""
    with pytest.raises(ConfigError, match=r"store: /proc/.* cannot be written"):
        check(run_of(store="/proc/sys/store"))


# ---- budgets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("over", "words"),
    [
        (
            {"training__token_budgets": ["4K"]},
            "training.token_budgets: 4K is less than one step of 4,096 tokens",
        ),
        ({"training__token_budgets": [1]}, "training.token_budgets: 1 is less than one step"),
        ({"training__token_budgets": ["400K", "401K"]}, "needs no step beyond"),
        ({"training__token_budgets": ["1M", "1M"]}, "rise"),
        (
            {"training__token_budgets": ["1000B"], "packing__sequence_length": 128},
            "more than 4 billion sequences",
        ),
        (
            {"model__base": {"init": {**INIT["init"], "pretrain_tokens": 9}}},
            "model.base.init.pretrain_tokens: 9 is less",
        ),
        ({"training__batch_tokens": 5000}, "training.batch_tokens is 5000"),
        ({"training__execution": {"processes": 17}}, "17 processes for 16 sequences a step"),
        ({"training__average": {"checkpoints": 9, "every_tokens": "400K"}}, "training.average"),
    ],
)
def test_budgets_that_do_not_fit_are_refused(home, over, words):
    with pytest.raises(ConfigError) as caught:
        check(run_of(**over))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("over", "words"),
    [
        (
            {"training__token_budgets": ["6K"]},
            "the budget 6K ends with a whole step, at 8192 tokens: 37% more",
        ),
        ({"training__token_budgets": ["100K"]}, "the budget 100K has only 25 steps"),
        (
            {},
            "training.schedule.warmup_tokens 10M is longer than the training up to 400K",
        ),
        (
            {"training__keep_every_tokens": "2M"},
            "training.keep_every_tokens 2M is more than the last budget 1M",
        ),
    ],
)
def test_what_is_odd_is_said(home, over, words):
    said = advice(run_of(**over))
    assert any(words in line for line in said), said


def test_of_what_fits_nothing_is_said(home):
    schedule = {"kind": "wsd", "warmup_tokens": "40K"}
    assert advice(run_of(training__token_budgets=["4M", "8M"], training__schedule=schedule)) == []


def test_a_pattern_that_names_no_file_is_refused_and_one_of_two_readings_is_said(home):
    for folder in ("data [2024]", "data 2"):
        (home / folder).mkdir()
        (home / folder / "a.txt").write_text("some text")
        one = {"name": "a", "role": "domain", "weight": 1, "files": ["data [2024]/*.txt"]}
        check(run_of(corpus__sources=[one]))
        said = [line for line in advice(run_of(corpus__sources=[one])) if "is also the name" in line]
        assert (folder == "data 2") == any("write 'data [[]2024]/*.txt' for it" in line for line in said)
    for pattern, words in (
        ("data/*.txt", "nothing in .* is called 'data'; it holds 'data 2'"),
        ("data 2", "it is a directory; write its files"),
    ):
        with pytest.raises(
            ConfigError, match=f"corpus.sources: a: no file matches '{re.escape(pattern)}': "
        ) as refused:
            check(run_of(corpus__sources=[{**one, "files": [pattern]}]))
        assert re.search(words.replace("[", "\\["), str(refused.value))


def test_fields_to_keep_that_are_not_there_are_refused_or_said(home):
    rows = [{"text": "some text", "url": "u", "score": 3.1}]
    pq.write_table(pa.Table.from_pylist(rows), home / "a.parquet")
    (home / "a.jsonl").write_text(json.dumps(rows[0]) + "\n")
    one = {
        "name": "a",
        "role": "domain",
        "weight": 1,
        "files": ["a.parquet"],
        "keep_fields": ["urls", "score"],
    }
    with pytest.raises(
        ConfigError, match="keep_fields names 'urls', which no file has; they have 'score', 'url'"
    ):
        check(run_of(corpus__sources=[one]))
    lines = {**one, "files": ["a.jsonl", "a.parquet"]}
    check(run_of(corpus__sources=[lines]))  # a later row may have it
    assert any(
        "names 'urls', which the first rows" in line for line in advice(run_of(corpus__sources=[lines]))
    )
    scored = {"min_edu_score": 3}
    for keep, said in ((["url"], True), (["url", "score"], False), (None, False)):
        run = run_of(corpus__sources=[{**one, "keep_fields": keep}], corpus__filter=scored)
        check(run)
        assert said == any("keep_fields leaves out 'score'" in line for line in advice(run))


# ---- the device -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_here_is_refused_unless_the_question_is_about_another_machine(home):
    run = run_of(training__execution={"device": "cuda"})
    with pytest.raises(ConfigError, match=r"training\.execution\.device is cuda, but no GPU") as caught:
        check(run)
    assert "checkpoint" not in str(caught.value)
    check(run, elsewhere=True)
    check(run_of(training__execution={"device": "auto"}))


# ---- what is named twice, empty, or not there -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ({"evaluation__domain": ["piqa", "piqa"]}, "piqa stands more than once in evaluation"),
        ({"evaluation__domain": ["piqa"], "evaluation__general": ["piqa"]}, "piqa stands more than once"),
        (
            {"evaluation__own": [{"name": "q", "file": "q"}, {"name": "q", "file": "q"}]},
            "q stands more than once",
        ),
        ({"corpus__decontaminate": {"benchmarks": ["piqa", "piqa"]}}, "names 'piqa' twice"),
        ({"evaluation__prompts": ["Once", " "]}, "evaluation.prompts[1] is empty"),
        ({"evaluation__checkpoints": True}, "training.keep_every_tokens"),
        (
            {"corpus__filter": {"edu_classifier": "no/where", "min_edu_score": 2}},
            "corpus.filter.edu_classifier: ",
        ),
        ({"model__base": INIT}, "no source in corpus.sources has the role replay"),
        (
            {"packing__sequence_length": 4096, "model__base": "small"},
            "longer than the 1,024 positions of model.base",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(home, over, words):
    (home / "small").mkdir()
    (home / "small" / "config.json").write_text('{"max_position_embeddings": 1024}')
    with pytest.raises(ConfigError) as caught:
        check(run_of(**over))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "content", ["[]", "null", "3", '"a"', '{"a": ', "", "[" * 100_000, "\x00", "{'a': 1}"]
)
@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]
)
def test_a_file_of_the_base_that_holds_no_fields_is_refused_by_its_name(home, name, content):
    (home / "base").mkdir()
    (home / "base" / "config.json").write_text("{}")
    (home / "base" / name).write_text(content)
    with pytest.raises(ConfigError) as caught:
        check(run_of(model__base="base"))
    assert str(caught.value).startswith(str(home / "base" / name)) and len(str(caught.value)) < 300


# ---- too little text --------------------------------------------------------------------------------------------------


def told_by_plan(home: Path, *sources: dict[str, Any], **over: Any) -> list[str]:
    replay = source("replay", "words " * 90_000, home, role="replay", weight=0.01)
    said: list[str] = []
    make_plan(run_of(corpus__sources=[*sources, replay], model__base=INIT, **over), said.append)
    return list(dict.fromkeys(said))


def test_a_plan_says_that_a_text_would_be_read_many_times(home):
    said = told_by_plan(home, source("notes", "a word or two\n" * 400, home))
    assert [line for line in said if "notes has about 1.4K tokens" in line and "about 709 times" in line], (
        said
    )
    assert not [line for line in said if line.startswith("corpus.sources: replay")]


def test_a_plan_says_that_a_limit_of_epochs_would_be_passed(home):
    """It estimates the text, so it does not refuse."""
    notes = source("notes", "a word or two\n" * 400, home)
    [line] = [one for one in told_by_plan(home, notes, corpus__max_epochs=16) if "notes has" in one]
    assert "more than corpus.max_epochs 16 allows" in line and "the run is refused, if" in line
    [line] = [
        one
        for one in told_by_plan(home, {**notes, "max_epochs": 20}, corpus__max_epochs=900)
        if "notes" in one
    ]
    assert "more than max_epochs of source notes 20 allows" in line
    [line] = [
        one
        for one in told_by_plan(home, {**notes, "max_epochs": 900}, corpus__max_epochs=2)
        if "notes" in one
    ]
    assert "about 709 times. Four readings" in line


def test_a_plan_says_nothing_where_more_text_follows_or_there_is_enough(home):
    text = "a word or two\n" * 80_000
    assert told_by_plan(home, source("enough", text, home)) == []
    assert told_by_plan(home, source("more", text, home), corpus__slice_bytes=1000) == []


def test_the_shipped_plan_of_a_base_is_read_as_json(home):
    """The base's own files are looked at where there are some, and none is needed of a model on the hub."""
    check(run_of(model__base="somewhere/model"))
    (home / "base").mkdir()
    (home / "base" / "config.json").write_text(json.dumps({"n_positions": 512}))
    check(run_of(model__base="base"))


def test_a_new_model_has_one_token_for_both_ends_of_a_text(home):
    source("domain", "words", home)
    sources = [source("domain", "words", home), source("general", "others", home, role="replay")]
    run = run_of(model__base=INIT, corpus__sources=sources, packing__begin="bos")
    with pytest.raises(ConfigError, match=r"^packing\.begin is bos, but the tokenizer of a new model"):
        check(run)


# ---- models between -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("over", "words"),
    [
        (
            {"merge": {"average": 2}},
            "merge.average takes the mean of checkpoints that training keeps, but it keeps none",
        ),
        (
            {"merge": {"average": 5}, "training__keep_every_tokens": "200K"},
            "merge.average: 5 checkpoints are to be averaged, and the trunk of",
        ),
        (
            {"merge": {"instruct": "chat"}, "model": {"base": INIT}},
            "merge.instruct needs the model that the chat model",
        ),
    ],
)
def test_merges_that_cannot_be_made_are_refused(home: Path, over: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check(run_of(**over))
    assert words in str(refused.value)


def test_merges_that_can_be_made_are_taken(home: Path) -> None:
    merge = {"interpolate": [0.25, 0.5], "average": 4, "instruct": "chat"}
    check(run_of(merge=merge, training__keep_every_tokens="200K"))
