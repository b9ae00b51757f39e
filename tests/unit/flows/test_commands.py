"""The command line before any work: which store a command takes, what it completes, and how it refuses."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from flows.cli import COMMANDS, app
from flows.commands import completion
from flows.commands.common import chosen_store, nearest, only_store
from flows.commands.run import scores_table
from storage.errors import ConfigError, OnwardError
from storage.store_places import is_store, store_of_config, stores_of_home
from tasks import stages


def make_store(path: Path, run: str | None = None, model: str | None = None) -> Path:
    """A directory that looks as a store does: with a run record, or with an artifact."""
    if run is not None:
        (path / "runs").mkdir(parents=True)
        (path / "runs" / f"{run}.json").write_text(json.dumps({"run": run, "artifacts": []}))
    if model is not None:
        (path / "decay" / model[:16]).mkdir(parents=True)
        manifest = {"stage": "decay", "key": model[:16] * 4, "parts": {}}
        (path / "decay" / model[:16] / "manifest.json").write_text(json.dumps(manifest))
    return path


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty project directory, which is the working directory too."""
    monkeypatch.delenv("ONWARD_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_store_holds_artifacts_runs_or_work(home):
    assert is_store(make_store(home / "a", run="demo-123456"))
    assert is_store(make_store(home / "b", model="ab" * 8))
    (home / "c" / ".work").mkdir(parents=True)
    assert not is_store(home / "c")
    (home / "c" / ".work" / "ingest-0123456789abcdef.lock").touch()
    assert is_store(home / "c")
    (home / "text" / "runs").mkdir(parents=True)
    (home / "text" / "notes.json").touch()
    assert not is_store(home / "text")
    assert not is_store(home / "absent")


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"photos/0123456789abcdef/manifest.json": "{}"},
        {"extensions/abcdefabcdefabcd/manifest.json": '{"name": "a browser\'s", "version": "1"}'},
        {
            "store/filter/0123456789abcdef/manifest.json": json.dumps(
                {"stage": "filter", "key": "0123456789abcdef" * 4, "parts": {}}
            )
        },
        {
            "other/0123456789abcdef/manifest.json": json.dumps(
                {"stage": "filter", "key": "0123456789abcdef" * 4, "parts": {}}
            )
        },
        {"runs/wandb.json": '{"run": "another"}', "train/notes/a.txt": ""},
        {".lock": "", "photos/2024/a.jpg": ""},
        {".lock": "4711", ".work/x": ""},
        {".work/demo.lock": "", ".work/backup-2024.lock": ""},
    ],
)
def test_what_only_looks_like_a_store_is_none(home, files):
    for name, content in files.items():
        (home / "place" / name).parent.mkdir(parents=True, exist_ok=True)
        (home / "place" / name).write_text(content)
    (home / "place").mkdir(exist_ok=True)
    assert not is_store(home / "place")
    with pytest.raises(OnwardError, match="there is no store at"):
        chosen_store(home / "place")


def test_a_store_in_which_nothing_is_made_yet_is_one(home):
    (home / "store" / "runs").mkdir(parents=True)
    (home / "store" / ".lock").touch()
    assert is_store(home / "store")


def test_an_empty_name_of_a_store_is_refused(home):
    (home / "run.yaml").write_text("store: ''\n")
    with pytest.raises(ConfigError, match="store: is empty"):
        chosen_store(None, Path("run.yaml"))


def test_the_only_store_is_taken_and_said(home, capsys):
    made = make_store(home / "stores" / "demo", run="demo-123456")
    assert chosen_store(None) == made
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "store: stores/demo (the only one here)\n"
    assert only_store() == made


def test_a_store_that_a_configuration_names_is_found_once(home, capsys):
    make_store(home / "elsewhere", run="mine-123456")
    (home / "configs").mkdir()
    for name in ("one", "two"):
        (home / "configs" / f"{name}.yaml").write_text("store: elsewhere\n")
    (home / "broken.yaml").write_text("store: [\n")
    assert stores_of_home(home) == [home / "elsewhere"]
    assert chosen_store(None, Path("configs/one.yaml")) == home / "elsewhere"
    assert "elsewhere (of configs/one.yaml)" in capsys.readouterr().err


