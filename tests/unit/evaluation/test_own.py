from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import BadInput
from storage.testing import artifact_of
from tasks.evaluation import evaluate, questions
from tests.support.evaluation.cases import LENGTH, Case, scores

SMALL = questions.QuestionsConfig(questions=12, context_words=(6, 10), continuation_words=(2, 4))


def documents(sizes: list[int]) -> dict[int, list[str]]:
    return {1000 + name: [f"w{name}.{place}" for place in range(size)] for name, size in enumerate(sizes)}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(14, 90), min_size=4, max_size=8), st.integers(0, 5))
def test_an_item_is_a_passage_its_continuation_and_passages_of_other_documents(
    sizes: list[int], seed: int
) -> None:
    words = documents(sizes)
    items = questions.make_questions(words, SMALL.model_copy(update={"seed": seed}))
    assert len(items) == min(12, sum(size // 14 for size in sizes))
    for item in items:
        text = " ".join(words[item["document"]])
        right = item["choices"][item["answer"]]
        assert f"{item['question']} {right}" in text and len(item["choices"]) == 4
        assert 6 <= len(item["question"].split()) <= 10 and 2 <= len(right.split()) <= 4
        assert {len(choice.split()) for choice in item["choices"]} == {len(right.split())}
        assert sum(choice in text for choice in item["choices"]) == 1
    assert len({item["question"] for item in items}) == len(items)


def test_items_follow_from_documents_and_seed_alone() -> None:
    words = documents([40, 50, 60, 70])
    backward = dict(reversed(words.items()))
    assert questions.make_questions(words, SMALL) == questions.make_questions(backward, SMALL)
    assert questions.make_questions(words, SMALL) != questions.make_questions(
        words, SMALL.model_copy(update={"seed": 1})
    )


def test_too_few_documents_are_an_error() -> None:
    with pytest.raises(BadInput, match="3 held-out documents have 14 words or more"):
        questions.make_questions(documents([40, 50, 60, 5]), SMALL)


def test_questions_of_held_out_documents_are_scored_by_mutual_information(case: Case) -> None:
    holdout = case.holdout(case.texts[:12])
    config = questions.QuestionsConfig(questions=10)
    made = artifact_of(questions, config, questions.QuestionsInputs(holdout.part("holdout")), case.store)
    inputs = evaluate.own_held_out_inputs(case.base.part("export"), made.part("questions"))
    measured = artifact_of(
        evaluate, evaluate.evaluate_config("continued", None, 0, LENGTH, "cpu"), inputs, case.store
    )
    found = scores(measured)
    assert (
        set(found["metrics"]) == {"acc", "acc_norm", "acc_mutual_info"} and found["main"] == "acc_mutual_info"
    )
    assert found["questions"] == made.stats["questions"] == 10 and found["chance"] == 0.25


def test_a_users_own_file_is_measured_whatever_its_name(case: Case, tmp_path: Path) -> None:
    rows = [
        {
            "question": "Once upon a time, there was a little",
            "choices": ["girl named Lily.", "zx qv kj"],
            "answer": 0,
        },
        {"question": "She was very", "choices": ["qqq zzz jjj", "happy and", "xxv wqk"], "answer": 1},
    ]
    files = [tmp_path / name for name in ("one.jsonl", "two.jsonl")]
    for file in files:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = case.base.part("export")
    made = [
        artifact_of(
            evaluate,
            evaluate.evaluate_config("stories", None, 0, LENGTH, "cpu"),
            evaluate.own_file_inputs(model, file),
            case.store,
        )
        for file in files
    ]
    assert made[0].key == made[1].key
    assert scores(made[0])["metrics"]["acc"] == 1.0
    assert scores(made[0])["chance"] == pytest.approx((1 / 2 + 1 / 3) / 2)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"question": "", "choices": ["a", "b"], "answer": 0}', "question is not a text"),
        ('{"question": "q", "choices": ["a"], "answer": 0}', "two or more texts"),
        ('{"question": "q", "choices": ["a", "b"], "answer": 2}', "index"),
        ('{"question": "q", "choices": ["a", "b"], "answer": true}', "index"),
        ("[1]", "a row"),
        ("{", "no JSON"),
    ],
)
def test_a_bad_row_is_named_by_its_place(tmp_path: Path, line: str, said: str) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text('{"question": "q", "choices": ["a", "b"], "answer": 1}\n' + line + "\n")
    with pytest.raises(BadInput, match=said) as caught:
        questions.read_questions(file)
    assert "2" in str(caught.value)
