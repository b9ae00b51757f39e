"""The merged models of a run: which are asked for, of what they are made, how they are called, and what fails alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flows.config import RunConfig, parse_config
from flows.dag.merges import merges_of
from flows.dag.requests import Requests
from flows.dag.state import Model, Outcome, TrainingState
from flows.lineage.names import models_of, resolve
from storage.artifact import Artifact
from storage.errors import ConfigError
from storage.runs import RunRecord, write_record
from storage.store import Request, Store
from storage.testing import artifact_of
from tests.support.base_model import import_base, small_model
from tests.support.evaluation.cases import FilesConfig, FilesInputs, stage_of_files
from tests.support.runs import minimal


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ONWARD_HOME", str(tmp_path))
    small_model(tmp_path / "base")
    small_model(tmp_path / "chat", rope_theta=20_000.0)
    (tmp_path / "chat" / "chat_template.jinja").write_text("{{ messages }}")
    return tmp_path


class Line:
    """A run after its last budget, 8K tokens: its base, its model, and a trunk that kept two checkpoints."""

    def __init__(self, home: Path, **merge: Any) -> None:
        self.store, self.outcome = Store(home / "store"), Outcome()
        self.config: dict[str, Any] = minimal(
            merge=merge, store="store", training__token_budgets=["8K"], training__batch_tokens=2048,
            packing__sequence_length=256, training__keep_every_tokens=2000,
        )  # fmt: skip
        self.run: RunConfig = parse_config(self.config)
        self.base = import_base(home / "base", home / "store")
        export = self.base.path / "export"
        for name in ("tokens-000000000002000", "tokens-000000000004000"):
            (home / "kept" / name).mkdir(parents=True, exist_ok=True)
            for path in export.iterdir():
                (home / "kept" / name / path.name).write_bytes(path.read_bytes())
        trunk = FilesConfig(stats={"tokens_seen": 6000})
        self.trunk = artifact_of(
            stage_of_files("train"), trunk, FilesInputs({"kept": str(home / "kept")}), home / "store"
        )
        stats = FilesConfig(stats={"tokens_seen": 8000})
        model = artifact_of(
            stage_of_files("decay"), stats, FilesInputs({"export": str(export)}), home / "store"
        )
        self.model = Model("8K", 8000, model, 1)

    def merged(self) -> list[Model]:
        part = self.base.part("export")
        line = TrainingState(part, self.base.part("tokenizer"), trunks=(self.trunk,), base=part)
        ask = Requests(self.run, self.store, warn=lambda line: None)
        return list(merges_of(ask, self._build, self.outcome, line, self.model))

    def _build(self, request: Request, **named: Any) -> Artifact:
        return self.store.ensure(request).artifact


def test_each_is_made_of_what_it_is_called_after(home: Path) -> None:
    line = Line(home, interpolate=[0.25, 0.5], average=2, instruct="chat", strength=[1, 0.5])
    made = line.merged()
    assert not line.outcome.failed and made == line.outcome.merged
    assert [(one.name, one.tokens) for one in made] == [
        ("8K-alpha-0.25", 8000),
        ("8K-alpha-0.5", 8000),
        ("8K-average-2", 4000),
        ("instruct", 0),
        ("8K-chat-1", 8000),
        ("8K-chat-0.5", 8000),
    ]
    inputs = {one.name: one.export.manifest.inputs for one in made}
    base, trained, chat = line.base.key, line.model.export.key, made[3].export.key
    assert [one["part"]["key"] for one in inputs["8K-alpha-0.5"]["models"]] == [base, trained]
    assert [one["directory"] for one in inputs["8K-average-2"]["models"]] == [
        "kept/tokens-000000000002000",
        "kept/tokens-000000000004000",
    ]
    assert [one["part"]["key"] for one in inputs["8K-chat-1"]["models"]] == [base, chat, trained]
    assert len({one.export.key for one in made}) == 6

    keys = tuple((one.export.stage, one.export.key) for one in made)
    write_record(line.store, RunRecord("small-123456", "small", line.config, (*keys, ("base", base))))
    assert set(models_of(line.store)["small-123456"]) == {*(one.name for one in made), "base"}
    assert resolve("8K-chat-0.5", line.store.root)[1].key == made[5].export.key
    assert resolve("small:base", line.store.root)[1].key == base
    assert (made[4].export.path / "export" / "chat_template.jinja").read_text() == "{{ messages }}"


def test_one_that_cannot_be_made_fails_alone(home: Path) -> None:
    line = Line(home, interpolate=[0.5], average=3, instruct="nowhere")
    assert [one.name for one in line.merged()] == ["8K-alpha-0.5"]
    words = {name: str(error) for name, error in line.outcome.failed.items()}
    assert "the trunks to 8K kept 2; lower training.keep_every_tokens" in words["merge of 8K-average-3"]
    assert words["instruct"].startswith("merge.instruct: the hub cannot be reached for the model 'nowhere'")
    assert "no local one named 'nowhere'" in words["instruct"]
    with pytest.raises(Exception, match="2 measures failed"):
        line.outcome.settle()


def test_a_chat_model_of_another_shape_fails_and_is_measured_all_the_same(home: Path) -> None:
    small_model(home / "wide", intermediate_size=48)
    line = Line(home, instruct="wide")
    assert [one.name for one in line.merged()] == ["instruct"]
    [error] = line.outcome.failed.values()
    assert isinstance(error, ConfigError) and "only models of one shape can be merged" in str(error)


def test_without_the_section_nothing_is_asked_for(home: Path) -> None:
    line = Line(home)
    assert line.merged() == [] and not line.outcome.merged
    assert "merge" not in json.loads(line.run.model_dump_json(exclude_defaults=True))
