"""The same bytes by any number of worker processes."""

from __future__ import annotations

import json
from pathlib import Path

from storage.draft import Draft
from storage.testing import artifact_of, draft_in
from storage.workers import Workers
from tasks.corpus import decontaminate
from tasks.corpus.benchmarks.questions import benchmark_inputs
from tasks.corpus.decontaminate import DecontaminateConfig, DecontaminateInputs
from tests.support.corpus.slices import bytes_in, slice_of

LONG = "Which of these rivers, if any, had carried the grain of the northern plains down to the sea?"
SHORT = "What colour is the flag of Utopia?"
QUESTIONS = [
    {"question": LONG, "choices": ["The Styx", "The Po"], "answer": 1},
    {"question": SHORT, "choices": ["pale green", "red"], "answer": 0},
    {"question": "Who?", "choices": ["he", "she"], "answer": 0},
]
FILLER = "Nothing in this sentence was ever asked of anyone."


def run_on(
    directory: Path, texts: list[str], rows: list[dict] | None = None, first: bool = False, **config: object
) -> tuple[Path, decontaminate.DecontaminateStats]:
    files = directory / "benchmarks"
    (files / "quiz").mkdir(parents=True, exist_ok=True)
    (files / "quiz" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows or QUESTIONS))
    entries, paths = benchmark_inputs(files, ("quiz",))
    settings_ = DecontaminateConfig(**{"benchmarks": ("quiz",), "holdout_fraction": 0.1, **config})
    draft = draft_in(directory)
    given_ = slice_of(directory / "in", texts)
    return draft.path, decontaminate.run(settings_, DecontaminateInputs(given_, entries, first, paths), draft)


def test_the_bytes_are_the_same_for_any_number_of_workers(tmp_path: Path) -> None:
    texts = [f"{FILLER} {i} {LONG if i % 7 == 0 else ''}" for i in range(100)]
    alone, _ = run_on(tmp_path, texts, first=True)
    entries, paths = benchmark_inputs(tmp_path / "benchmarks", ("quiz",))
    inputs = DecontaminateInputs(slice_of(tmp_path / "in", texts), entries, True, paths)
    config = DecontaminateConfig(benchmarks=("quiz",), holdout_fraction=0.1)
    with Workers(2) as workers:
        several = Draft(tmp_path / "several", workers=workers)
        decontaminate.run(config, inputs, several)
    assert bytes_in(alone) == bytes_in(several.path)
    artifact = artifact_of(decontaminate, config, inputs, tmp_path / "store")
    assert set(artifact.manifest.parts) == {"documents", "holdout", "dropped", "hits"}
