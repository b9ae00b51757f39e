"""The same bytes by any number of worker processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from storage.artifact import Chain, Input
from storage.draft import Draft
from storage.workers import Workers
from tasks.corpus import dedup
from tasks.corpus.dedup import DedupConfig, DedupInputs
from tasks.corpus.duplicates.paragraphs import ParagraphConfig
from tests.support.corpus.slices import bytes_in, slice_of

NOTICE = "This work is licensed to everybody under the same terms as the last one."
CONFIG = DedupConfig(minhash=None, paragraphs=ParagraphConfig())


def run_on(
    directory: Path, given_: Input, config: DedupConfig = CONFIG, earlier: tuple[Input, ...] = ()
) -> tuple[Path, dedup.DedupStats]:
    draft = Draft(directory / "draft")
    stats = dedup.run(config, DedupInputs(given_, Chain(earlier) if earlier else None), draft)
    return draft.path, stats


def edited_in(path: Path) -> list[dict]:
    return pq.read_table(path / "edited.parquet").to_pylist()


def test_the_bytes_are_the_same_for_any_number_of_workers(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    pool = [f"{NOTICE} {i}" for i in range(20)]
    texts = ["\n".join([f"document {i}", *random.choice(pool, 5)]) for i in range(40)]
    given_ = slice_of(tmp_path / "in", texts, shards=4)
    config = DedupConfig(paragraphs=ParagraphConfig())
    alone, _ = run_on(tmp_path, given_, config)
    with Workers(2) as workers:
        several = Draft(tmp_path / "several", workers=workers)
        dedup.run(config, DedupInputs(given_), several)
    assert bytes_in(alone) == bytes_in(several.path)
    assert any(row["lines"] for row in edited_in(alone))
