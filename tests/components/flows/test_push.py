"""A model pushed to a hub on loopback by the real client: refused without a right, and whole also after a break."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from storage.artifact import Artifact
from tests.support.base_model import WEIGHTS, import_base, small_model
from tests.support.loopback import LoopbackHub
from tests.support.pushed import Taken

pytestmark = pytest.mark.slow
TOKEN = "hf_of_a_test_that_may_write_here"


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    taken = Taken(TOKEN)
    with LoopbackHub(taken=taken).running() as hub:
        yield hub
    taken.close()


@pytest.fixture
def model(tmp_path: Path) -> Artifact:
    small_model(tmp_path / "model")
    return import_base(tmp_path / "model", tmp_path / "store")


def push(hub: LoopbackHub, model: Artifact, home: Path, *more: str, token: str | None = TOKEN) -> Any:
    environment = hub.environment(home / "hf") | {"ONWARD_HOME": str(home), "DO_NOT_TRACK": "true"}
    environment |= {"HF_TOKEN": token} if token else {}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "flows.cli",
            "push",
            model.key[:12],
            "me/mine",
            "--store",
            str(home / "store"),
            *more,
        ],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert token is None or token not in done.stdout + done.stderr
    return done


def test_a_push_that_broke_off_goes_on_and_ends_with_the_whole_model(
    hub: LoopbackHub, model: Artifact, tmp_path: Path
) -> None:
    assert hub.taken is not None
    hub.taken.breaks = 9  # more than the client tries
    broken = push(hub, model, tmp_path)
    assert broken.returncode == 1 and "the same command goes on from there" in broken.stderr, broken.stderr
    [folder] = (tmp_path / ".onward" / "push").iterdir()
    sent = list(hub.taken.uploads)
    assert sent and (folder / "README.md").is_file()

    hub.taken.breaks = 0
    done = push(hub, model, tmp_path)
    assert done.returncode == 0, done.stderr
    assert hub.taken.uploads == sent, "what the hub had was sent again"
    assert not folder.exists() and hub.taken.visibility == {"me/mine": "private"}
    repository = hub.repositories["models", "me/mine"]
    there = repository.commits[repository.main]
    assert done.stdout.strip() == f"{hub.endpoint}/me/mine/commit/{repository.main}"
    assert (there / WEIGHTS).read_bytes() == (model.path / "export" / WEIGHTS).read_bytes()
    AutoModelForCausalLM.from_pretrained(there)
    card = (there / "README.md").read_text()
    assert card in hub.taken.cards
    assert card.startswith("---\nlibrary_name: transformers\n") and "base, a local model" in card
    assert hub.taken.messages == [f"base {model.key[:16]}, safetensors fp32"]
    assert not (tmp_path / "hf" / "token").exists()


def test_who_may_not_write_is_told_so_and_nothing_is_sent(
    hub: LoopbackHub, model: Artifact, tmp_path: Path
) -> None:
    assert hub.taken is not None
    none = push(hub, model, tmp_path, token=None)
    assert none.returncode == 1 and "there is no token of the hub; log in with `hf auth login`" in none.stderr
    other = push(hub, model, tmp_path, token="hf_of_somebody_who_may_only_read")
    assert other.returncode == 1 and "does not let this token write to me/mine (status 403)" in other.stderr
    assert not hub.taken.uploads and not hub.repositories


def test_into_a_repository_that_is_open_to_all_it_goes_if_that_is_said_and_takes_away_old_weights_only(
    hub: LoopbackHub, model: Artifact, tmp_path: Path
) -> None:
    assert hub.taken is not None
    others = {
        "onnx/model.safetensors",
        "adapter_model.safetensors",
        "more.safetensors.index.json",
        ".gitattributes",
    }
    old = {
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    }
    for name in others | old:
        (tmp_path / "there" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "there" / name).write_text("of before")
    first = hub.publish("models", "me/mine", tmp_path / "there")
    refused = push(hub, model, tmp_path)
    assert (
        refused.returncode == 1 and "me/mine is on the hub and open to all: give --public" in refused.stderr
    )
    assert not hub.taken.uploads and hub.repositories["models", "me/mine"].main == first

    hub.taken.complaints = ['"license" must be one of [mit, other]', "no title"]
    wrong = push(hub, model, tmp_path, "--public")
    assert (
        wrong.returncode == 1 and "must be one of [mit, other] - no title. Mend what it names" in wrong.stderr
    )
    assert "did not answer" not in wrong.stderr

    hub.taken.complaints = []
    done = push(hub, model, tmp_path, "--public")
    assert done.returncode == 0, done.stderr
    repository = hub.repositories["models", "me/mine"]
    there = repository.commits[repository.main]
    names = {str(path.relative_to(there)) for path in there.rglob("*") if path.is_file()}
    assert others <= names and not names & old and WEIGHTS in names


def test_a_dry_run_writes_the_folder_and_asks_nobody(
    hub: LoopbackHub, model: Artifact, tmp_path: Path
) -> None:
    done = push(hub, model, tmp_path, "--dry-run", str(tmp_path / "folder"), token=None)
    assert done.returncode == 0, done.stderr
    assert "the card states no licence for: model.licence" in done.stderr
    assert {WEIGHTS, "README.md", "tokenizer.json", "config.json"} <= {
        path.name for path in (tmp_path / "folder").iterdir()
    }
    assert hub.requests == []
    assert json.loads((tmp_path / "folder" / "config.json").read_bytes())["architectures"] == [
        "LlamaForCausalLM"
    ]
