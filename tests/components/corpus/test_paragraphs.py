"""The same bytes by any number of worker processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from storage.draft import Draft
from storage.workers import Workers
from tasks.corpus import dedup
from tasks.corpus.dedup import DedupConfig, DedupInputs
from tasks.corpus.duplicates.paragraphs import ParagraphConfig
from tests.support.corpus.duplicates import run_on
from tests.support.corpus.slices import bytes_in, edited_in, slice_of

NOTICE = "This work is licensed to everybody under the same terms as the last one."


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
