"""The corpus benchmark's tokens, counted by a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import corpus, corpus_ours


def test_all_text_is_tokenized_by_a_process_that_has_no_tokenizer_yet(
    tmp_path: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "DATA", shared_data)
    monkeypatch.setattr(corpus_ours, "PACKED_TOKENS", 1)
    corpus.write_text(tmp_path / "text.parquet", 0.4)
    corpus.write_tokenizer(tmp_path / "tokenizer")
    found = corpus_ours.our_steps(tmp_path, 1)
    assert found["tokenize_all"]["tokenizers_before"] == 0
    assert found["tokenize_all"]["tokens"] >= found["tokenize"]["tokens"] > 0
    assert found["tokenize_all"]["cpu"] > 0
    sizes = [found[stage]["bytes"] for stage in corpus.SAME.values()]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[-1] > 0  # what each stage was given
