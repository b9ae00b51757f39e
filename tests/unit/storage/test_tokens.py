from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import BadInput, DamagedArtifact
from storage.tokens import TokenShard, token_dtype, write_shard


def write(path: Path, documents: list[list[int]], *, eot: int = 0, vocabulary: int = 50_257) -> None:
    closed = [[*document, eot] for document in documents]
    write_shard(
        path,
        np.arange(100, 100 + len(closed), dtype=np.uint64),
        np.asarray([token for document in closed for token in document], dtype=np.int64),
        np.asarray([len(document) for document in closed], dtype=np.int64),
        eot=eot,
        vocabulary=vocabulary,
        tokenizer="digest-of-tokenizer",
    )


@settings(max_examples=50, deadline=None)
@given(
    documents=st.lists(st.lists(st.integers(1, 65_000), max_size=20), max_size=10),
    vocabulary=st.sampled_from([65_001, 65_535, 65_536, 100_278]),
)
def test_every_document_reads_back_closed_and_the_shard_opened(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]], vocabulary: int
) -> None:
    path = tmp_path_factory.mktemp("shard") / "tokens.arrow"
    write(path, documents, vocabulary=vocabulary)
    shard = TokenShard.open(path)
    assert [shard[i].tolist() for i in range(len(shard))] == [[*document, 0] for document in documents]
    assert shard.tokens[0] == 0
    assert len(shard.tokens) == 1 + int(shard.lengths.sum())
    assert shard.docs.tolist() == list(range(100, 100 + len(documents)))
    assert shard.tokens.dtype == token_dtype(vocabulary)
    assert (shard.tokenizer, shard.vocabulary, shard.eot) == ("digest-of-tokenizer", vocabulary, 0)


def test_dtype_follows_the_vocabulary() -> None:
    assert token_dtype(50_257) == np.uint16
    assert token_dtype(65_535) == np.uint16
    assert token_dtype(65_536) == np.uint32


def test_views_are_of_the_mapped_file_and_outlive_the_reader(tmp_path: Path) -> None:
    path = tmp_path / "tokens.arrow"
    write(path, [[1, 2, 3]] * 1000)
    tokens = TokenShard.open(path).tokens
    assert not tokens.flags.owndata
    assert not tokens.flags.writeable
    assert int(tokens.sum()) == 6000
    raw = path.read_bytes()
    path.write_bytes(raw.replace(np.asarray([1, 2, 3, 0] * 3, np.uint16).tobytes(), bytes(24), 1))
    assert int(tokens.sum()) < 6000, "a change of the file is not seen: the tokens were copied"


def test_same_arguments_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "a.arrow", [[5, 6], [7]])
    write(tmp_path / "b.arrow", [[5, 6], [7]])
    assert (tmp_path / "a.arrow").read_bytes() == (tmp_path / "b.arrow").read_bytes()


@pytest.mark.parametrize(
    ("docs", "values", "lengths", "message"),
    [
        ([1], [5, 6], [2], "does not end"),
        ([1], [5, 0, 0], [2], "sum to 2"),
        ([1, 2], [5, 0], [2, 0], "sum to 2"),
        ([1, 2], [5, 0], [2], "do not match"),
        ([1], [70, 0], [2], "outside the vocabulary"),
        ([2**64 - 1], [5, 0], [2], "reserved"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    tmp_path: Path, docs: list[int], values: list[int], lengths: list[int], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        write_shard(
            tmp_path / "tokens.arrow",
            np.asarray(docs, dtype=np.uint64),
            np.asarray(values),
            np.asarray(lengths),
            eot=0,
            vocabulary=50,
            tokenizer="t",
        )


def test_a_file_that_is_no_shard_is_damaged(tmp_path: Path) -> None:
    whole = tmp_path / "tokens.arrow"
    write(whole, [[1, 2, 3]])
    cut = tmp_path / "cut.arrow"
    cut.write_bytes(whole.read_bytes()[:-40])
    (tmp_path / "text.arrow").write_text("no shard")
    (tmp_path / "empty.arrow").write_bytes(b"")
    for name in ("cut.arrow", "text.arrow", "empty.arrow"):
        with pytest.raises(DamagedArtifact, match=name):
            TokenShard.open(tmp_path / name)
