"""Prompts are continued as transformers continues them, and the same way every time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from storage.artifact import Artifact
from storage.testing import artifact_of, draft_in
from tasks.evaluation import samples
from tests.support.evaluation.cases import LENGTH, Case

MINE = ("Tom had a", "The cat")


def config(**over: object) -> samples.SamplesConfig:
    given = {"prompts": (*samples.PROMPTS[:2], *MINE), "tokens": 24, "max_length": LENGTH, "device": "cpu"}
    return samples.SamplesConfig(**{**given, **over})


def rows(made: Artifact) -> list[dict[str, object]]:
    return list(json.loads(made.part("samples").only().read_text()))


def test_greedy_ones_are_what_transformers_generates(case: Case) -> None:
    export = case.base.path / "export"
    made = artifact_of(samples, config(), samples.SamplesInputs(case.base.part("export")), case.store)
    model = AutoModelForCausalLM.from_pretrained(export, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(export)
    greedy = [row for row in rows(made) if row["decoding"] == "greedy"]
    assert [row["prompt"] for row in greedy] == [*samples.PROMPTS[:2], *MINE]
    for row in greedy:
        ids = [2, *tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]]
        out = model.generate(
            torch.tensor([ids]), do_sample=False, max_new_tokens=24, eos_token_id=2, pad_token_id=0
        )[0].tolist()
        text = tokenizer.decode(out, skip_special_tokens=True)
        assert text == tokenizer.decode(ids, skip_special_tokens=True) + str(row["continuation"])
        assert row["tokens"] == len(out) - len(ids) - (out[-1] == 2)
    assert made.stats["samples"] == 8 and made.stats["prompts"] == 4


def test_the_same_inputs_give_the_same_bytes_and_another_seed_other_text(case: Case, tmp_path: Path) -> None:
    inputs = samples.SamplesInputs(case.base.part("export"))
    written = []
    for number, seed in enumerate((0, 0, 1)):
        draft = draft_in(tmp_path / str(number))
        samples.run(config(seed=seed), inputs, draft)
        written.append((draft.path / "samples.json").read_bytes())
    assert written[0] == written[1] != written[2]
    before, after = (json.loads(content) for content in written[1:])
    assert [row["continuation"] for row in before if row["decoding"] == "greedy"] == [
        row["continuation"] for row in after if row["decoding"] == "greedy"
    ]


def test_a_prompt_of_its_own_changes_no_other_one(case: Case) -> None:
    inputs = samples.SamplesInputs(case.base.part("export"))
    whole = rows(artifact_of(samples, config(), inputs, case.store))
    fewer = rows(artifact_of(samples, config(prompts=samples.PROMPTS[:2]), inputs, case.store))
    assert fewer == whole[:4]


def test_a_long_prompt_keeps_its_end_and_room_to_go_on(case: Case) -> None:
    inputs = samples.SamplesInputs(case.base.part("export"))
    long = " ".join(case.texts[0].split()[:400])
    found = rows(artifact_of(samples, config(prompts=(long,), tokens=20, max_length=32), inputs, case.store))
    assert [row["tokens"] for row in found] == [20, 20] and all(row["continuation"] for row in found)


def test_a_model_that_closes_the_text_ends_there(case: Case) -> None:
    inputs = samples.SamplesInputs(case.base.part("export"))
    story = "Lily and Tom went home. They were happy. The end."
    made = artifact_of(samples, config(prompts=(story,), tokens=100), inputs, case.store)
    greedy = rows(made)[0]
    assert greedy["ended"] == (greedy["tokens"] < 100) and "</s>" not in str(greedy["continuation"])


logits = st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=12)


@given(logits, st.floats(0, 1, exclude_max=True), st.floats(0.3, 2), st.floats(0.05, 1))
def test_what_is_drawn_is_of_the_likeliest(
    values: list[float], number: float, temperature: float, top_p: float
) -> None:
    token = samples.draw(np.array(values, np.float32), number, temperature, top_p)
    shares = torch.softmax(torch.tensor(values, dtype=torch.float64) / temperature, 0).tolist()
    likelier = sum(share for share in shares if share > shares[token])
    assert likelier < top_p + 1e-9


def test_draws_have_the_model_s_shares() -> None:
    values = np.array([1.0, 0.0, 2.0, -1.0], np.float32)
    numbers = (np.arange(20_000) + 0.5) / 20_000
    drawn = np.bincount([samples.draw(values, number, 1.0, 1.0) for number in numbers], minlength=4)
    expected = torch.softmax(torch.tensor(values).double(), 0).numpy()
    assert drawn / 20_000 == pytest.approx(expected, abs=1e-4)
    nucleus = np.bincount([samples.draw(values, number, 1.0, 0.7) for number in numbers], minlength=4)
    assert nucleus[1] == nucleus[3] == 0 and nucleus[2] > nucleus[0] > 0
