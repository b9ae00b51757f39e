"""A base model from a hub on loopback, fetched by the real client."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from storage.testing import artifact_of
from tasks.models import base
from tasks.models.base import BaseConfig, ModelConfig, resolve_base
from tests.support.loopback import LoopbackHub


@pytest.fixture
def model(tmp_path: Path, shared_data: Path) -> Path:
    """A real small model as a repository has it: with what no import may touch beside it."""
    directory = tmp_path / "model"
    shutil.copytree(shared_data / "models/stories260K-hf", directory)
    (directory / "pytorch_model.bin").write_bytes(b"pickle")
    (directory / "modeling_own.py").write_text("raise SystemExit('remote code was run')")
    (directory / "README.md").write_text("a model")
    return directory


@pytest.fixture
def hub(model: Path) -> Iterator[LoopbackHub]:
    with LoopbackHub().running() as hub:
        hub.publish("models", "me/stories", model)
        yield hub


def run(
    hub: LoopbackHub, root: Path, store: str = "store", home: str = "hf", **wanted: Any
) -> dict[str, Any]:
    command = [
        sys.executable,
        "-m",
        "tests.support.hub_model",
        json.dumps({"base": "me/stories", "store": str(root / store), **wanted}),
    ]
    environment = hub.environment(root / home) | wanted.get("environment", {})
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def fetched(hub: LoopbackHub) -> set[str]:
    return {
        path.rsplit("/", 1)[1] for method, path, *_ in hub.requests if method == "GET" and "/resolve/" in path
    }


def test_it_is_what_the_same_directory_gives_by_commit_and_from_safetensors_alone(
    hub: LoopbackHub, model: Path, tmp_path: Path
) -> None:
    commit = hub.repositories["models", "me/stories"].main
    found = run(hub, tmp_path)
    assert found["origin"] == {"hub": "me/stories", "commit": commit}
    here = artifact_of(
        base, BaseConfig(), resolve_base(ModelConfig(base=str(model)), Path("/")), tmp_path / "local"
    )
    assert found["parts"] == {name: part.digest for name, part in here.manifest.parts.items()}
    assert "model.safetensors" in fetched(hub)
    assert not fetched(hub) & {"pytorch_model.bin", "modeling_own.py"}


def test_whether_it_can_be_trained_is_decided_before_its_weights_are_fetched(
    hub: LoopbackHub, model: Path, tmp_path: Path
) -> None:
    found = run(hub, tmp_path, described=True)
    assert found["config"] == json.loads((model / "config.json").read_bytes())
    assert found["name"] == "the config.json of me/stories"
    assert fetched(hub) == {"config.json"}
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    hub.publish("models", "me/adapter", adapter)
    refused = run(hub, tmp_path, described=True, base="me/adapter")
    assert refused["error"] == "ConfigError" and "me/adapter has no config.json" in refused["text"]


def test_a_branch_that_moves_on_leaves_a_store_as_it_was(
    hub: LoopbackHub, model: Path, tmp_path: Path
) -> None:
    first = run(hub, tmp_path)
    newer = tmp_path / "newer"
    shutil.copytree(model, newer)
    (newer / "README.md").write_text("a word more")
    commit = hub.publish("models", "me/stories", newer)
    assert run(hub, tmp_path)["origin"] == first["origin"]
    assert run(hub, tmp_path, store="other")["origin"]["commit"] == commit
    assert run(hub, tmp_path, revision=commit)["origin"]["commit"] == commit


def test_without_a_hub_what_was_downloaded_once_is_used(hub: LoopbackHub, tmp_path: Path) -> None:
    first = run(hub, tmp_path)
    hub.stop()
    assert run(hub, tmp_path) == first
    commit = first["origin"]["commit"]
    assert run(hub, tmp_path, store="other", revision=commit)["parts"] == first["parts"]
    silent = run(hub, tmp_path, store="third", home="empty")
    assert silent["error"] == "HubUnreachable" and "model.base" in silent["text"]
    offline = run(hub, tmp_path, store="fourth", home="empty", environment={"HF_HUB_OFFLINE": "1"})
    assert offline["error"] == "HubUnreachable" and "HF_HUB_OFFLINE" in offline["text"]


def test_a_download_that_breaks_off_goes_on(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.breaks = {"model.safetensors": 2}
    assert "parts" in run(hub, tmp_path)
    assert not hub.breaks["model.safetensors"]


def test_what_is_not_there_names_the_field(hub: LoopbackHub, model: Path, tmp_path: Path) -> None:
    missing = run(hub, tmp_path, base="me/nothing")
    assert (
        missing["error"] == "ConfigError"
        and "model.base" in missing["text"]
        and "'me/nothing'" in missing["text"]
    )
    revision = run(hub, tmp_path, revision="v9")
    assert (
        revision["error"] == "ConfigError"
        and "model.revision" in revision["text"]
        and "'v9'" in revision["text"]
    )
    pickled = tmp_path / "pickled"
    shutil.copytree(model, pickled)
    (pickled / "model.safetensors").unlink()
    hub.publish("models", "me/pickled", pickled)
    refused = run(hub, tmp_path, base="me/pickled")
    assert refused["error"] == "ConfigError" and "safetensors" in refused["text"]
    assert "pytorch_model.bin" not in fetched(hub)
    hub.repositories["models", "me/stories"].gated = True
    gated = run(hub, tmp_path, store="gated", home="gated")
    assert gated["error"] == "ConfigError" and "gated" in gated["text"]
