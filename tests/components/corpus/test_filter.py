"""The same bytes by any number of worker processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from storage.draft import Draft
from storage.testing import artifact_of
from storage.workers import Workers
from tasks.corpus import filter as stage
from tasks.corpus.filter import FilterInputs
from tests.support.corpus.prose import GOPHER, sentences
from tests.support.corpus.slices import bytes_in, slice_of


def test_the_bytes_are_the_same_for_any_number_of_workers(tmp_path: Path) -> None:
    texts = [sentences(int(n), seed) for seed, n in enumerate(np.random.default_rng(0).integers(1, 20, 40))]
    given_ = slice_of(tmp_path / "in", texts, shards=4)
    artifact = artifact_of(stage, GOPHER, FilterInputs(given_), tmp_path / "store")
    with Workers(2) as workers:
        several = Draft(tmp_path / "several", workers=workers)
        stage.run(GOPHER, FilterInputs(given_), several)
    made = bytes_in(artifact.path)
    made.pop("manifest.json")
    assert made == {name: data for name, data in bytes_in(several.path).items() if ".arrow" not in name}
    assert 0 < artifact.stats["documents_out"] < 40
