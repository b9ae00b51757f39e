"""Safe by default: names stay names, foreign files are data and never code, secrets stay in the environment.

Each test plants what must not happen (a file outside, a pickle that makes one, a password with a mark of its own) and
looks for its trace.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import pickle
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from flows.config import parse_config
from storage.atomic import make_writable
from storage.draft import Draft
from storage.errors import ConfigError, DamagedArtifact, OnwardError
from storage.paths import mlflow_files
from storage.runs import RunRecord, collect_garbage, read_records, write_record
from storage.secrets import without_secrets
from storage.settings import Settings, identity
from storage.store import Request, Store
from storage.testing import artifact_of
from tasks.models import base
from tasks.models.base import BaseConfig, ModelConfig, resolve_base
from tasks.training.state.checkpoint import MODEL, OPTIMIZER, newest_checkpoint, save_checkpoint

sys.path.insert(0, str(Path(__file__).parent / "integration"))
from small import ONWARD, environment, onward, write_config

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


# ---- names -------------------------------------------------------------------------------------------------------


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


# ---- what a store that came from elsewhere may say -----------------------------------------------------------------


STAGE, VERSION = "letters", 1


class Letters(Settings):
    """Of the stage that this module is: one file in the part `export`."""

    letter: str = identity("a", description="what is written")


@dataclass(frozen=True)
class Nothing:
    """It has no inputs."""


def run(config: Letters, inputs: Nothing, draft: Draft) -> dict[str, int]:
    """Write the file."""
    (draft.path / "export").mkdir(exist_ok=True)
    (draft.path / "export" / "letters.txt").write_text(config.letter)
    draft.part("export", "export")
    return {"letters": 1}


REQUEST = Request(sys.modules[__name__], Letters(), Nothing())


@pytest.fixture
def foreign(tmp_path):
    """A store with one artifact, writable as if it had been unpacked by hand; beside it, a file that is not its own."""
    (tmp_path / "secret.txt").write_text("s")
    store = Store(tmp_path / "store")
    artifact = store.ensure(REQUEST).artifact
    make_writable(artifact.path)
    return store, artifact


def edited(artifact: Any, **changes: Any) -> None:
    """The artifact's manifest with changes: `entry` for its one file, others for the manifest itself."""
    path = artifact.path / "manifest.json"
    raw = json.loads(path.read_bytes())
    raw["parts"]["export"]["files"][0] |= changes.pop("entry", {})
    path.write_text(json.dumps(raw | changes))


SECRET = {"bytes": 1, "sha256": hashlib.sha256(b"s").hexdigest()}


@pytest.mark.parametrize(
    "changes",
    [
        {"entry": {"path": "../../../secret.txt", **SECRET}},
        {"entry": {"path": "export/../../../../secret.txt", **SECRET}},
        {"entry": {"path": "/etc/hostname", **SECRET}},
        {"entry": {"path": "", **SECRET}},
        {"volatile": ["../../../secret.txt"]},
        {"stage": "../../elsewhere"},
        {"stage": "/tmp/elsewhere"},
    ],
)
def test_a_manifest_that_leads_out_of_its_artifact_is_damaged(foreign, changes, tmp_path):
    store, artifact = foreign
    edited(artifact, **changes)
    with pytest.raises(DamagedArtifact, match="names the"):
        store.lookup(artifact.stage, artifact.key)
    assert store.unreadable() == [artifact.path]
    answer = onward(tmp_path, "verify", "--store", store.root)
    assert answer.returncode == 1 and "set aside" in answer.stdout
    assert "Traceback" not in answer.stderr
    assert (tmp_path / "secret.txt").read_text() == "s"
    assert not list(tmp_path.rglob("elsewhere"))


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_link_in_an_artifact_is_not_followed(foreign, what, tmp_path):
    store, artifact = foreign
    inside = artifact.path / "export"
    if what == "file":
        (inside / "letters.txt").unlink()
        (inside / "letters.txt").symlink_to(tmp_path / "secret.txt")
    else:
        elsewhere = tmp_path / "elsewhere"
        inside.rename(elsewhere)
        (elsewhere / "letters.txt").write_text("s")
        inside.symlink_to(elsewhere)
    edited(artifact, entry=SECRET)
    assert store.verify(artifact) and "link" in store.verify(artifact)[0]
    with pytest.raises(DamagedArtifact, match="link"):
        store.lookup(artifact.stage, artifact.key)
    target = tmp_path / "exported"
    answer = onward(tmp_path, "export", artifact.key[:12], target, "--store", store.root)
    assert answer.returncode == 1 and "Traceback" not in answer.stderr
    assert not target.exists()


