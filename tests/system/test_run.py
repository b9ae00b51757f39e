"""`onward run` as a person uses it: again, extended, changed, stopped, wrong, with bad input."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import pty
import select
import shutil
import signal
import sqlite3
import subprocess
import termios
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
import typer

from flows.commands.store import export, gc, verify
from storage.atomic import make_writable
from storage.errors import OnwardError
from storage.runs import read_records
from storage.store import Store
from tests.support.attempts import Attempt, wait_until_alone
from tests.support.begun import begin
from tests.support.servers import PrefectServer, task_states
from tests.support.small import ONWARD, digests, environment, onward, run_json, write_config

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("runs_share_a_server")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, runs_share_a_server):
    """A run with both budgets from the start, reading ahead, by one worker, that looks at held-out text on the way: its
    home, configuration and result."""
    home = tmp_path_factory.mktemp("whole")
    config = write_config(
        home,
        training__execution={
            "device": "cpu",
            "threads": 1,
            "overlap": True,
            "heldout_every_tokens": "2K",
        },
        corpus__execution={"workers": 1},
    )
    return home, config, run_json(home, config)


@pytest.fixture(scope="module")
def seeded(tmp_path_factory, runs_share_a_server, reference_run):
    """A run with the first budget alone, by two seeds: its home, configuration and result."""
    home = tmp_path_factory.mktemp("seeded")
    begin(reference_run, home)
    config = write_config(home, budgets=("8K",))
    done = onward(home, "run", config, "--seeds", "2", "--json")
    assert done.returncode == 0, done.stderr
    return home, config, json.loads(done.stdout)


def has_states(server: PrefectServer, flow_run: str, expected: dict[str, int]) -> None:
    """The names of the states of a flow run's tasks become these; events take the server a moment."""
    until = time.monotonic() + 120
    while (found := task_states(server.database, flow_run)) != expected:
        assert time.monotonic() < until, found
        time.sleep(0.2)


def test_the_result_is_one_line_that_describes_all(whole, prefect_server):
    home, _, result = whole
    assert result["state"] == "completed"
    assert [model["name"] for model in result["models"]] == ["base", "8K", "20K"]
    assert [model["tokens"] for model in result["models"]] == [0, 8000, 20000]
    for model in result["models"]:
        assert set(model["perplexity"]) == {"domain", "general"}
        assert set(model["scores"]) == {"continuation"}
        assert (home / "store" / model["path"] / "model.safetensors").is_file()
    assert (home / "store" / result["report"] / "report.html").is_file()
    assert {stage["stage"] for stage in result["stages"]} >= {"ingest", "pack", "train", "decay", "report"}
    assert result["mlflow_run"]
    states = Counter({"built": "Completed", "cached": "Cached"}[stage["state"]] for stage in result["stages"])
    has_states(prefect_server, result["flow_run"], dict(states))


def test_a_second_run_builds_nothing(whole, prefect_server):
    home, config, first = whole
    again = run_json(home, config)
    assert {stage["state"] for stage in again["stages"]} == {"cached"}
    assert again["models"] == first["models"]
    has_states(prefect_server, again["flow_run"], {"Cached": len(again["stages"])})
    plan = onward(home, "plan", config)
    assert (plan.returncode, plan.stdout.splitlines()[-1]) == (0, "nothing to do")


def test_reading_ahead_gives_the_bytes_of_one_stage_after_the_other(whole, reference_run):
    home, _, result = whole
    apart = digests(reference_run / "store")
    assert {f"{stage['stage']}/{stage['key']}" for stage in result["stages"]} == set(apart)
    assert {key: made for key, made in digests(home / "store").items() if key in apart} == apart


def test_a_changed_threshold_runs_again_from_filter_on_and_the_plan_says_so(whole):
    home, config, _ = whole
    changed = ("--set", "corpus.filter.thresholds={gopher_too_few_words: 200}")
    plan = onward(home, "plan", config, *changed, "--json")
    assert plan.returncode == 2
    rows = json.loads(plan.stdout)
    first = next(row for row in rows if row["state"] != "cached")
    assert first["stage"] == "filter"
    assert any("corpus.filter.thresholds.gopher_too_few_words" in why for why in first["why"])
    assert {row["state"] for row in rows if row["stage"] in ("ingest", "dedup") and row["slice"] == 1} == {
        "cached"
    }
    result = run_json(home, config, *changed, "--until", "decontaminate", "--slices", 1)
    assert [(s["stage"], s["state"]) for s in result["stages"]] == [
        ("ingest", "cached"),
        ("dedup", "cached"),
        ("filter", "built"),
        ("decontaminate", "built"),
    ]
    assert result["stages"][2]["documents_out"] < result["stages"][2]["documents_in"]


