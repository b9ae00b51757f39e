"""Safe by default: names stay names, foreign files are data and never code, secrets stay in the environment.

Each test plants what must not happen (a file outside, a pickle that makes one, a password with a mark of its own) and
looks for its trace.
"""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from flows.config import parse_config
from storage.atomic import make_writable
from storage.errors import BadInput, ConfigError, OnwardError
from storage.paths import mlflow_files
from storage.secrets import without_secrets
from tasks.training.read_spec import parse_spec
from tasks.training.state.checkpoint import MODEL, OPTIMIZER, newest_checkpoint, save_checkpoint
from tests.support.base_model import import_base, json_with, small_model
from tests.support.foreign import REQUEST, Bomb, plant

NOT_NAMES = ["../x", "/etc", "a/b", "..", ".", "a\0b", "x" * 300, ".hidden", "a\nb", "a\n", "-x", "", "a b"]
NAMED = {
    "name": ("name",),
    "sources": ("corpus", "sources", 0, "name"),
    "own": ("evaluation", "own", 0, "name"),
    "domain": ("evaluation", "domain", 0),
    "general": ("evaluation", "general", 0),
    "decontaminate": ("corpus", "decontaminate", "benchmarks", 0),
}
PLAIN: dict[str, Any] = {
    "name": "small",
    "corpus": {
        "sources": [{"name": "a", "role": "domain", "weight": 1, "python_docs": "domain"}],
        "decontaminate": {"benchmarks": ["sciq"]},
    },
    "model": {"base": "somewhere/model"},
    "packing": {"sequence_length": 256},
    "training": {"token_budgets": [40960], "batch_tokens": 4096},
    "evaluation": {"own": [{"name": "own", "held_out": "a"}], "domain": ["sciq"], "general": ["piqa"]},
}


def with_name(where: str, name: str) -> dict[str, Any]:
    """The plain configuration with another name in one place."""
    raw = copy.deepcopy(PLAIN)
    node: Any = raw
    *path, last = NAMED[where]
    for step in path:
        node = node[step]
    node[last] = name
    return raw


@pytest.mark.parametrize("where", NAMED)
@pytest.mark.parametrize("name", NOT_NAMES)
def test_a_name_that_could_lead_elsewhere_is_refused(where, name):
    from flows.runs.checks import check

    with pytest.raises(ConfigError):
        check(parse_config(with_name(where, name)))


def test_the_plain_configuration_is_taken():
    """Else the test above could pass for another reason."""
    assert parse_config(copy.deepcopy(PLAIN)).name == "small"


@given(st.text(max_size=80))
def test_whatever_name_is_taken_is_one_visible_file_name(name):
    try:
        taken = parse_config(with_name("name", name)).name
    except ConfigError:
        return
    for directory, path in (
        (Path("/s/runs"), Path("/s/runs") / f"{taken}-3f9a2c.json"),
        (mlflow_files("x").parent, mlflow_files(taken)),
    ):
        assert Path(os.path.normpath(path)).parent == directory
        assert not path.name.startswith(".")
        assert len(path.name.encode()) <= 255


def test_a_half_made_artifact_that_was_planted_is_not_published_elsewhere(foreign, tmp_path):
    store, artifact = foreign
    work = store.work_of(artifact.stage, artifact.key)
    artifact.path.rename(work)
    planted = json.loads((work / "manifest.json").read_bytes()) | {"stage": "../../elsewhere"}
    (work / "manifest.json").write_text(json.dumps(planted))
    again = store.ensure(REQUEST)
    assert again.state == "built" and again.artifact.path == store.path_of(artifact.stage, artifact.key)
    assert not list(tmp_path.rglob("elsewhere"))


def test_pickles_and_code_beside_a_base_model_are_left_alone(tmp_path, trace):
    directory = tmp_path / "model"
    small_model(directory)
    plain = import_base(directory, tmp_path / "one").part("export").digest
    plant(
        directory,
        trace,
        *("pytorch_model.bin", "model.pt", "training_args.bin", "optimizer.pt", "rng_state.pth"),
        *("modeling_evil.py", "configuration_evil.py", "tokenization_evil.py", "__init__.py", "conftest.py"),
        *("custom_generate/generate.py", "setup.py"),
    )
    assert import_base(directory, tmp_path / "two").part("export").digest == plain


def test_a_base_model_of_pickled_weights_is_refused_unread(tmp_path, trace):
    directory = tmp_path / "model"
    small_model(directory)
    (directory / "model.safetensors").unlink()
    plant(directory, trace, "pytorch_model.bin")
    with pytest.raises(ConfigError, match="pickled weights can run code"):
        import_base(directory, tmp_path / "store")


@pytest.mark.parametrize("known", [True, False], ids=["known architecture", "own architecture"])
def test_a_base_model_that_names_remote_code_never_runs_it(tmp_path, trace, known):
    directory = tmp_path / "model"
    small_model(directory)
    plant(directory, trace, "modeling_evil.py", "configuration_evil.py", "tokenization_evil.py")
    json_with(
        directory / "config.json",
        auto_map={
            "AutoConfig": "configuration_evil.EvilConfig",
            "AutoModelForCausalLM": "modeling_evil.EvilModel",
        },
        **({} if known else {"model_type": "evil", "architectures": ["EvilModel"]}),
    )
    json_with(
        directory / "tokenizer_config.json",
        tokenizer_class="EvilTokenizer",
        auto_map={"AutoTokenizer": ["tokenization_evil.EvilTokenizer", None]},
    )
    try:
        made = import_base(directory, tmp_path / "store")
    except OnwardError as error:
        assert "model.base" in str(error)
    else:
        assert known, "an architecture that only remote code knows cannot be imported"
        for name in ("config.json", "tokenizer_config.json"):
            assert "auto_map" not in json.loads((made.path / "export" / name).read_bytes())


