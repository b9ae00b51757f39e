"""What holds for a whole corpus, whatever its texts: conservation, the same bytes for any workers.

That it only looks back is tested with what a run drives it by: tests/components/flows/test_reading.py.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from storage.artifact import Artifact, Input
from storage.packing import PackingManifest
from storage.tokens import TokenShard
from storage.workers import Workers
from tasks.corpus.dedup import DedupConfig
from tasks.corpus.documents import read_documents
from tasks.corpus.duplicates.paragraphs import ParagraphConfig
from tasks.corpus.filter import FilterConfig
from tasks.corpus.reading import ingest_shard, streams
from tests.support.corpus.line import Line, gpt2, write_source

PLAIN = ("the", "grain", "of", "Fuß", "naïve", "日本語", "\n", "\r\n")
ODD = ("\U0001f30a", "a\u0301", "\u200b", "\u2028", "\ufeff", "<|endoftext|>", "\x00", "x@y.org")
WORDS = st.sampled_from([*PLAIN, *ODD])
TEXTS = st.lists(
    st.one_of(st.text(max_size=60), st.lists(WORDS, max_size=40).map(" ".join)), min_size=1, max_size=14
)
pytestmark = pytest.mark.slow
QUESTION = "Which of these rivers, if any, had carried the grain of the northern plains down to the sea?"
NOTICE = "This work is licensed to everybody under the same terms as the last one."
MANY = settings(
    max_examples=6,
    deadline=None,
    phases=[
        Phase.explicit,
        Phase.reuse,
        Phase.generate,
    ],  # an example takes seconds: to shrink one takes minutes
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ],
)


@pytest.fixture(scope="module")
def tokenizer(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Input:
    return gpt2(shared_data, tmp_path_factory.mktemp("gpt2"))


def planted(name: str) -> list[str]:
    """Prose that is kept; a copy, repeated lines, a question and a page that a rule drops."""
    pages = [
        " ".join(
            f"In {name} the cart with number {page}{i} was driven to the mill and back." for i in range(8)
        )
        for page in range(10)
    ]
    pages[1:3] = [f"{NOTICE}\n{page}" for page in pages[1:3]]
    return [*pages[:8], pages[0].upper(), f"{pages[8]} {QUESTION}", f"Lorem ipsum. {pages[9]}"]


def real_line(root: Path, texts: Sequence[str], tokenizer: Input, store: str, **over: object) -> Line:
    """Two sources of the same texts, with rules of the filter, repeated lines and a benchmark that is looked for."""
    for name in ("tales", "letters"):
        rows = planted(name)
        write_source(root / f"{name}.jsonl", [{"text": text} for text in (*rows, *texts)])
    (root / "benchmarks" / "quiz").mkdir(parents=True, exist_ok=True)
    quiz = {"question": QUESTION, "choices": ["The Styx", "The Po"], "answer": 1}
    (root / "benchmarks" / "quiz" / "test.jsonl").write_text(json.dumps(quiz) + "\n")
    rules: dict[str, Any] = {
        "dedup": DedupConfig(paragraphs=ParagraphConfig()),
        "filter": FilterConfig(language="any", gopher=False, fineweb=False),
        "benchmarks": ("quiz",),
        "files": root / "benchmarks",
        "slice_bytes": 3000,
    }
    return Line(root, root / store, tokenizer, ("tales", "letters"), **{**rules, **over})


def ids_of(artifact: Artifact, part: str) -> list[int]:
    if not artifact.has(part):
        return []
    if part == "dropped":
        return pq.read_table(artifact.part("dropped").only())["id"].to_pylist()
    return read_documents(artifact.part(part).paths, ["id"])["id"].to_pylist()


@MANY
@given(texts=TEXTS)
def test_every_document_is_in_the_next_stage_or_dropped_or_held_out_and_every_token_has_its_place(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Input, texts: list[str]
) -> None:
    line = real_line(tmp_path_factory.mktemp("line"), texts, tokenizer, "store").read().pack(4).pack(3)
    dropped: set[str] = set()
    rows = dict.fromkeys(line.sources, 0)
    for one in line.slices:
        stages = one.artifacts
        rows[one.source] += stages["ingest"].stats["documents_in"]
        before = ids_of(stages["ingest"], "documents")
        for stage in ("dedup", "filter", "decontaminate"):
            left = [ids_of(stages[stage], part) for part in ("documents", "dropped", "holdout")]
            assert sorted(before) == sorted(chain.from_iterable(left)), stage
            assert len(set(before)) == len(before)
            before = left[0]
            dropped |= set(stages[stage].stats["dropped_by_reason"])
        shards = [TokenShard.open(path) for path in stages["tokenize"].part("tokens").paths]
        assert [int(one) for shard in shards for one in shard.docs] == before
        assert sum(int(shard.lengths.sum()) for shard in shards) == stages["tokenize"].stats["tokens"]
    assert rows == {name: len(texts) + len(planted(name)) for name in line.sources}
    assert dropped >= {"exact_duplicate", "c4_lorem_ipsum", "benchmark_overlap"}
    assert sum(one.artifacts["dedup"].stats["lines_removed"] for one in line.slices) > 0
    for source, ledger in line.packed[-1].stats["sources"].items():
        tokens = sum(one.artifacts["tokenize"].stats["tokens"] for one in line.slices if one.source == source)
        placed = [ledger[f"tokens_{name}"] for name in ("placed", "carried", "not_taken")]
        assert tokens + ledger["tokens_repeated"] == sum(placed)
    for made in line.packed:
        assert PackingManifest.open(made.part("manifest").only()).pieces.length.sum() == made.stats["tokens"]


def in_small_pieces() -> None:
    """In a process: slices of several files. Long enough for another worker to take the next call."""
    ingest_shard.PIECE_BYTES = 1000
    streams.SPAN_BYTES = 2000
    time.sleep(1)


@settings(parent=MANY, max_examples=2)
@given(texts=TEXTS)
def test_the_bytes_are_the_same_for_any_number_of_workers(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Input, texts: list[str]
) -> None:
    root = tmp_path_factory.mktemp("workers")
    with mock.patch.multiple(ingest_shard, PIECE_BYTES=1), mock.patch.multiple(streams, SPAN_BYTES=1):
        in_small_pieces()
        alone = real_line(root, texts * 3, tokenizer, "alone").read().pack(3)
        with Workers(2) as workers:
            list(workers.run((str(number), in_small_pieces, ()) for number in range(2)))
            two = real_line(root, texts * 3, tokenizer, "two", workers=workers).read().pack(3)
    assert two.digests() == alone.digests()
    for stage in ("ingest", "dedup", "filter", "decontaminate"):
        files = [len(one.artifacts[stage].part("documents").files) for one in two.slices]
        assert max(files) > 1, stage  # several jobs, so that two workers have something to do
