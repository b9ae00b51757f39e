"""The same bytes by any number of worker processes."""

from __future__ import annotations

from pathlib import Path

from storage.draft import Draft
from storage.testing import artifact_of
from storage.workers import Workers
from tasks.corpus import decontaminate
from tasks.corpus.benchmarks.questions import benchmark_inputs
from tasks.corpus.decontaminate import DecontaminateConfig, DecontaminateInputs
from tests.support.corpus.quiz import LONG, filler, run_on
from tests.support.corpus.slices import bytes_in, slice_of


def test_the_bytes_are_the_same_for_any_number_of_workers(tmp_path: Path) -> None:
    texts = [f"{filler(i)} {LONG if i % 7 == 0 else ''}" for i in range(100)]
    alone, _ = run_on(tmp_path, texts, first=True)
    entries, paths = benchmark_inputs(tmp_path / "benchmarks", ("quiz",))
    inputs = DecontaminateInputs(slice_of(tmp_path / "in", texts), entries, True, paths)
    config = DecontaminateConfig(benchmarks=("quiz",), holdout_fraction=0.1)
    with Workers(2) as workers:
        several = Draft(tmp_path / "several", workers=workers)
        decontaminate.run(config, inputs, several)
    assert bytes_in(alone) == bytes_in(several.path)
    artifact = artifact_of(decontaminate, config, inputs, tmp_path / "store")
    assert set(artifact.manifest.parts) == {"documents", "holdout", "dropped", "hits", "known"}
