"""The same bytes by any number of worker processes."""

from __future__ import annotations

from pathlib import Path

from storage.draft import Draft
from storage.testing import artifact_of
from storage.workers import Workers
from tasks.corpus import decontaminate
from tasks.corpus.benchmarks.questions import benchmark_inputs
from tasks.corpus.decontaminate import DecontaminateConfig, DecontaminateInputs
from tests.support.corpus.held_out import Slices
from tests.support.corpus.prose import sentences
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
    slices = {}
    with Workers(2) as workers:
        for name, given in (("alone", None), ("several", workers)):
            line = Slices(tmp_path / f"slices-{name}", workers=given)
            held = line.add(
                "tales", [*(sentences(8, seed) for seed in range(40)), *"甲乙丙丁"], shards=4
            ).held
            line.add(
                "letters", [*(f"{sentences(30, 99)} {text}" for text in held), sentences(9, 98)], shards=5
            )
            slices[name] = [bytes_in(made.path) for made in line.made]
            assert line.made[1].stats.dropped_by_reason["held_out_overlap"] >= len(held) - 4
    assert slices["alone"] == slices["several"]
    artifact = artifact_of(decontaminate, config, inputs, tmp_path / "store")
    assert set(artifact.manifest.parts) == {"documents", "holdout", "dropped", "hits", "known"}
