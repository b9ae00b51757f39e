"""MLflow loads and serves a store's models from where they lie, and says why where it cannot."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.support.made import REGISTERED, Made

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
URI = f"models:/{REGISTERED}-small@tokens-20k"
PROMPT = "The value of"


@pytest.fixture(scope="module")
def address(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A database that knows the run."""
    home = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{home / 'a' / 'mlflow.db'}"
    tracker = made.tracker(uri, "flow-a")
    tracker.start()
    made.tell(tracker)
    tracker.close("FINISHED", seconds=240)
    before = os.environ.get("MLFLOW_TRACKING_URI")
    os.environ["MLFLOW_TRACKING_URI"] = uri
    yield uri
    os.environ.pop("MLFLOW_TRACKING_URI")
    if before is not None:
        os.environ["MLFLOW_TRACKING_URI"] = before


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # MLflow's default places would be made here


def expected(made: Made, tokens: int) -> str:
    """What the model writes after the prompt, by transformers alone."""
    export = made.models[-1].export.path / "export"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(export)
    model = AutoModelForCausalLM.from_pretrained(export)
    given = torch.tensor([tokenizer(PROMPT).input_ids])
    made_ids = model.generate(
        given, attention_mask=torch.ones_like(given), max_new_tokens=tokens, do_sample=False
    )
    return str(tokenizer.decode(made_ids[0], skip_special_tokens=True))


def test_both_of_mlflows_ways_load_it_without_a_second_copy(made: Made, address: str) -> None:
    import mlflow
    import mlflow.artifacts

    mlflow.set_tracking_uri(address)
    pipeline = mlflow.transformers.load_model(URI)
    written = pipeline(PROMPT, max_new_tokens=5, do_sample=False)[0]["generated_text"]
    assert written == expected(made, 5)
    served = mlflow.pyfunc.load_model(URI)
    assert served.predict(PROMPT, params={"max_new_tokens": 5}) == [written]
    assert served.predict([PROMPT, PROMPT], params={"max_new_tokens": 5}) == [written] * 2
    assert served.metadata.metadata["stage_key"] == made.models[-1].export.key
    files = mlflow.artifacts.download_artifacts(artifact_uri=URI)
    assert not [path for path in Path(files).rglob("*") if path.suffix == ".safetensors"]


def test_where_the_weights_are_not_it_says_why_and_what_helps(
    made: Made, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow
    import mlflow.artifacts

    mlflow.set_tracking_uri(address)
    model = tmp_path / "model"
    shutil.copytree(mlflow.artifacts.download_artifacts(artifact_uri=URI), model)
    export = made.models[-1].export.path / "export"
    for name in ("MLmodel", "model.json"):  # as on a machine without the store
        text = (model / name).read_text().replace(str(made.store.root), "/nowhere/store")
        (model / name).write_text(text)
    with pytest.raises(FileNotFoundError) as raised:
        mlflow.pyfunc.load_model(str(model))
    words = str(raised.value)
    assert "/nowhere/store/decay/" in words and "and not on this one" in words
    assert " export " in words and "set ONWARD_MODEL_FILES to it" in words
    monkeypatch.setenv("ONWARD_MODEL_FILES", str(export))
    written = mlflow.pyfunc.load_model(str(model)).predict(PROMPT, params={"max_new_tokens": 5})
    pipeline = mlflow.transformers.load_model(str(model), base_model_path=str(export))
    assert written == [pipeline(PROMPT, max_new_tokens=5, do_sample=False)[0]["generated_text"]]
    with pytest.raises(Exception, match="/nowhere/store/decay/"):
        mlflow.transformers.load_model(str(model))


def test_a_merged_model_becomes_a_version_once_it_is_chosen(made: Made, address: str) -> None:
    """Its scores come first, under its own name; whether it is chosen is known at the end."""
    from mlflow import MlflowClient

    name = "20K-alpha-0.5"
    merged = SimpleNamespace(**{**vars(made.models[1]), "name": name, "journals": []})
    tracker = made.tracker(address, "flow-merged", "merged")
    tracker.start()
    tracker.measured([merged], prefix=f"merge/{name}/")
    tracker.measured([merged], ("", name), prefix=f"merge/{name}/")
    tracker.close("FINISHED", seconds=120)
    client = MlflowClient(address)
    version = client.get_model_version_by_alias(f"{REGISTERED}-merged", "tokens-20k-alpha-0-5")
    assert version.tags["stage_key"] == merged.export.key
    assert len(client.search_model_versions(f"name = '{REGISTERED}-merged'")) == 1
    experiment = client.get_experiment_by_name("merged")
    [parent] = [
        one for one in client.search_runs([experiment.experiment_id]) if "stage_key" not in one.data.tags
    ]
    expected = merged.perplexity["domain"].stats["perplexity"]
    assert parent.data.metrics[f"merge/{name}/perplexity/domain"] == pytest.approx(expected)
    assert "perplexity/domain" not in parent.data.metrics


def test_it_is_served_over_http(made: Made, address: str, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # it starts uvicorn by its name
    environment = {**os.environ, "MLFLOW_TRACKING_URI": address, "DO_NOT_TRACK": "true", "PATH": path}
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", URI, "--env-manager", "local"]
    log = tmp_path / "serve.log"
    with log.open("wb") as file:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            env=environment,
            cwd=tmp_path,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        answer = _asked(f"http://127.0.0.1:{port}/invocations", server, log)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(60)
    assert answer == {"predictions": [expected(made, 5)]}


def _asked(url: str, server: subprocess.Popen[bytes], log: Path) -> Any:
    body = json.dumps({"inputs": [PROMPT], "params": {"max_new_tokens": 5}}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    until = time.monotonic() + 300
    while True:
        assert server.poll() is None and time.monotonic() < until, log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read()[:2000]) from error
        except OSError:
            time.sleep(0.5)