def test_a_forced_stage_is_compared_with_what_is_there(whole):
    home, config, _ = whole
    before = digests(home / "store")
    result = run_json(home, config, "--force", "pack")
    assert {s["state"] for s in result["stages"]} == {"cached"}
    assert digests(home / "store") | before == digests(home / "store")


def test_what_was_done_to_the_data_is_a_page_in_prefect_and_in_mlflow(whole, prefect_server):
    home, _, result = whole
    from mlflow import MlflowClient

    with sqlite3.connect(prefect_server.database) as database:
        [(kind, text)] = database.execute(
            "select type, data from artifact where key = 'data' and flow_run_id = ?", [result["flow_run"]]
        ).fetchall()
    assert kind == "markdown" and "# What was done to the data" in json.loads(text)
    assert "](figures/" not in json.loads(text)  # they lie in the store, where a browser does not look
    assert json.loads(text).count("](data:image/svg+xml;base64,") >= 3
    client = MlflowClient(f"sqlite:///{home / '.onward' / 'mlflow' / 'mlflow.db'}")
    shown = {one.path for one in client.list_artifacts(result["mlflow_run"], "page")}
    assert {"page/data.html", "page/data.md"} <= shown
    for name in ("report.md", "report.html"):
        page = Path(client.download_artifacts(result["mlflow_run"], f"report/{name}"))
        text = page.read_text().replace("&nbsp;", " ")
        assert "this run" in text and "small · 8K→20K" in text and "domain (domain, 0.75)" in text
    [made] = [stage for stage in result["stages"] if stage["stage"] == "data"]
    facts = json.loads((home / "store" / made["path"] / "data.json").read_text())
    read = [stage for stage in result["stages"] if stage["stage"] == "ingest"]
    assert facts["flow"]["stages"][0]["documents_in"] == sum(stage["documents_in"] for stage in read)
    assert facts["flow"]["problems"] == []


def test_mlflow_has_the_scores_of_each_model_by_tokens(whole):
    home, _, result = whole
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{home / '.onward' / 'mlflow' / 'mlflow.db'}")
    history = client.get_metric_history(result["mlflow_run"], "perplexity/domain")
    expected = {model["tokens"]: model["perplexity"]["domain"] for model in result["models"]}
    assert {point.step: point.value for point in history} == pytest.approx(expected)
    assert client.get_run(result["mlflow_run"]).info.status == "FINISHED"
    experiment = client.get_experiment_by_name("small").experiment_id
    children = client.search_runs([experiment], "tags.stage = 'train'")
    keys = [run.data.tags["stage_key"] for run in children]
    assert sorted(keys) == sorted({s["key"] for s in result["stages"] if s["stage"] == "train"})
    for child in children:
        steps = [point.step for point in client.get_metric_history(child.info.run_id, "train/loss")]
        assert steps == sorted(set(steps)) and steps


def test_the_loss_on_held_out_text_is_beside_that_of_training(whole):
    """Of each source, on the flow run, by the tokens seen: from before the first step to the end of the last branch."""
    home, _, result = whole
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{home / '.onward' / 'mlflow' / 'mlflow.db'}")
    for source in ("domain", "general"):
        trunk = client.get_metric_history(result["mlflow_run"], f"train/heldout/{source}")
        branch = client.get_metric_history(result["mlflow_run"], f"decay/heldout/{source}")
        tokens = [point.step for point in trunk]
        assert tokens[0] == 0 and len(tokens) > 3 and tokens == sorted(set(tokens))
        assert max(point.step for point in branch) > max(tokens)
        first, last = math.exp(trunk[0].value), math.exp(branch[-1].value)
        known = [model["perplexity"][source] for model in result["models"]]  # of more text, with more context
        assert first == pytest.approx(known[0], rel=0.3) and last == pytest.approx(known[-1], rel=0.3)


