"""The model of a budget whose trunk was stopped by rule: it has the tokens that it saw, under the name of its budget."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from flows.config import parse_config
from flows.dag import pretrain
from flows.dag.requests import Requests
from flows.dag.rounds import rounds_of
from flows.dag.state import Outcome, TrainingState
from storage.artifact import Artifact
from storage.testing import artifact_of
from tests.support.evaluation.cases import FilesConfig, FilesInputs, stage_of_files
from tests.support.runs import minimal


@pytest.mark.parametrize("stopped", [True, False])
def test_a_stopped_model_counts_the_tokens_that_it_saw(tmp_path: Path, stopped: bool) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "config.json").write_text("{}")

    def made(stage: str, part: str, **stats: Any) -> Artifact:
        inputs = FilesInputs({part: str(tmp_path / "files")})
        return artifact_of(stage_of_files(stage), FilesConfig(stats=stats), inputs, tmp_path / "store")

    run = parse_config(
        minimal(training__token_budgets=["128K"], training__stop={"source": "a", "patience_tokens": "8K"})
    )
    facts = {"lowest": 2.0, "lowest_tokens": 16_384, "source": "a"}
    if stopped:
        facts["stopped"] = {"step": 4, "tokens": 16_384, "loss": 2.0}
    trunk = made("train", "trunk", tokens_seen=40_000, result={"stopping": facts})
    branch = made("decay", "export", tokens_seen=20_480 if stopped else 131_000, tokens=4096)
    asked: list[int] = []
    ask = SimpleNamespace(
        run=run,
        branches=True,
        anneals=lambda round: False,
        train=lambda *_: trunk,
        decay=lambda round, *_: asked.append(round.branch_step) or branch,
    )
    start = TrainingState(trunk.part("trunk"), trunk.part("trunk"))
    [round] = rounds_of(run)
    _, model = pretrain._train(cast(Requests, ask), lambda one, **_: one, start, round, [], [], "report")  # type: ignore
    assert model is not None and asked == [4 if stopped else round.branch_step]
    assert (model.name, model.tokens) == ("128K", 20_480 if stopped else 128_000)
    [told] = pretrain.describe(Outcome(models=[model]))
    assert (told["name"], told["tokens"]) == (model.name, model.tokens)
