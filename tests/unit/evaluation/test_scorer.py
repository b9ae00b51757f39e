"""Log-likelihoods are those of the harness's own model class, whatever shares a pass."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from lm_eval.models.huggingface import HFLM

from storage.errors import BadInput
from tasks.evaluation.model import load_model
from tasks.evaluation.scorer import Scorer, Shares, shares_of
from tests.support.evaluation.cases import LENGTH, Case


def requests(case: Case, count: int = 30) -> list[Any]:
    """Questions of several answers of several lengths, alone too, out of real text."""
    rng = random.Random(3)
    words = " ".join(case.texts[:8]).split()
    made: list[tuple[str, str]] = []
    for _ in range(count):
        at, size = rng.randrange(len(words) - 400), rng.choice([1, 2, 8, 30, 90, 300])
        question = " ".join(words[at : at + size])
        endings = [words[at + size : at + size + rng.choice([1, 1, 3, 20])] for _ in range(4)]
        answers = [" " + " ".join(ending) for ending in endings] + [" A", " B"]
        made += [(question, answer) for answer in answers]
        made += [("", answers[0]), (question + "  ", answers[1].strip())]
    return [SimpleNamespace(args=pair) for pair in made]


def theirs(model: Any, export: Path, length: int) -> HFLM:
    tokenizer = transformers.AutoTokenizer.from_pretrained(export, local_files_only=True)
    return HFLM(pretrained=model, tokenizer=tokenizer, max_length=length, batch_size=1, backend="causal")


def agree(ours: list[tuple[float, bool]], harness: list[tuple[float, bool]]) -> None:
    assert [value for value, _ in ours] == pytest.approx([value for value, _ in harness], abs=2e-3)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in harness]


@pytest.mark.parametrize("length", [LENGTH, 100])
def test_likelihoods_are_the_harness_s_own(case: Case, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    export = case.base.path / "export"
    model, asked = load_model(export, torch.device("cpu"), length), requests(case)
    told: list[tuple[int, int]] = []
    scorer = Scorer(model, export, length, lambda done, total, unit: told.append((done, total)))
    ours = scorer.loglikelihood(asked)
    assert scorer.shares == Shares(answers=True, beginnings=True)
    agree(ours, theirs(model, export, length).loglikelihood(asked, disable_tqdm=True))
    assert told[-1] == (scorer.computed, scorer.computed) and told == sorted(told)
    monkeypatch.setattr("tasks.evaluation.scorer.shares_of", lambda *_: Shares())
    agree(scorer.loglikelihood(asked), ours)
    assert scorer.shares == Shares()


def with_examples(case: Case) -> list[Any]:
    """Questions of two subjects, each after its subject's examples; four letters, or answers of several words."""
    words = " ".join(case.texts[:8]).split()
    made = []
    for subject in (0, 1):
        examples = " ".join(words[subject * 100 : subject * 100 + 45])
        for at in range(300, 420, 12):
            question = f"{examples} {' '.join(words[at : at + 1 + at % 7])}"
            ends = [" A", " B"] if subject else [" " + " ".join(words[at + n : at + n + 3]) for n in (3, 9)]
            made += [SimpleNamespace(args=(question, end)) for end in ends]
    return made


def test_examples_before_questions_are_computed_once_and_change_nothing(case: Case) -> None:
    export, length = case.base.path / "export", 256
    model, asked = load_model(export, torch.device("cpu"), length), with_examples(case)
    scorer = Scorer(model, export, length, lambda *_: None)
    found, computed = scorer.loglikelihood(asked), scorer.computed
    assert scorer.shares.beginnings
    agree(found, theirs(model, export, length).loglikelihood(asked, disable_tqdm=True))
    alone = [scorer.loglikelihood([one])[0] for one in asked]
    assert scorer.shares == Shares(), "one question alone is not worth a proof"
    agree(found, alone)
    tokens = sum(len(scorer.tok_encode(one.args[0])) for one in asked[::2])
    assert computed < tokens / 2


def test_a_log_likelihood_has_the_same_bits_with_any_number_of_threads(case: Case) -> None:
    export = case.base.path / "export"
    model, asked = load_model(export, torch.device("cpu"), LENGTH), [*requests(case), *with_examples(case)]
    found = []
    for threads in (1, 3, 2):
        torch.set_num_threads(threads)
        found.append(Scorer(model, export, LENGTH, lambda *_: None).loglikelihood(asked))
        assert torch.get_num_threads() == threads
    torch.set_num_threads(1)
    assert found[0] == found[1] == found[2]


