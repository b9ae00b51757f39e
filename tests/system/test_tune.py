"""`onward tune` as a person uses it: short trials of real training, the better of them further, and the run after it."""

from __future__ import annotations

import json
import shlex
import sqlite3
from pathlib import Path

import pytest

from tests.support.begun import begin
from tests.support.small import onward, write_config

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("runs_share_a_server")]
VARY = ("--vary", "training.learning_rate=3e-3,3e-5", "--budgets", "4K,8K")


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, runs_share_a_server, reference_run):
    """The home, the configuration, and the answer of a tuning of two rates over two budgets."""
    home = tmp_path_factory.mktemp("tuned")
    begin(reference_run, home)
    config = write_config(home)
    done = onward(home, "tune", config, *VARY, "--json")
    assert done.returncode == 0, done.stderr
    return home, config, json.loads(done.stdout)


def test_the_better_trial_goes_on_and_is_chosen(tuned):
    home, _, answer = tuned
    best, dropped = answer["trials"]
    assert best["name"] == "learning_rate 3e-3" and best["kept"] and not dropped["kept"]
    assert list(best["standings"]) == ["4000", "8000"] and list(dropped["standings"]) == ["4000"]
    first = {trial["name"]: trial["standings"]["4000"]["domain"]["value"] for trial in answer["trials"]}
    assert first["learning_rate 3e-3"] < first["learning_rate 3e-5"] < 0.01
    assert best["standings"]["8000"]["domain"]["value"] < first["learning_rate 3e-3"]
    page = Path(answer["page"])
    assert page.is_relative_to(home) and "<svg" in page.read_text()
    assert answer["command"] in (page.parent / "tune.md").read_text()


def test_its_trials_stand_below_it_in_prefect_and_in_mlflow(tuned, prefect_server):
    from mlflow import MlflowClient

    home, _, answer = tuned
    with sqlite3.connect(prefect_server.database) as database:
        tuning, name, state = database.execute(
            "select r.id, r.name, r.state_type from flow_run r join flow f on f.id = r.flow_id where f.name = 'tune' "
            "order by r.start_time"
        ).fetchone()
        trials = database.execute(
            "select r.name, r.state_type from flow_run r join task_run t on t.id = r.parent_task_run_id "
            "where t.flow_run_id = ?",
            (tuning,),
        ).fetchall()
        [(page,)] = database.execute(
            "select data from artifact where flow_run_id = ? and key = 'tune'", (tuning,)
        ).fetchall()
    assert name == "tune · small · learning_rate" and state == "COMPLETED"
    assert len(trials) == 3 and {state for _, state in trials} == {"COMPLETED"}
    assert any("lr 3e-05" in name for name, _ in trials)
    assert answer["command"] in json.loads(page) and "| learning_rate 3e-5 |" in json.loads(page)

    client = MlflowClient(f"sqlite:///{home / '.onward' / 'mlflow' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("small").experiment_id
    [above] = client.search_runs([experiment], "tags.kind = 'tuning'")
    assert answer["command"] in above.data.tags["mlflow.note.content"] and above.info.status == "FINISHED"
    below = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{above.info.run_id}'")
    assert above.data.metrics["best/score"] in [run.data.metrics["tune/score"] for run in below]
    assert len(below) == 3 and all(run.data.tags["kind"] == "flow run" for run in below)


def test_the_next_command_trains_nothing_of_the_winner_again(tuned):
    home, config, answer = tuned
    words = shlex.split(answer["command"])
    assert words[:2] == ["onward", "run"] and words[2] == str(config)
    planned = onward(home, "plan", *words[2:], "--json")
    rows = json.loads(planned.stdout)
    training = [
        (row["stage"], row["item"], row["state"]) for row in rows if row["stage"] in ("train", "decay")
    ]
    assert training[1:5] == [
        ("train", "4K", "cached"),
        ("decay", "4K", "cached"),
        ("train", "8K", "cached"),
        ("decay", "8K", "cached"),
    ]
    assert training[5] == ("train", "20K", "to build")


def test_again_it_finds_everything_and_says_the_same(tuned):
    home, config, answer = tuned
    done = onward(home, "tune", config, *VARY, "--json")
    assert done.returncode == 0 and json.loads(done.stdout) == answer
    assert "✓" not in done.stderr, "nothing was made"


def test_what_cannot_be_tried_is_refused_before_anything_runs(tuned):
    home, config, _ = tuned
    for arguments, words in (
        (("--vary", "training.learning_rate=1e-3,fast"), "training.learning_rate"),
        (("--vary", "training.lerning_rate=1e-3,2e-3"), "training.learning_rate"),
        (("--vary", "training.learning_rate=1e-3", "--budgets", "4K,2K"), "--budgets"),
        (("--vary", "training.learning_rate=1e-3", "--budgets", "many"), "--budgets"),
    ):
        done = onward(home, "tune", config, *arguments)
        assert done.returncode == 2 and words in done.stderr and "trial 1" not in done.stderr
