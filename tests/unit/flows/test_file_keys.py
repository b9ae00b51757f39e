"""`plan` and `why` speak of the keys of the file, and of the run that they compare with."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any, get_args

import pytest

from flows.config import RunConfig
from flows.dag.file_keys import file_key, told
from flows.dag.plan import Reasons
from storage.keys import Difference
from storage.runs import RunRecord, write_record
from storage.settings import is_section, role_of, types_of
from storage.store import Request, Store
from tasks.models.config import SegmentConfig
from tasks.stages import TABLE
from tests.support import letters_stage as letters


def sections(kind: Any) -> list[Any]:
    """The sections among the kinds of a field."""
    return [kind] if is_section(kind) else [one for inner in get_args(kind) for one in sections(inner)]


def leaves(section: Any, prefix: str = "") -> set[str]:
    """Dotted paths of all identity fields, of every alternative."""
    found: set[str] = set()
    for name, kind in types_of(section).items():
        if role_of(section, name) != "identity":
            continue
        found.add(f"{prefix}{name}")
        for inside in sections(kind):
            found |= leaves(inside, f"{prefix}{name}.")
    return found


KEYS = leaves(RunConfig) | {f"corpus.{name}" for name in ("sources",)}
NO_KEY = {"evaluate": {"benchmark", "shots"}, "questions": {"context_words", "continuation_words"},
          "samples": {"temperature", "top_p"}, "train": {"kind"}, "decay": {"kind"},
          "perplexity": {"limit_documents"},
          "data": {"reasons", "examples", "pairs", "rules", "length_bytes", "score_bytes"}}  # fmt: skip
"""Fields that no key of the file decides."""


def config_of(module: str) -> Any:
    """The configuration class of a stage, as its `run` takes it."""
    run = importlib.import_module(module).run
    return (
        SegmentConfig
        if module.endswith(("train", "decay"))
        else run.__globals__[run.__annotations__["config"]]
    )


@pytest.mark.parametrize("stage", TABLE, ids=lambda stage: stage.name)
def test_every_field_of_a_stage_has_the_key_that_decides_it(stage: Any) -> None:
    section = config_of(stage.module)
    fields = leaves(section)
    for field in sorted(fields):
        found = file_key(stage.name, f"config.{field}")
        if field.split(".")[0] in NO_KEY.get(stage.name, set()):
            assert found is None, field
            continue
        assert found is not None, f"{stage.name}: {field}"
        key = re.sub(r"\[\d+\]", "", found[0]).replace("model.base.init", "model.base")
        assert key in KEYS or key.startswith("model.base") or stage.name == "ingest", (
            f"{stage.name}: {field} → {found[0]}"
        )


@pytest.mark.parametrize(
    ("stage", "one", "words"),
    [
        ("train", Difference("config.schedule.peak", 5e-4, 1e-3), "training.learning_rate: 0.0005 → 0.001"),
        ("decay", Difference("config.schedule.warmup_steps", 20, 2),
         "training.schedule.warmup_tokens (warmup steps): 20 → 2"),
        ("train", Difference("config.optimizer.betas[1]", 0.95, 0.99), "training.optimizer.betas[1]: 0.95 → 0.99"),
        ("filter", Difference("config.gopher", True, False), "corpus.filter.gopher: true → false"),
        ("pack", Difference("config.sources[0].weight", 1.0, 2.0), "corpus.sources[0].weight: 1.0 → 2.0"),
        ("decontaminate", Difference("config.holdout_fraction", 0.1, 0.2), "corpus.holdout_fraction: 0.1 → 0.2"),
        ("base", Difference("inputs.origin.init.layers", 4, 6), "model.base.init.layers: 4 → 6"),
        ("base", Difference("inputs.origin.local", "ab", "cd"), "model.base: ab → cd"),
        ("train", Difference("inputs.start", "a", "b"), "inputs.start: a → b"),
    ],
)  # fmt: skip
def test_a_difference_is_told_in_the_words_of_the_file(stage: str, one: Difference, words: str) -> None:
    assert told(stage, one) == words


def test_the_run_that_is_compared_with_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    first = Request(letters, letters.LettersConfig(), letters.LettersInputs())
    made = store.ensure(first).artifact
    other = Request(letters, letters.LettersConfig(letter="b"), letters.LettersInputs())
    assert not any("compared" in line for line in Reasons(store)(other))
    write_record(store, RunRecord("notes-3f9a2c", "notes", {}, (("letters", made.key),)))
    assert Reasons(store)(other)[0] == "config.letter: a → b", "no stage of the table: its own name"
    assert Reasons(store)(other)[-1] == f"compared with letters {made.key[:6]} of the run notes-3f9a2c"
