"""What holds for a whole corpus, whatever its texts: conservation, looking back only, the same bytes for any workers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from storage.artifact import Artifact, Input
from storage.packing import PackingManifest
from storage.tokens import TokenShard
from storage.workers import Workers
from tasks.corpus.documents import read_documents
from tests.tasks.corpus.line import Line, gpt2, write_source

PLAIN = ("the", "grain", "of", "Fuß", "naïve", "日本語", "\n", "\r\n")
ODD = ("\U0001f30a", "a\u0301", "\u200b", "\u2028", "\ufeff", "<|endoftext|>", "\x00", "x@y.org")
WORDS = st.sampled_from([*PLAIN, *ODD])
TEXTS = st.lists(
    st.one_of(st.text(max_size=60), st.lists(WORDS, max_size=40).map(" ".join)), min_size=1, max_size=14
)
pytestmark = pytest.mark.slow
OWN = ("grain", "river", "plain")
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


def line_of(root: Path, texts: Sequence[str], tokenizer: Input, store: str = "store", **over: object) -> Line:
    """Two sources of the same texts, but for a few of their own that nothing takes for copies."""
    for name in ("tales", "letters"):
        own = [f"{name} {word} " * 3 for word in OWN]
        write_source(root / f"{name}.jsonl", [{"text": text} for text in (*own, *texts)])
    return Line(root, root / store, tokenizer, ("tales", "letters"), **{"slice_bytes": 400, **over})  # type: ignore[arg-type]


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
    line = line_of(tmp_path_factory.mktemp("line"), texts, tokenizer).read().pack(4).pack(3)
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
        shards = [TokenShard.open(path) for path in stages["tokenize"].part("tokens").paths]
        assert [int(one) for shard in shards for one in shard.docs] == before
        assert sum(int(shard.lengths.sum()) for shard in shards) == stages["tokenize"].stats["tokens"]
    assert rows == {name: len(texts) + len(OWN) for name in line.sources}
    for source, ledger in line.packed[-1].stats["sources"].items():
        tokens = sum(one.artifacts["tokenize"].stats["tokens"] for one in line.slices if one.source == source)
        placed = [ledger[f"tokens_{name}"] for name in ("placed", "carried", "not_taken")]
        assert tokens + ledger["tokens_repeated"] == sum(placed)
    for made in line.packed:
        assert PackingManifest.open(made.part("manifest").only()).pieces.length.sum() == made.stats["tokens"]


@MANY
@given(texts=TEXTS, more=TEXTS, n=st.integers(1, 4))
def test_slices_and_rounds_that_are_there_do_not_change_with_what_comes_later(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Input, texts: list[str], more: list[str], n: int
) -> None:
    """n slices and a round, then all of them and a second round: the first n, and the first round, are the same bytes."""
    root = tmp_path_factory.mktemp("back")
    few = line_of(root, texts + more, tokenizer, store="few").read(max(n, 2)).pack(3)
    first = few.digests()
    whole = line_of(root, texts + more, tokenizer, store="whole").read(len(few.slices)).pack(3).read().pack(2)
    parts = [artifact for one in whole.slices[: len(few.slices)] for artifact in one.artifacts.values()]
    kept = Line(root, root, tokenizer, (), slices=whole.slices[: len(few.slices)], packed=whole.packed[:1])
    assert len(parts) == 5 * len(few.slices) and kept.digests() == first


@settings(parent=MANY, max_examples=3)
@given(texts=TEXTS)
def test_the_bytes_are_the_same_for_any_number_of_workers(
    tmp_path_factory: pytest.TempPathFactory, tokenizer: Input, texts: list[str]
) -> None:
    root = tmp_path_factory.mktemp("workers")
    alone = line_of(root, texts * 3, tokenizer, store="alone").read().pack(3).digests()
    with Workers(2) as workers:
        assert (
            line_of(root, texts * 3, tokenizer, store="two", workers=workers).read().pack(3).digests()
            == alone
        )
