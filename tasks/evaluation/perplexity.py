"""Stage `perplexity`: how well a model predicts the held-out documents of one source.

A document is read in windows of `max_length` tokens. Each begins with a part of the one before as context (`overlap`, by
default half). Each token is scored exactly once, by the first window that reaches it; so after the first window, each token
has at least that part of a window before it. The first token follows an end-of-text token, or the base's own begin-of-text
token (`packing.begin`), which is not scored. Bytes are the text's UTF-8. The harness's rolling perplexity is another one:
its windows are disjoint.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage.artifact import Input
from storage.draft import Draft
from storage.errors import BadInput
from storage.settings import Settings, execution, identity
from tasks.corpus.documents import read_documents
from tasks.corpus.tokens.begin import EOS, Begin
from tasks.evaluation import resume
from tasks.evaluation.catalog import FP32, Precision
from tasks.evaluation.resume import ComputedBatches

if TYPE_CHECKING:
    from tasks.evaluation.passes import Positions

STAGE = "perplexity"
VERSION = 2
_BATCH_LOGITS = {"cpu": 2**25, "cuda": 2**30}  # values of logits per batch
_BATCH_TOKENS = {
    "cpu": 512,
    "cuda": 131_072,
}  # of a CPU's batch, a thread keeps the activations in its caches


class PerplexityConfig(Settings):
    """How held-out documents are read."""

    max_length: int = identity(description="Tokens of a window: the sequence length of training.", ge=2)
    limit_documents: int | None = identity(
        None, description="At most so many documents, by id; null: all.", ge=1
    )
    begin: Begin = identity(
        EOS,
        since="0.2",
        description="Token before a document: eos, or bos, the base's own begin-of-text token.",
    )
    precision: Precision = identity(FP32, since="0.2", description="Arithmetic: fp32 or bf16.")
    overlap: float = identity(
        0.5,
        since="0.2",
        description="Share of a window that the next one reads again, as context.",
        ge=0,
        le=0.75,
    )
    device: str = execution("auto", description="auto, cpu or cuda.")


@dataclass(frozen=True)
class PerplexityInputs:
    """A model (part `export`) and the held-out documents of a source (part `holdout`)."""

    model: Input
    holdout: Input


@dataclass(frozen=True)
class PerplexityStats:
    """perplexity = exp(nll / tokens); bits_per_byte = nll / ln 2 / bytes. nll is in nats, over all documents."""

    perplexity: float
    bits_per_byte: float
    nll: float
    tokens: int
    bytes: int
    documents: int


@dataclass(frozen=True)
class Window:
    """Inputs tokens[start:end], targets tokens[start+1:end+1]; the first `skip` targets were scored before."""

    start: int
    end: int
    skip: int


def stride_of(length: int, overlap: float) -> int:
    """Tokens by which a window advances."""
    return max(1, int(length * (1 - overlap)))


def windows(targets: int, length: int, stride: int) -> Iterator[Window]:
    """Windows over a document of `targets` tokens after its end-of-text token. Each target is scored in exactly one."""
    start, scored = 0, 0
    while scored < targets:
        end = min(start + length, targets)
        yield Window(start, end, scored - start)
        scored, start = end, start + stride


def run(config: PerplexityConfig, inputs: PerplexityInputs, draft: Draft) -> PerplexityStats:
    """Parts `scores` (scores.json) and `documents` (documents.parquet: id, nll in nats, tokens, bytes).

    Raises BadInput if there is no held-out text, ConfigError for a length that the model does not support.
    """
    from tasks.evaluation.model import SLOW, execution_facts, load_text_model, slow_in

    documents = read_documents(inputs.holdout.paths, columns=["id", "text"]).sort_by("id")
    texts = documents["text"].to_pylist()[: config.limit_documents]
    read = load_text_model(inputs.model, config.device, config.max_length, config.begin, config.precision)
    tokens = [np.array(ids, dtype=np.int64) for ids in read.ids_of(texts)]
    stride = stride_of(config.max_length, config.overlap)
    if slow_in(config.precision, read.device):
        draft.say(SLOW)
    with ComputedBatches(draft.path / resume.NAME, execution_facts(read.device)) as kept:
        nll = document_nll(read.model, tokens, config.max_length, stride, draft, kept)
    table = pa.table(
        {
            "id": documents["id"].combine_chunks()[: config.limit_documents],
            "nll": pa.array(nll, pa.float64()),
            "tokens": pa.array([len(ids) - 1 for ids in tokens], pa.int64()),
            "bytes": pa.array([len(text.encode()) for text in texts], pa.int64()),
        }
    )
    stats = _stats(table)
    scores = {**vars(stats), "max_length": config.max_length, "stride": stride}
    if config.begin != EOS:
        scores["begin"] = config.begin
    if config.precision != FP32:
        scores["precision"] = config.precision
    (draft.path / "scores.json").write_text(
        json.dumps(scores, indent=1, sort_keys=True) + "\n", encoding="utf-8"
    )
    pq.write_table(table, draft.path / "documents.parquet", compression="zstd")
    draft.part("scores", "scores.json")
    draft.part("documents", "documents.parquet")
    draft.note(**execution_facts(read.device))
    return stats


def _stats(table: pa.Table) -> PerplexityStats:
    nll, tokens, size = (table[name].to_numpy().sum() for name in ("nll", "tokens", "bytes"))
    if not tokens:
        raise BadInput("no held-out text to measure perplexity on: raise corpus.holdout_fraction")
    return PerplexityStats(
        perplexity=math.exp(nll / tokens),
        bits_per_byte=float(nll / math.log(2) / size),
        nll=float(nll),
        tokens=int(tokens),
        bytes=int(size),
        documents=len(table),
    )


def document_nll(
    model: Any, tokens: list[np.ndarray], length: int, stride: int, draft: Draft, kept: ComputedBatches
) -> np.ndarray:
    """Negative log-likelihood of each document's tokens after its first one: nats, float64, shape (documents,).

    Windows are batched by length, longest first. The batches depend on the documents alone; those that an earlier
    attempt computed are in `kept`.
    """
    from tasks.evaluation.passes import computed, head_at_scored

    jobs = [
        (document, window)
        for document, ids in enumerate(tokens)
        for window in windows(len(ids) - 1, length, stride)
    ]
    jobs.sort(key=lambda job: (job[1].skip > 0, job[1].start - job[1].end, job[0], job[1].start))
    batches = list(_batches(jobs, model.config.get_text_config().vocab_size, model.device.type))
    total = sum(len(ids) - 1 for ids in tokens)
    nll, done = np.zeros(len(tokens)), 0
    earlier = list(itertools.islice(iter(kept.next, None), len(batches)))
    with head_at_scored(model) as wanted:
        made = computed(
            model, batches[len(earlier) :], lambda batch: _batch_nll(model, wanted, tokens, batch)
        )
        found = itertools.chain(earlier, _keeping(kept, made))
        for number, (batch, values) in enumerate(zip(batches, found, strict=True), 1):
            for (document, window), value in zip(batch, values, strict=True):
                nll[document] += value
                done += window.end - window.start - window.skip
            if number >= len(earlier):  # the time left is reckoned from the first report
                draft.progress(done, total, "tokens")
    return nll


def _keeping(kept: ComputedBatches, made: Iterator[list[float]]) -> Iterator[list[float]]:
    for values in made:
        kept.add(values)
        yield values


Job = tuple[int, Window]


def _batches(jobs: list[Job], vocabulary: int, device: str) -> Iterator[list[Job]]:
    """Groups of jobs that stay below the caps of a batch. First windows and later ones are never in the same group."""
    kind = device if device in _BATCH_TOKENS else "cpu"
    batch: list[Job] = []
    for job in jobs:
        if batch:
            first = batch[0][1]
            rows = len(batch) + 1
            kept = first.end - first.start - min(first.skip, job[1].skip)
            full = (
                rows * (first.end - first.start) > _BATCH_TOKENS[kind]
                or rows * kept * vocabulary > _BATCH_LOGITS[kind]
            )
            if full or (job[1].skip > 0) != (first.skip > 0):
                yield batch
                batch = []
        batch.append(job)
    if batch:
        yield batch


def _batch_nll(model: Any, wanted: Positions, tokens: list[np.ndarray], batch: list[Job]) -> list[float]:
    import torch

    from tasks.evaluation.passes import log_likelihoods

    longest = max(window.end - window.start for _, window in batch)
    inputs = np.zeros((len(batch), longest), dtype=np.int64)
    for row, (document, window) in enumerate(batch):
        inputs[row, : window.end - window.start] = tokens[document][window.start : window.end]
    counts = [window.end - window.start - window.skip for _, window in batch]
    rows = np.repeat(np.arange(len(batch)), counts)
    columns = np.concatenate([np.arange(window.skip, window.end - window.start) for _, window in batch])
    targets = np.concatenate(
        [tokens[document][window.start + 1 + window.skip : window.end + 1] for document, window in batch]
    )
    ids, wanted.rows, wanted.columns, aims = (
        torch.from_numpy(values).to(model.device) for values in (inputs, rows, columns, targets)
    )
    # padding is on the right: under a causal mask no scored position sees it, so no mask is needed
    logits = model(input_ids=ids, use_cache=False).logits[0]
    values, _ = log_likelihoods(logits, aims)
    ends = np.cumsum(counts)
    return [-sum(values[end - count : end]) for end, count in zip(ends.tolist(), counts, strict=True)]