def test_a_half_made_artifact_that_was_planted_is_not_published_elsewhere(foreign, tmp_path):
    store, artifact = foreign
    work = store.work_of(artifact.stage, artifact.key)
    artifact.path.rename(work)
    planted = json.loads((work / "manifest.json").read_bytes()) | {"stage": "../../elsewhere"}
    (work / "manifest.json").write_text(json.dumps(planted))
    again = store.ensure(REQUEST)
    assert again.state == "built" and again.artifact.path == store.path_of(artifact.stage, artifact.key)
    assert not list(tmp_path.rglob("elsewhere"))


@pytest.mark.parametrize("name", ["../secret", "..", "/etc/passwd", "x" * 300, "a/../../secret", "", "-rf"])
def test_keys_and_runs_given_to_commands_reach_nothing_outside(foreign, name, tmp_path):
    store, artifact = foreign
    (tmp_path / "secret.json").write_text("s")
    write_record(store, RunRecord("kept-1", "kept", {}, ((artifact.stage, artifact.key),)))
    for command in (
        ["gc", f"--forget={name}", "--store", store.root],
        ["export", "--store", store.root, "--", name, tmp_path / "exported"],
        ["lineage", "--store", store.root, "--", name],
    ):
        answer = onward(tmp_path, *command)
        assert "Traceback" not in answer.stderr, answer.stderr
        if name or command[0] == "gc":
            assert answer.returncode == 1, (command, answer.stdout)
    kept = collect_garbage(store, keep=(name,))
    assert not kept.artifacts
    assert (tmp_path / "secret.json").exists() and (tmp_path / "secret.txt").exists()
    assert [record.run for record in read_records(store)] == ["kept-1"]


# ---- files that would run code if they were trusted ----------------------------------------------------------------


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = str(trace)

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.trace, "w")


SCRIPT = "open({trace!r}, 'w').close()\n"


@pytest.fixture
def trace(tmp_path):
    """The file that must not appear; checked at the end, after it was seen that a bomb does go off."""
    path = tmp_path / "it-went-off"
    pickle.loads(pickle.dumps(Bomb(path))).close()
    assert path.exists()
    path.unlink()
    yield path
    assert not path.exists(), "foreign code was run"