def _at_a_terminal() -> None:
    """In a child: its input is its terminal, and it hears when that is closed, also where the tests run under nohup."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def test_when_its_terminal_is_closed_it_leaves_a_checkpoint_a_true_state_and_no_process(
    tmp_path, prefect_server
):
    """A closed terminal sends SIGHUP, which is handed on as SIGTERM; what was on the terminal goes on in a file."""
    config = write_config(tmp_path, budgets=("2M",))
    terminal, its = pty.openpty()
    run = subprocess.Popen(
        [*ONWARD, "run", str(config), "--json"],
        env=environment(tmp_path),
        cwd=tmp_path,
        stdin=its,
        stdout=subprocess.PIPE,
        stderr=its,
        text=True,
        start_new_session=True,
        preexec_fn=_at_a_terminal,
    )
    os.close(its)
    until = time.monotonic() + 300
    while not list(tmp_path.glob("store/.work/train-*/checkpoints/step-*/manifest.json")):
        assert run.poll() is None and time.monotonic() < until
        if select.select([terminal], [], [], 0.05)[0]:
            os.read(terminal, 65536)
    os.close(terminal)
    printed, _ = run.communicate(timeout=300)
    assert run.returncode == 1
    assert json.loads(printed)["state"] == "stopped"
    told = (tmp_path / ".onward" / "logs" / "flows.log").read_text()
    assert f"to go on from there: onward run {config} --json\n" in told and "Traceback" not in told
    wait_until_alone(tmp_path / "store")
    [record] = read_records(Store(tmp_path / "store"))
    assert record.state == "stopped"
    state = prefect_server.api(f"/flow_runs/{record.attempts[-1]}", method="GET")["state"]
    assert (state["type"], state["name"]) == ("CRASHED", "Interrupted")
    assert "freed 0 bytes" in onward(tmp_path, "gc", "--store", tmp_path / "store").stdout, (
        "what it made is kept"
    )


def test_verify_repair_gc_and_export_beside_a_run_touch_nothing_of_it(
    tmp_path, reference_run, monkeypatch, capsys
):
    """The trainer is held in mid-training. A report of an earlier run is damaged, which the run comes to at its end."""
    begin(reference_run, tmp_path)
    store = Store(tmp_path / "store")
    [report] = Store(reference_run / "store").artifacts("report")
    damaged = store.path_of("report", report.key)
    shutil.copytree(report.path, damaged)
    make_writable(damaged)
    page = next(damaged.rglob("*.html"))
    page.write_bytes(page.read_bytes()[:-1] + b" ")
    [model] = [one.key for one in store.artifacts("train")]
    config = write_config(
        tmp_path, training__execution={"device": "cpu", "threads": 1, "checkpoint_every": "1ms"}
    )
    monkeypatch.chdir(tmp_path)
    run = Attempt([*ONWARD, "run", str(config), "--json"], tmp_path)
    until = time.monotonic() + 300
    while not (found := list(tmp_path.glob("store/.work/train-*/checkpoints/step-*/manifest.json"))):
        assert run.process.poll() is None and time.monotonic() < until, run.errors
        time.sleep(0.002)
    work = found[0].parents[2]
    trainer = next(
        process
        for process in psutil.process_iter(["cmdline"])
        if str(work / "spec.json") in (process.info["cmdline"] or ())
    )
    trainer.suspend()
    try:
        before = listing(store.root)
        asked = {"store": store.root}
        for repair in (False, True):
            with pytest.raises(typer.Exit):
                verify(**asked, repair=repair)
            told = capsys.readouterr().out
            assert f"report/{damaged.name}: " in told and " 1 damaged" in told
            assert damaged.exists() is not repair
        with pytest.raises(OnwardError, match="a run is using .*nothing was collected"):
            gc(**asked)
        with pytest.raises(OnwardError, match="a run is using .*nothing was collected"):
            gc(**asked, work=True)
        export(model, tmp_path / "model", **asked)
        after = listing(store.root)
        aside = {name for name in after if ".damaged-" in name}
        assert aside and {name: after[name] for name in after if name not in aside} == {
            name: mark for name, mark in before.items() if not name.startswith(f"report/{damaged.name}/")
        }
        assert (work / "result.json").exists() is False, "it was held all the time"
    finally:
        trainer.resume()
    assert run.ended(300) == 0, run.errors
    assert digests(store.root) == digests(reference_run / "store")
    assert (tmp_path / "model" / "model.safetensors").is_file()


def listing(root: Path) -> dict[str, tuple[int, int]]:
    """Size and time of the last write of every file of a store, but for what every reader writes: locks and digests."""
    return {
        str(path.relative_to(root)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in root.rglob("*")
        if path.is_file()
        and path.suffix != ".lock"
        and not path.name.startswith((".digests", ".lock"))
        and ".tracking" not in path.parts
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "training.batch_token=512"], "training.batch_tokens"),
        (["--set", "packing.sequence_length=256"], "positions"),
        (["--set", "training.batch_tokens=100"], "training.batch_tokens"),
        (
            ["--set", "corpus.sources=[{name: a, role: replay, weight: 1, files: [none/*.jsonl]}]"],
            "none/*.jsonl",
        ),
        (["--set", "evaluation.domain=[mmlu_of_the_moon]"], "mmlu_of_the_moon"),
        (["--until", "baking"], "--until"),
        (["--force", "baking"], "--force"),
    ],
)
def test_what_is_wrong_is_refused_before_any_work(tmp_path, arguments, words):
    config = write_config(tmp_path)
    answer = onward(tmp_path, "run", config, "--json", *arguments)
    assert answer.returncode == 2
    assert words in answer.stderr
    assert "Traceback" not in answer.stderr
    result = json.loads(answer.stdout)
    assert result["state"] == "failed" and words in result["error"]
    assert not (tmp_path / "store").exists()


def test_too_much_bad_input_fails_with_the_first_ones_named_and_goes_on_when_it_is_mended(tmp_path):
    config = write_config(tmp_path)
    broken = tmp_path / "text/domain-1.jsonl"
    good = broken.read_text()
    broken.write_text(good + "not json\n" * 30)
    answer = onward(tmp_path, "run", config, "--json", "--until", "filter")
    assert answer.returncode == 1
    assert "malformed_json" in answer.stderr and "domain-1.jsonl" in answer.stderr
    assert "\nKept: " in answer.stderr and "\nRepeats: ingest · slice " in answer.stderr
    command = f"onward run {config} --json --until filter"
    assert f"Change what is said above, then: {command}\n" in answer.stderr, "the same would fail again"
    assert "Traceback" not in answer.stderr
    assert json.loads(answer.stdout)["stages"][-1]["state"] == "failed"
    broken.write_text(good)
    os.utime(broken)
    assert run_json(tmp_path, config, "--until", "filter")["state"] == "completed"


def test_a_document_can_be_explained(whole):
    home, _, _ = whole
    import pyarrow.parquet as pq

    dropped = sorted(home.glob("store/filter/*/dropped.parquet"))
    rows = [row for path in dropped for row in pq.read_table(path).to_pylist()]
    kept = next(iter(sorted(home.glob("store/decontaminate/*/documents/*/part.parquet"))))
    answer = onward(home, "explain", pq.read_table(kept)["id"][0].as_py(), "--store", home / "store")
    assert "decontaminate" in answer.stdout and "kept" in answer.stdout
    if rows:
        answer = onward(home, "explain", rows[0]["id"], "--store", home / "store")
        assert f"dropped: {rows[0]['reason']}" in answer.stdout


def test_what_mlflow_missed_while_it_was_away_is_there_after_the_next_run(tmp_path, reference_run):
    shutil.copytree(reference_run, tmp_path, symlinks=True, dirs_exist_ok=True)
    config = write_config(tmp_path)
    away = ("--set", "tracking.mlflow_uri=http://127.0.0.1:9")
    answer = onward(tmp_path, "run", config, "--json", *away)
    assert answer.returncode == 0, answer.stderr
    assert "has not got everything" in answer.stderr
    stages = json.loads(answer.stdout)["stages"]
    again = run_json(tmp_path, config)
    assert {stage["state"] for stage in again["stages"]} == {"cached"}
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / '.onward' / 'mlflow' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("small").experiment_id
    runs = client.search_runs([experiment], max_results=1000)
    children = {run.data.tags["stage_key"]: run for run in runs if "stage_key" in run.data.tags}
    assert set(children) == {stage["key"] for stage in stages}
    assert {run.info.status for run in children.values()} == {"FINISHED"}
    decay = next(stage["key"] for stage in stages if stage["stage"] == "decay")
    assert client.get_metric_history(children[decay].info.run_id, "train/loss")


def test_verify_lineage_export_and_gc(whole, tmp_path):
    home, _, result = whole
    assert "0 damaged" in onward(home, "verify", "--store", home / "store").stdout
    key = result["models"][-1]["path"].split("/")[1]
    lineage = onward(home, "lineage", key, "--store", home / "store").stdout
    assert "ingest/" in lineage and "train/" in lineage
    assert onward(home, "export", key, tmp_path / "model", "--store", home / "store").returncode == 0
    assert (tmp_path / "model/config.json").is_file()
    card = (tmp_path / "model/README.md").read_text()
    base, last = result["models"][0], result["models"][-1]
    for source, value in last["perplexity"].items():
        row = next(line for line in card.split("\n") if line.startswith(f"| {source} |"))
        assert f"| {base['perplexity'][source]:.2f}" in row and f"| {value:.2f}" in row
    for stage in result["stages"]:
        if stage["stage"] == "train":
            assert f"`{stage['key'][:12]}`" in card
    for path in sorted((home / "text").glob("domain-0.jsonl")):
        assert f"`{path.name}` (sha256 `{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}`)" in card
    assert str(home) not in card
    asked = ("generate", key, "The", "--against", "base", "--tokens", "4", "--store", home / "store")
    answer = onward(home, *asked)
    assert answer.returncode == 0, answer.stderr
    assert [line for line in answer.stdout.split("\n") if line.startswith("── ")] == [f"── {key}", "── base"]
    assert answer.stdout.count("\nThe") == 2
    kept = digests(home / "store")
    assert "freed" in onward(home, "gc", "--store", home / "store").stdout
    still = digests(home / "store")
    assert {f"{s['stage']}/{s['key']}" for s in result["stages"]} <= set(still) <= set(kept)


def test_seeds_differ_in_training_alone_and_end_in_a_page(seeded, prefect_server):
    home, config, found = seeded
    first, second = found["runs"]
    assert [run["seed"] for run in found["runs"]] == found["seeds"] == [3, 4]
    states = {(stage["stage"], stage["state"]) for stage in second["stages"]}
    for stage in ("ingest", "dedup", "filter", "decontaminate", "tokenizer", "tokenize", "questions"):
        assert {state for name, state in states if name == stage} == {"cached"}, stage
    assert {state for name, state in states if name in ("pack", "train", "decay")} == {"built"}
    assert first["models"][1]["perplexity"] != second["models"][1]["perplexity"]
    assert "± " in Path(found["page"]).with_suffix(".md").read_text()
    for run in found["runs"]:
        page = home / "store" / "runs" / f"report-{Path(run['report']).name}"
        assert "## What it cost" in (page / "report.md").read_text()
        with sqlite3.connect(prefect_server.database) as database:
            [(shown,)] = database.execute(
                "select data from artifact where key = 'report' and flow_run_id = ?", [run["flow_run"]]
            ).fetchall()
        assert "## What it cost" in json.loads(shown) and "](data:image/svg+xml;base64," in json.loads(shown)
    again = run_json(home, config)
    assert {stage["state"] for stage in again["stages"]} == {"cached"}  # the first seed is the run itself


def test_a_budget_added_later_gives_the_same_bits(whole, seeded):
    """To a run that ended with the first one, in two seeds; beside a run that had both from the start."""
    home, (mine, _, found) = whole[0], seeded
    one = found["runs"][0]
    before = digests(mine / "store")
    plan = onward(mine, "plan", write_config(mine))
    assert plan.returncode == 2
    told = " ".join(plan.stdout.split())
    assert "at 64 in" in told and "tokens/s" in told and "as recorded in the store" in told
    two = run_json(mine, write_config(mine))
    state = {stage["key"]: stage["state"] for stage in two["stages"]}
    made_again = [
        s["stage"]
        for s in one["stages"]
        if s["stage"] not in ("data", "report") and state.get(s["key"]) != "cached"
    ]
    assert made_again == []
    after = digests(mine / "store")
    assert {key: after[key] for key in before} == before
    asked = {
        f"{stage['stage']}/{stage['key']}" for stage in whole[2]["stages"]
    }  # other tests made more there
    direct = {name: parts for name, parts in digests(home / "store").items() if name in asked}
    assert {key: after[key] for key in direct} == direct
