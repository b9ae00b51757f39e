"""The corpus benchmark measures what it says: every step with all that it has to load."""

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


def test_a_peers_step_on_the_whole_way_is_for_what_our_stage_was_given() -> None:
    peer = {"dedup": 10.0, "filter": 20.0, "tokens": 30.0, "tokenize": 1000.0}
    assert corpus.whole_way(peer, {"dedup": 100, "filter": 90, "tokenize": 50}, 100) == 10 + 18 + 15


def test_what_a_peer_costs_whatever_it_is_given_is_counted_once() -> None:
    def seconds(size: int) -> float:
        return 7.0 + 0.5 * size

    assert corpus.at_size({10: seconds(10), 20: seconds(20)}, 100) == pytest.approx(seconds(100))
    assert corpus.at_size({100: seconds(100)}, 100) == seconds(100)