def test_in_bf16_it_is_the_harness_s_own_in_bf16(case: Case) -> None:
    export = case.base.path / "export"
    model, asked = load_model(export, torch.device("cpu"), LENGTH, "bf16"), requests(case)
    assert {one.dtype for one in model.parameters()} == {torch.bfloat16}
    scorer = Scorer(model, export, LENGTH, lambda *_: None)
    found = scorer.loglikelihood(asked)
    harness = theirs(model, export, LENGTH).loglikelihood(asked, disable_tqdm=True)
    apart = [abs(a - b) for (a, _), (b, _) in zip(found, harness, strict=True)]
    assert sum(apart) / len(apart) < 0.2 and scorer.shares == Shares(True, True)


SHAPES = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 256},
    "gpt_neox": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    },
    "mistral": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 64,
        "sliding_window": 16,
    },
}


@pytest.mark.parametrize("kind", SHAPES)
def test_other_architectures_share_only_where_it_changes_nothing(case: Case, kind: str) -> None:
    export = case.base.path / "export"
    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model(kind, vocab_size=512, **SHAPES[kind])
    config.bos_token_id, config.eos_token_id = 1, 2
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6 if parameter.dim() > 1 else 1)  # far from uniform, so that attention matters
    scorer = Scorer(model, export, LENGTH, lambda done, total, unit: None)
    asked = requests(case, 8)
    agree(scorer.loglikelihood(asked), theirs(model, export, LENGTH).loglikelihood(asked, disable_tqdm=True))
    shares = kind != "mistral"  # a window of 16 tokens is not in a mask of ours
    assert scorer.shares == Shares(shares, shares)


def test_a_window_too_short_to_prove_it_shares_nothing(case: Case) -> None:
    model = load_model(case.base.path / "export", torch.device("cpu"), 8)
    assert shares_of(model, 8) == Shares() and shares_of(model, 64) == Shares(True, True)


def test_the_same_answer_twice_has_one_likelihood(case: Case) -> None:
    export = case.base.path / "export"
    scorer = Scorer(load_model(export, torch.device("cpu"), LENGTH), export, LENGTH, lambda *_: None)
    pairs = [("Once upon a time there was a big", answer) for answer in (" red ball", " dog", " red ball")]
    found = scorer.loglikelihood([SimpleNamespace(args=pair) for pair in pairs])
    assert found[0] == found[2] != found[1]


def test_an_answer_without_a_token_is_named(case: Case) -> None:
    export = case.base.path / "export"
    scorer = Scorer(load_model(export, torch.device("cpu"), LENGTH), export, LENGTH, lambda *_: None)
    with pytest.raises(BadInput, match="has no token"):
        scorer.loglikelihood([SimpleNamespace(args=("Once upon", ""))])


@pytest.mark.parametrize("processor", ["adds it", "adds nothing"])
def test_with_a_token_to_begin_with_it_is_the_harness_told_to_add_one(
    case: Case, tmp_path: Path, processor: str
) -> None:
    export = tmp_path / "export"
    shutil.copytree(case.base.path / "export", export)
    if processor == "adds nothing":
        definition = json.loads((export / "tokenizer.json").read_bytes())
        (export / "tokenizer.json").write_text(json.dumps({**definition, "post_processor": None}))
    model, asked = load_model(export, torch.device("cpu"), LENGTH), requests(case, 6)
    begun = Scorer(model, export, LENGTH, lambda *_: None, "bos")
    tokenizer = transformers.AutoTokenizer.from_pretrained(export, add_bos_token=True)
    harness = HFLM(
        pretrained=model,
        tokenizer=tokenizer,
        max_length=LENGTH,
        batch_size=1,
        backend="causal",
        add_bos_token=True,
    )
    found = begun.loglikelihood(asked)
    agree(found, harness.loglikelihood(asked, disable_tqdm=True))
    assert begun.tok_encode("the mill")[0] == 1
    plain = Scorer(model, export, LENGTH, lambda *_: None).loglikelihood(asked)
    same = [a for a, _ in found] == pytest.approx([a for a, _ in plain], abs=2e-3)
    assert same is (processor == "adds it")