def test_a_model_of_the_store_that_names_code_runs_none_and_nothing_is_asked(tmp_path, trace, monkeypatch):
    """As if an export had been unpacked by hand: measured, trained from and exported, with `y` on standard input."""
    from tasks.evaluation.model import export_directory, load_model
    from tasks.evaluation.scorer import Scorer
    from tasks.training.model import load_model as load_to_train
    from tasks.training.model import read_config
    from tests.support.training.world import World

    small_model(tmp_path / "model")
    made = import_base(tmp_path / "model", tmp_path / "store")
    make_writable(made.path)
    export = export_directory(made.part("export"))
    json_with(
        export / "config.json",
        auto_map={"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilModel"},
    )
    json_with(
        export / "tokenizer_config.json",
        tokenizer_class="EvilTokenizer",
        auto_map={"AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"]},
    )
    plant(export, trace, "evil.py", "custom_generate/generate.py", "pytorch_model.bin")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 50))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("something was asked"))
    model = load_model(export, torch.device("cpu"), 16)
    Scorer(model, export, 16, lambda *_: None)
    spec = World(tmp_path, export, export, export, {}, 0).spec(
        tmp_path / "work", identity__sequence_length=16
    )
    identity = parse_spec(spec).identity
    execution = {"device": "cpu", "gradient_checkpointing": "none", "compile": False}
    load_to_train(export, read_config(export, identity), identity, execution)
    with pytest.raises(BadInput, match="custom_generate"):
        export_directory(made.part("export"))


def test_pickles_in_a_checkpoint_directory_are_not_read(tmp_path, trace):
    weights = {"w": torch.arange(4.0)}
    good = save_checkpoint(tmp_path, {MODEL: weights, OPTIMIZER: weights}, {"step": 3, "journal": {}})
    plant(good, trace, "model.pt", "optimizer.pt", "pytorch_model.bin", "rng_state.pth")
    later = tmp_path / "step-00000009"
    plant(later, trace, "model.safetensors", "optimizer.safetensors", "state.json", "manifest.json")
    warnings: list[str] = []
    found = newest_checkpoint(tmp_path, warnings.append, lambda mark: True)
    assert found is not None and found.step == 3
    assert len(warnings) == 1 and "step-00000009" in warnings[0]


def test_a_checkpoint_whose_manifest_names_other_files_is_not_used(tmp_path, trace):
    weights = {"w": torch.arange(4.0)}
    path = save_checkpoint(tmp_path, {MODEL: weights, OPTIMIZER: weights}, {"step": 3, "journal": {}})
    plant(path, trace, "extra.pt")
    manifest = json.loads((path / "manifest.json").read_bytes())
    manifest["files"]["extra.pt"] = manifest["files"]["model.safetensors"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert newest_checkpoint(tmp_path, lambda line: None, lambda mark: True) is None


def test_a_pickle_that_calls_itself_safetensors_is_refused(tmp_path, trace):
    directory = tmp_path / "model"
    small_model(directory)
    (directory / "model.safetensors").write_bytes(pickle.dumps(Bomb(trace)))
    with pytest.raises(OnwardError):
        import_base(directory, tmp_path / "store")
    save_file({"w": torch.zeros(1)}, tmp_path / "still-works.safetensors")


@pytest.mark.parametrize(
    "address",
    [
        "http://someone:hunter2@mlflow.example.org:5000",
        "https://hunter2@mlflow.example.org",
        "postgresql+psycopg://onward:hunter2@db.example.org/mlflow",
    ],
)
def test_an_address_with_a_password_is_refused_without_showing_it(address):
    raw = copy.deepcopy(PLAIN) | {"tracking": {"mlflow_uri": address}}
    with pytest.raises(ConfigError) as refused:
        parse_config(raw)
    said = str(refused.value)
    assert "MLFLOW_TRACKING_USERNAME" in said and "MLFLOW_TRACKING_PASSWORD" in said
    assert "MLFLOW_TRACKING_URI" in said and "tracking" in said
    assert "hunter2" not in said


@pytest.mark.parametrize("address", ["http://127.0.0.1:5000", "sqlite:////home/me@work/mlflow.db", None])
def test_an_address_without_one_is_taken(address):
    raw = copy.deepcopy(PLAIN) | {"tracking": {"mlflow_uri": address}}
    assert parse_config(raw).tracking.mlflow_uri == address


@pytest.mark.parametrize(
    "text",
    [
        "API request to http://me:hunter2@host:5000/api failed with http://me:hunter2@host:5000",
        "postgresql+psycopg://me:hun/ter2hunter2@host/db",
        "http://hunter2@host",
        "cannot reach postgresql://host/db?user=me&password=hunter2&sslmode=no",
    ],
)
def test_what_is_told_of_an_address_holds_no_password(text):
    told = without_secrets(text)
    assert "hunter2" not in told and "host" in told