def test_of_several_stores_none_is_guessed(home, monkeypatch):
    make_store(home / "store", run="mine-123456")
    make_store(home / "stores" / "demo", run="demo-123456")
    (home / "demo.yaml").write_text("store: stores/demo\n")
    monkeypatch.setattr("sys.argv", ["/bin/onward", "compare", "a", "b"])
    with pytest.raises(ConfigError) as refused:
        chosen_store(None)
    assert str(refused.value).splitlines() == [
        f"{home} has 2 stores; name one:",
        "  onward compare a b --store store",
        "  onward compare a b --store stores/demo    (of demo.yaml)",
    ]
    assert only_store() is None


def test_a_store_that_is_not_made_yet_is_named_with_the_run_that_makes_it(home):
    (home / "configs").mkdir()
    (home / "configs" / "mine.yaml").write_text("store: stores/mine\n")
    (home / "configs" / "notes.yaml").write_text("- no configuration\n")
    with pytest.raises(OnwardError) as refused:
        chosen_store(None)
    assert "  onward run configs/mine.yaml    (its store: stores/mine)" in str(refused.value).splitlines()
    assert "notes" not in str(refused.value)


def test_below_a_project_its_store_is_named(home, monkeypatch):
    make_store(home / "stores" / "demo", run="demo-123456")
    (home / "notes").mkdir()
    monkeypatch.chdir(home / "notes")
    monkeypatch.setattr("sys.argv", ["/bin/onward", "verify"])
    with pytest.raises(OnwardError, match=r"but above it:\n  onward verify --store \S+stores/demo"):
        chosen_store(None)


def test_without_a_store_it_is_said_how_one_is_named(home):
    with pytest.raises(OnwardError, match="there is no store .* --store.* --config"):
        chosen_store(None)


def test_what_is_named_must_be_a_store(home):
    (home / "text").mkdir()
    make_store(home / "store", run="mine-123456")
    with pytest.raises(OnwardError, match="neither artifacts nor runs; stores of .*: store"):
        chosen_store(home / "text")
    with pytest.raises(OnwardError, match="no such directory"):
        chosen_store(home / "absent")
    (home / "new.yaml").write_text("name: new\nstore: fresh\n")
    with pytest.raises(OnwardError, match="there is no store yet"):
        chosen_store(None, home / "new.yaml")


@pytest.mark.parametrize(("text", "words"), [("- a\n", "no mapping"), ("a: [\n", "is not YAML")])
def test_a_file_that_is_no_configuration(home, text, words):
    (home / "odd.yaml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        store_of_config(home / "odd.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        store_of_config(home / "absent.yaml")


def test_an_unknown_stage_is_refused_with_the_nearest():
    error = nearest("--until", "evalute", stages.ENDS)
    assert "did you mean evaluate?" in str(error) and ", ".join(stages.ENDS) in str(error)
    assert "did you mean" not in str(nearest("--until", "xyz", stages.ENDS))


def test_what_the_shell_completes(home):
    make_store(home / "store", run="mine-123456", model="0123456789abcdef")
    (home / "configs").mkdir()
    (home / "configs" / "mine.yaml").write_text("store: store\n")
    (home / "configs" / "notes.txt").touch()

    class Context:
        def __init__(self, **params):
            self.params = params

    assert completion.last_stages("de") == ["dedup", "decontaminate", "decay"]
    assert completion.forced_stages("a") == ["all"]
    assert completion.configurations("") == ["configs/mine.yaml", "configs/", "store/"]
    assert completion.configurations("configs/") == ["configs/mine.yaml"]
    assert completion.stores("") == ["store"]
    assert completion.runs(Context(), "mi") == ["mine-123456"]
    assert completion.models(Context(config="configs/mine.yaml"), "") == ["decay/0123456789ab"]
    assert completion.models(Context(store="configs"), "") == []
    assert completion.runs(Context(config="absent.yaml"), "") == []


def test_every_example_of_the_help_is_a_command_that_parses():
    import typer

    group = typer.main.get_command(app)
    for commands in COMMANDS.values():
        for function, example in commands:
            program, name, *arguments = shlex.split(example)
            assert (program, name) == ("onward", function.__name__)
            group.commands[name].make_context(name, arguments)  # raises a usage error where it does not parse


def test_a_run_that_measured_nothing_shows_no_table_of_scores() -> None:
    packed = [
        {"name": "base", "perplexity": {}, "scores": {}},
        {"name": "400K", "perplexity": {}, "scores": {}},
    ]
    assert scores_table(packed) is None and scores_table([]) is None
    packed[1]["perplexity"] = {"edu": 12.5}
    table = scores_table(packed)
    assert table is not None and table.row_count == 1 and len(table.columns) == 3