def small_model(directory: Path) -> None:
    """A Llama of a few weights with a tokenizer, as `save_pretrained` leaves it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=270,
        special_tokens=["<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(["the cat sat on the mat"] * 9, trainer)
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        bos_token_id=0,
        eos_token_id=0,
    )
    LlamaForCausalLM(shape).save_pretrained(directory)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>"})
    )


def import_base(directory: Path, store: Path) -> Any:
    return artifact_of(base, BaseConfig(), resolve_base(ModelConfig(base=str(directory)), Path("/")), store)


def json_with(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))


def plant(directory: Path, trace: Path, *names: str) -> None:
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".py"):
            (directory / name).write_text(SCRIPT.format(trace=str(trace)))
        else:
            (directory / name).write_bytes(pickle.dumps(Bomb(trace)))


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


@pytest.mark.slow
def test_scripts_and_pickles_beside_and_inside_texts_never_run(tmp_path, trace):
    config = write_config(tmp_path)
    text = tmp_path / "text"
    rows = [json.loads(line)["text"] for line in (text / "domain-0.jsonl").read_text().splitlines()]
    field = pa.field(
        "text",
        pa.string(),
        metadata={
            "ARROW:extension:name": "arrow.py_extension_type",  # once unpickled by pyarrow when it was read
            "ARROW:extension:metadata": pickle.dumps(Bomb(trace), protocol=0),
        },
    )
    schema = pa.schema([field], metadata={"pandas": pickle.dumps(Bomb(trace), protocol=0)})
    pq.write_table(pa.table([rows], schema=schema), text / "bomb.parquet")
    plant(text, trace, "text.py", "domain.py", "dataset_infos.py", "__init__.py", "bomb.pkl", "conftest.py")
    sources = json.loads(config.read_text())["corpus"]["sources"]
    sources[0]["files"].append("text/bomb.parquet")
    config = write_config(tmp_path, corpus__sources=sources)
    answer = onward(tmp_path, "run", config, "--json", "--until", "filter")
    assert answer.returncode == 0, answer.stderr[-3000:]
    ingested = json.loads(answer.stdout)["stages"]
    assert sum(s["documents_in"] or 0 for s in ingested if s["stage"] == "ingest") >= len(rows)


# ---- secrets -------------------------------------------------------------------------------------------------------


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


MARK = "onward-secret-mark"
SECRETS = {
    "PREFECT_API_AUTH_STRING": f"admin:{MARK}-1",
    "MLFLOW_TRACKING_USERNAME": "admin",
    "MLFLOW_TRACKING_PASSWORD": f"{MARK}-2",
    "HF_TOKEN": f"{MARK}-3",
    "AWS_SECRET_ACCESS_KEY": f"{MARK}-4",
}


def holding(root: Path, words: bytes) -> list[str]:
    """Files below root that hold these bytes."""
    return [str(path) for path in root.rglob("*") if path.is_file() and words in path.read_bytes()]


@pytest.mark.slow
def test_secrets_of_the_environment_are_found_nowhere_after_runs(tmp_path):
    config = write_config(tmp_path, budgets=("8K",))
    told = ""
    listening: set[str] = set()
    away = f"http://me:{MARK}-5@127.0.0.1:9"
    for more in ({}, {"MLFLOW_TRACKING_URI": away}):
        process = subprocess.Popen(
            [*ONWARD, "run", str(config), "--json"],
            env={**environment(tmp_path), **SECRETS, **more},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        while process.poll() is None:
            listening |= listeners(process.pid)
            time.sleep(0.2)
        said = process.stdout.read() if process.stdout else ""
        assert process.returncode == 0, said[-3000:]
        told += said
    assert "has not got everything" in told, "MLflow was away the second time"
    assert MARK not in told
    assert (tmp_path / ".onward").is_dir() and list(tmp_path.rglob("*.db"))
    assert holding(tmp_path, b"small"), "the search finds what is there"
    assert holding(tmp_path, MARK.encode()) == []
    assert listening == {"127.0.0.1"}, "the run's own Prefect server, on loopback alone"


def listeners(pid: int) -> set[str]:
    """Addresses that a process and its children listen on."""
    found = set()
    try:
        top = psutil.Process(pid)
        for process in (top, *top.children(recursive=True)):
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    found.add(connection.laddr.ip)
    except psutil.Error:
        pass
    return found


@pytest.mark.slow
def test_a_database_that_cannot_be_reached_does_not_spell_out_its_password(tmp_path):
    config = write_config(tmp_path, budgets=("8K",))
    address = f"postgresql+asyncpg://prefect:{MARK}-6@127.0.0.1:9/prefect"
    answer = subprocess.run(
        [*ONWARD, "run", str(config), "--json"],
        env={**environment(tmp_path), "PREFECT_API_DATABASE_CONNECTION_URL": address},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert answer.returncode == 1
    assert MARK not in answer.stdout + answer.stderr
    assert holding(tmp_path, MARK.encode()) == []
