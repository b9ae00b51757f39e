"""Every kind of model that trains can be measured: samples, perplexity and answers are those of plain transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from storage.testing import draft_in
from tasks.evaluation.batches import ScoredRow, Unit
from tasks.evaluation.passes import head_at_scored
from tasks.evaluation.perplexity import document_nll
from tasks.evaluation.resume import ComputedBatches
from tasks.evaluation.samples import continued
from tasks.evaluation.scorer import Shares, _likelihoods, shares_of
from tests.support.training.families import STATEFUL, config_of, of_every_family
from tests.support.training.world import VOCABULARY

MAMBA2 = {"hidden_size": 32, "num_hidden_layers": 2, "num_heads": 4, "head_dim": 16, "n_groups": 1}
WORDS = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}
NAMES = (
    "llama",
    "gpt2",
    "cohere",
    "granite scaled",
    "gemma3_text capped",
    "gemma3 with a window",
    "xlstm",
    *STATEFUL,
)
KINDS = {
    **{name: of_every_family()[name] for name in NAMES},
    "mamba2": lambda: config_of("mamba2", **(MAMBA2 | WORDS)),
}


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest):
    torch.manual_seed(3)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made = AutoModelForCausalLM.from_config(KINDS[request.param]()).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)
    yield made
    torch.set_num_threads(threads)


def logits(model, ids) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([list(ids)]), use_cache=False).logits[0].double()


def test_what_it_writes_is_what_it_writes_after_the_whole_text(model) -> None:
    ids = [5, 6, 7, 8, 9]
    found, ended = continued(model, ids, 8, -1, lambda row, place: int(row.argmax()))
    assert len(found) == 8 and not ended
    for place in range(8):
        row = logits(model, [*ids, *found[:place]])[-1]
        assert float(row[found[place]]) == pytest.approx(float(row.max()), abs=1e-4)


def test_its_perplexity_is_that_of_windows_one_by_one(model, tmp_path: Path) -> None:
    tokens = [np.arange(1, 40) % 90, np.arange(3, 12)]
    with ComputedBatches(tmp_path / "batches", {}) as kept:
        found = document_nll(model, tokens, 16, 8, draft_in(tmp_path / "draft"), kept)
    for document, value in zip(tokens, found, strict=True):
        expected = 0.0
        for target in range(1, len(document)):
            begin = max(0, -(-(target - 16) // 8)) * 8
            row = torch.log_softmax(logits(model, document[begin:target])[-1], -1)
            expected -= float(row[document[target]])
        assert value == pytest.approx(expected, rel=1e-4)


def test_answers_are_as_likely_as_in_plain_transformers(model) -> None:
    context, answers = (4, 9, 2, 30, 31), [(7, 8, 1), (12,)]
    rows = [ScoredRow(context, [answer]) for answer in answers]
    with torch.inference_mode(), head_at_scored(model) as wanted:
        found = _likelihoods(model, wanted, Unit((), [rows]))
    values = [value for value, _ in found]
    for answer, value in zip(answers, values, strict=True):
        whole = torch.log_softmax(logits(model, (*context, *answer[:-1])), -1)
        expected = sum(float(whole[len(context) - 1 + place, word]) for place, word in enumerate(answer))
        assert value == pytest.approx(expected, abs=1e-3)


WITHOUT_A_MASK_OF_OURS = {"gemma3 with a window", "xlstm", "mamba2", *STATEFUL}


def test_it_shares_only_what_it_can_go_on_from(model, request: pytest.FixtureRequest) -> None:
    kind = request.node.callspec.params["model"]
    shares = kind not in WITHOUT_A_MASK_OF_OURS
    assert shares_of(model, 64) == Shares(shares, shares)
