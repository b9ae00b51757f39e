"""A base that cannot be trained is refused before anything is made, from its files alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from flows.commands import plan as command
from flows.config import RunConfig, parse_config
from flows.runs.trainable import check_base
from storage.errors import ConfigError
from tests.support.runs import minimal

LENGTH = 64


@pytest.fixture
def base(tmp_path: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a real small model, in a home of its own."""
    monkeypatch.setenv("ONWARD_HOME", str(tmp_path))
    directory = tmp_path / "base"
    shutil.copytree(shared_data / "models/stories260K-hf", directory)
    return directory


def run_on(base: Path, **changes: Any) -> RunConfig:
    wanted: dict[str, Any] = {
        "model": {"base": str(base)},
        "packing__sequence_length": LENGTH,
        "training__precision": "fp32",
    }
    return parse_config(minimal(**(wanted | changes), store=str(base.parent / "store")))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))


def test_a_base_that_can_be_trained_is_looked_at_once(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.training import trainable

    asked: list[int] = []
    plain = trainable.check_trainable

    def counted(config: Any, length: int, precision: Any) -> list[str]:
        asked.append(length)
        return plain(config, length, precision)

    monkeypatch.setattr(trainable, "check_trainable", counted)
    run = run_on(base)
    check_base(run)
    assert not run.store_path.exists(), "a check makes no store"
    run.store_path.mkdir()
    check_base(run)
    check_base(run)
    assert asked == [LENGTH, LENGTH]
    check_base(run_on(base, packing__sequence_length=32))
    edit(base / "config.json", rope_theta=20_000.0)
    check_base(run)
    assert asked == [LENGTH, LENGTH, 32, LENGTH]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "bloom", "architectures": ["BloomForCausalLM"]}, "its attention cannot be replaced"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "no causal language model"),
        ({"model_type": "nobodys"}, "without remote code"),
        ({"max_position_embeddings": 63}, "sequence_length <= 63"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"quantised \(gptq\)"),
    ],
    ids=["kind", "task", "unknown", "positions", "quantised"],
)
def test_what_its_configuration_shows_is_refused(base: Path, changes: dict[str, Any], reason: str) -> None:
    edit(base / "config.json", **changes)
    with pytest.raises(ConfigError, match=f"^model.base: .*{reason}") as refused:
        check_base(run_on(base))
    assert "onward_packed" not in str(refused.value)


def test_what_its_files_show_is_refused_too(base: Path) -> None:
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ConfigError, match=r"^model.base: .*no whole safetensors"):
        check_base(run_on(base))


def test_plan_refuses_it(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(base / "config.json", architectures=["LlamaForSequenceClassification"])
    config = base.parent / "run.yaml"
    (base.parent / "text.jsonl").write_text('{"text": "a"}\n')
    source = {"name": "text", "role": "domain", "weight": 1, "files": ["text.jsonl"]}
    wanted = minimal(model={"base": "base"}, packing__sequence_length=LENGTH, store="store")
    config.write_text(json.dumps(wanted | {"corpus": {**wanted["corpus"], "sources": [source]}}))
    with pytest.raises(ConfigError, match="no causal language model"):
        command.plan(config)
    assert capsys.readouterr().out == "" and not (base.parent / "store").exists()


def test_a_chat_model_is_told_with_the_way_back(base: Path) -> None:
    assert not any("chat" in line for line in check_base(run_on(base)))
    (base / "chat_template.jinja").write_text("{{ messages }}")
    [told] = [line for line in check_base(run_on(base)) if "chat" in line]
    assert "wears the chat away" in told and "name this model as merge.instruct" in told
    (base / "chat_template.jinja").unlink()
    edit(base / "tokenizer_config.json", chat_template="{{ messages }}")
    assert told in check_base(run_on(base))


def test_what_documents_begin_with_is_said_and_decided_before_anything_is_made(base: Path) -> None:
    [line] = check_base(run_on(base))
    assert "documents begin after </s> in training and perplexity" in line and "benchmarks with <s>" in line
    [line] = check_base(run_on(base, packing__begin="bos"))
    assert "documents begin with <s> in training, perplexity and benchmarks" in line
    edit(base / "tokenizer_config.json", bos_token="</s>")
    assert check_base(run_on(base)) == []
    with pytest.raises(ConfigError, match=r"^packing\.begin is bos, but .*beside </s>.*leave it at eos"):
        check_base(run_on(base, packing__begin="bos"))
