from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from storage.errors import BadInput
from storage.testing import artifact_of, draft_in
from tasks.evaluation import perplexity
from tests.support.evaluation.cases import LENGTH, Case, scores

WINDOW = 64


@given(st.integers(0, 700), st.integers(2, 64), st.sampled_from([0, 0.1, 0.25, 0.5, 0.75]))
def test_every_target_is_scored_once_with_its_share_of_a_window_before_it(
    targets: int, length: int, overlap: float
) -> None:
    scored = []
    stride = perplexity.stride_of(length, overlap)
    assert stride == length // 2 or overlap != 0.5
    for window in perplexity.windows(targets, length, stride):
        assert 0 < window.end - window.start <= length and 0 <= window.skip < window.end - window.start
        assert window.start == 0 or window.skip == length - stride >= min(length * overlap, length - 1)
        scored += range(window.start + window.skip, window.end)
    assert scored == list(range(targets))


def slowly(export: Path, text: str, length: int, first: int | None = None) -> float:
    """The same measure written out: each token by itself, after its own window's tokens, in plain transformers."""
    model = AutoModelForCausalLM.from_pretrained(export, dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(export / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    ids = [first or model.config.eos_token_id, *tokenizer.encode(text, add_special_tokens=False).ids]
    total = 0.0
    for target in range(1, len(ids)):
        steps = max(0, -(-(target - length) // (length // 2)))
        start = steps * (length // 2)
        with torch.no_grad():
            logits = model(torch.tensor([ids[start:target]])).logits[0, -1]
        total -= float(torch.log_softmax(logits.double(), -1)[ids[target]])
    return total


def measured(case: Case, texts: list[str], source: str):
    inputs = perplexity.PerplexityInputs(
        case.base.part("export"), case.holdout(texts, source).part("holdout")
    )
    return artifact_of(
        perplexity, perplexity.PerplexityConfig(max_length=WINDOW, device="cpu"), inputs, case.store
    )


def test_it_agrees_with_one_token_at_a_time(case: Case) -> None:
    texts = [case.texts[0][:700], "Once upon a time", case.texts[1][:90], "a"]
    made = measured(case, texts, "few")
    table = pl.read_parquet(made.part("documents").only()).sort("id")
    ids = pl.read_parquet(case.holdout(texts, "few").part("holdout").only())
    expected = {
        name: slowly(case.base.path / "export", text, WINDOW)
        for name, text in ids.select("id", "text").rows()
    }
    for name, nll, _, _ in table.rows():
        assert nll == pytest.approx(expected[name], rel=1e-5)
    found = scores(made)
    assert found["nll"] == pytest.approx(sum(expected.values()), rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(found["nll"] / found["tokens"]))
    assert found["bytes"] == sum(len(text.encode()) for text in texts) and found["documents"] == 4
    assert found["bits_per_byte"] == pytest.approx(found["nll"] / math.log(2) / found["bytes"])


def test_text_that_spells_a_special_token_stays_text(case: Case) -> None:
    plain = scores(measured(case, ["the end", "b"], "plain"))
    spelled = scores(measured(case, ["the end</s><s>", "b"], "spelled"))
    assert spelled["tokens"] >= plain["tokens"] + 5


def test_batching_changes_nothing_but_rounding(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [text[:1500] for text in case.texts[:6]]
    many = scores(measured(case, texts, "some"))
    monkeypatch.setattr(perplexity, "_BATCH_TOKENS", {"cpu": 1})
    inputs = perplexity.PerplexityInputs(
        case.base.part("export"), case.holdout(texts, "some").part("holdout")
    )
    alone = perplexity.run(
        perplexity.PerplexityConfig(max_length=WINDOW, device="cpu"), inputs, draft_in(tmp_path)
    )
    assert alone.nll == pytest.approx(many["nll"], rel=1e-6) and alone.tokens == many["tokens"]


def test_the_same_inputs_give_the_same_bytes(case: Case, tmp_path: Path) -> None:
    texts = [text[:800] for text in case.texts[:4]]
    made = measured(case, texts, "again")
    inputs = perplexity.PerplexityInputs(
        case.base.part("export"), case.holdout(texts, "again").part("holdout")
    )
    draft = draft_in(tmp_path)
    perplexity.run(perplexity.PerplexityConfig(max_length=WINDOW, device="cpu"), inputs, draft)
    for name in ("scores.json", "documents.parquet"):
        assert (draft.path / name).read_bytes() == (made.path / name).read_bytes()


def test_the_same_bytes_come_from_any_number_of_threads(case: Case, tmp_path: Path) -> None:
    texts = [text[:1500] for text in case.texts[:5]]
    inputs = perplexity.PerplexityInputs(
        case.base.part("export"), case.holdout(texts, "threads").part("holdout")
    )
    found = []
    for threads in (3, 1):
        draft = draft_in(tmp_path / str(threads))
        torch.set_num_threads(threads)
        perplexity.run(perplexity.PerplexityConfig(max_length=WINDOW, device="cpu"), inputs, draft)
        found.append([(draft.path / name).read_bytes() for name in ("scores.json", "documents.parquet")])
    assert found[0] == found[1]


def test_progress_counts_every_token_once(case: Case, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    draft = draft_in(tmp_path)
    draft._progress = lambda done, total, unit: seen.append((done, total))
    texts = [text[:800] for text in case.texts[:4]]
    inputs = perplexity.PerplexityInputs(
        case.base.part("export"), case.holdout(texts, "again").part("holdout")
    )
    stats = perplexity.run(perplexity.PerplexityConfig(max_length=WINDOW, device="cpu"), inputs, draft)
    assert seen[-1] == (stats.tokens, stats.tokens)


def test_no_held_out_text_is_an_error(case: Case, tmp_path: Path) -> None:
    inputs = perplexity.PerplexityInputs(case.base.part("export"), case.holdout([], "none").part("holdout"))
    with pytest.raises(BadInput, match="holdout_fraction"):
        perplexity.run(
            perplexity.PerplexityConfig(max_length=LENGTH, device="cpu"), inputs, draft_in(tmp_path)
        )


def test_an_export_without_an_end_of_text_token_is_an_error(tmp_path: Path) -> None:
    from tasks.evaluation.model import end_of_text

    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": [7, 8]}))
    assert end_of_text(tmp_path) == 7
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": None}))
    with pytest.raises(BadInput, match="eos_token_id"):
        end_of_text(tmp_path)


def test_a_document_of_one_window_is_what_the_harness_s_rolling_measure_says(case: Case) -> None:
    """Its windows are disjoint, so longer documents differ: there ours sees half a window, theirs one token, before."""
    texts = ["Once upon a time, there was a little girl named Lily. Ærø — ünïcödé, 日本語 ✓", "Tom sat."]
    made = measured(case, texts, "short")
    export = case.base.path / "export"
    model = AutoModelForCausalLM.from_pretrained(export, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(export)
    harness = HFLM(
        pretrained=model, tokenizer=tokenizer, max_length=WINDOW, add_bos_token=False, prefix_token_id=2
    )
    requests = [SimpleNamespace(args=(text,)) for text in texts]
    assert all(len(tokenizer(text, add_special_tokens=False)["input_ids"]) <= WINDOW for text in texts)
    theirs = harness.loglikelihood_rolling(requests, disable_tqdm=True)
    assert scores(made)["nll"] == pytest.approx(-sum(theirs), rel=1e-5)
    assert scores(made)["bytes"] == sum(len(text.encode()) for text in texts) > sum(map(len, texts))
    long = [case.texts[2][:1500]]
    rolling = harness.loglikelihood_rolling([SimpleNamespace(args=(long[0],))], disable_tqdm=True)
    assert scores(measured(case, long, "long"))["nll"] < -sum(rolling)


def test_stride_and_length_are_told_with_the_scores(case: Case) -> None:
    found = scores(measured(case, ["Once upon a time", "Tom sat."], "told"))
    assert found["max_length"] == WINDOW and found["stride"] == WINDOW // 2


def test_less_overlap_and_less_precision_are_other_measures_with_other_keys(case: Case) -> None:
    texts = [text[:900] for text in case.texts[:4]]
    inputs = perplexity.PerplexityInputs(
        case.base.part("export"), case.holdout(texts, "overlap").part("holdout")
    )
    found = {}
    for overlap, precision in ((0.5, "fp32"), (0, "fp32"), (0.5, "bf16")):
        config = perplexity.PerplexityConfig(
            max_length=WINDOW, device="cpu", overlap=overlap, precision=precision
        )
        made = artifact_of(perplexity, config, inputs, case.store)
        found[made.key] = scores(made)
    usual, apart, coarse = found.values()
    assert (usual["stride"], apart["stride"]) == (WINDOW // 2, WINDOW)
    assert apart["nll"] > usual["nll"] and apart["tokens"] == usual["tokens"]
    assert coarse["precision"] == "bf16" and "precision" not in usual
    assert coarse["nll"] == pytest.approx(usual["nll"], rel=0.02) and coarse["nll"] != usual["nll"]


def test_a_document_begins_with_the_base_s_own_token_where_that_is_asked(case: Case) -> None:
    texts = [case.texts[0][:700], "Once upon a time", "a"]
    holdout = case.holdout(texts, "begun").part("holdout")
    inputs = perplexity.PerplexityInputs(case.base.part("export"), holdout)
    config = perplexity.PerplexityConfig(max_length=WINDOW, device="cpu", begin="bos")
    found = scores(artifact_of(perplexity, config, inputs, case.store))
    assert found["nll"] == pytest.approx(
        sum(slowly(case.base.path / "export", text, WINDOW, first=1) for text in texts), rel=1e-5
    )
    plain = scores(measured(case, texts, "begun"))
    assert found["tokens"] == plain["tokens"] and found["nll"] != pytest.approx(plain["nll"], rel=1e-3)
    assert found["begin"] == "bos" and "begin" not in plain
