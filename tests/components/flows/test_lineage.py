"""The way back from a model to the files, in text, as Mermaid and as OpenLineage; and from a document to the models."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest

from flows.config import load_config
from flows.lineage.events import as_openlineage
from flows.lineage.explain import fate
from flows.lineage.exposure import line_of, seen_by
from flows.lineage.graph import as_mermaid, as_text, find_artifact, graph_of
from flows.lineage.names import resolve
from flows.runs.names import run_id
from storage.catalog import Catalog
from storage.errors import OnwardError
from storage.packing import PackingManifest
from storage.runs import RunRecord, write_record
from storage.tokens import TokenShard
from tests.support import ROOT
from tests.support.made import REGISTERED, Made

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def address(tmp_path_factory, made) -> str:
    """A registry that has the run's models."""
    address = f"sqlite:///{tmp_path_factory.mktemp('registry') / 'mlflow.db'}"
    tracker = made.tracker(address, "flow-1")
    tracker.start()
    made.tell(tracker)
    tracker.close("FINISHED", seconds=240)
    return address


@pytest.fixture
def remembered(made):
    """The store's memory of the run, as a run writes it."""
    run = load_config(made.home / "store.yaml")
    record = RunRecord(f"small-{run_id(run)}", "small", run.model_dump(mode="json"))
    found = tuple((one.stage, one.key) for one in made.artifacts.values())
    path = write_record(made.store, replace(record, artifacts=found))
    yield record.run
    path.unlink()


def sources(made: Made) -> dict[str, str]:
    """sha256 of the text files by name."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in made.home.glob("text/*.jsonl")
    }


def files_read(made: Made) -> set[str]:
    return {
        file["name"]
        for one in made.artifacts.values()
        if one.stage == "ingest"
        for file in one.manifest.inputs["files"]
    }


def onward(made: Made, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "ONWARD_HOME": str(made.home),
        "DO_NOT_TRACK": "true",
    }
    environment.pop("MLFLOW_TRACKING_URI", None)
    command = [sys.executable, "-m", "flows.cli", *arguments, "--store", str(made.store.root)]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=made.home, timeout=120
    )


def test_every_artifact_and_every_file_is_named_with_its_digest(made):
    model = made.models[-1].export
    text = as_text(graph_of(made.store, model))
    for row in Catalog(made.store).upstream(model.key):
        assert f"{row['stage']}/{row['key'][:16]}\n" in text
    assert f"export sha256 {model.part('export').digest}" in text
    digests = sources(made)
    named = dict(re.findall(r"^  file \w+ · (\S+)  [\d,]+ bytes  sha256 ([0-9a-f]{64})$", text, re.MULTILINE))
    assert named == {name: digests[name] for name in named}
    assert set(named) == files_read(made)


def test_the_picture_has_the_same_ways_with_fewer_edges(made):
    graph = graph_of(made.store, made.models[-1].export)
    chart = as_mermaid(graph)
    assert chart.startswith("flowchart LR\n")
    names = dict(re.findall(r'^  (a\d+)\["\w+ · ([0-9a-f]{16})<br/>', chart, re.MULTILINE))
    drawn = nx.DiGraph(
        (names[a], names[b]) for a, b in re.findall(r"^  (a\d+) --> (a\d+)$", chart, re.MULTILINE)
    )
    direct = nx.DiGraph((edge.source[:16], edge.target[:16]) for edge in graph.edges)
    assert set(drawn.edges) == set(nx.transitive_reduction(direct).edges)
    assert len(drawn.edges) < len(direct.edges)
    for name, digest in sources(made).items():
        if name in files_read(made):
            assert f"sha256 {digest}" in chart and name in chart


def test_a_name_with_signs_of_mermaid_s_own_stays_text():
    from flows.lineage.graph import _quoted

    assert _quoted(['a "b" <c>', "d & e"]) == "a &quot;b&quot; &lt;c&gt;<br/>d &amp; e"


def event_of(json_event: dict[str, Any]) -> Any:
    """The event rebuilt from OpenLineage's own classes, which check each field."""
    from openlineage.client.event_v2 import InputDataset, Job, OutputDataset, Run, RunEvent, RunState

    facets = standard_facets()
    known = dict(json_event)

    def built(raw: dict[str, Any]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for name, fields in raw.items():
            plain = {n: v for n, v in fields.items() if n not in ("_producer", "_schemaURL")}
            if name.startswith("onward_"):
                assert fields["_producer"] and fields["_schemaURL"].startswith(
                    "https://openlineage.io/spec/2-0-2/"
                )
                continue
            facet = facets[name](**plain, producer=fields["_producer"])
            assert facet._schemaURL == fields["_schemaURL"], name
            made[name] = facet
        return made

    def dataset(kind: Any, raw: dict[str, Any], more: str) -> Any:
        return kind(raw["namespace"], raw["name"], facets=built(raw["facets"]), **{more: built(raw[more])})

    assert known.pop("schemaURL") == RunEvent._get_schema()
    event = RunEvent(
        eventType=RunState(known.pop("eventType")),
        eventTime=known.pop("eventTime"),
        run=Run(known["run"]["runId"], built(known.pop("run")["facets"])),
        job=Job(known["job"]["namespace"], known["job"]["name"], built(known.pop("job")["facets"])),
        inputs=[dataset(InputDataset, one, "inputFacets") for one in known.pop("inputs")],
        outputs=[dataset(OutputDataset, one, "outputFacets") for one in known.pop("outputs")],
        producer=known.pop("producer"),
    )
    assert not known
    return event


def standard_facets() -> dict[str, Any]:
    from openlineage.client import facet_v2 as known

    return {
        "version": known.dataset_version_dataset.DatasetVersionDatasetFacet,
        "dataSource": known.datasource_dataset.DatasourceDatasetFacet,
        "datasetType": known.dataset_type_dataset.DatasetTypeDatasetFacet,
        "outputStatistics": known.output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet,
        "jobType": known.job_type_job.JobTypeJobFacet,
        "processing_engine": known.processing_engine_run.ProcessingEngineRunFacet,
    }


def without_ours(value: Any) -> Any:
    """Without facets of our own, and without what the client leaves out."""
    if isinstance(value, dict):
        return {
            name: without_ours(item)
            for name, item in value.items()
            if not name.startswith("onward_") and item is not None and item != [] and item != {}
        }
    return [without_ours(item) for item in value] if isinstance(value, list) else value


def test_openlineage_s_own_classes_read_every_event_and_write_the_same(made, address):
    from openlineage.client.serde import Serde

    _, artifact, registered = resolve(f"{REGISTERED}-small@tokens-20k", made.store.root, address)
    graph = graph_of(made.store, artifact)
    graph.registered = registered
    events = as_openlineage(graph)
    assert len(events) == len(graph.nodes) + 1
    for one in events:
        again = json.loads(Serde.to_json(event_of(one)))
        assert without_ours(again) == without_ours(one)
    runs = [one["run"]["runId"] for one in events]
    assert len(set(runs)) == len(runs)
    assert [one["run"]["runId"] for one in as_openlineage(graph)] == runs


def test_each_input_was_an_output_before_or_is_a_file_with_its_digest(made):
    events = as_openlineage(graph_of(made.store, made.models[-1].export))
    written: dict[tuple[str, str], str] = {}
    digests = sources(made)
    outside = set()
    for event in events:
        for one in event["inputs"]:
            version = one["facets"]["version"]["datasetVersion"]
            if one["namespace"] == "file":
                assert written[one["namespace"], one["name"]] == version
            else:
                assert digests[one["name"]] == version
                outside.add(one["name"])
        for one in event["outputs"]:
            written[one["namespace"], one["name"]] = one["facets"]["version"]["datasetVersion"]
            for file in one["facets"]["onward_files"]["files"]:
                path = Path(one["name"]).parent / file["path"]
                assert hashlib.sha256(path.read_bytes()).hexdigest() == file["sha256"]
    assert outside == files_read(made)


def test_a_model_is_found_by_every_name_that_it_has(made, address, remembered):
    model = made.models[-1].export
    name = f"{REGISTERED}-small"
    client_version = resolve(f"{name}@tokens-20k", made.store.root, address)[2]
    assert client_version is not None
    given = [
        f"{name}@tokens-20k",
        f"{name}/{client_version.version}",
        model.key,
        model.key[:12],
        f"decay/{model.key[:8]}",
        f"models:/{name}@tokens-20k",
        "20K",
        "20000",
        f"{remembered}:20K",
        "small:20k",
        str(model.path),
        str(model.path / "export"),
    ]
    for one in given:
        store, artifact, registered = resolve(one, made.store.root, address)
        assert (store.root, artifact.key) == (made.store.root, model.key), one
        assert (registered is not None) == (name in one)
    elsewhere = resolve(f"{name}@tokens-20k", made.home / "no-store", address)
    assert elsewhere[1].key == model.key if elsewhere[1] else True


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (f"{REGISTERED}-small@nobody", "nobody"),
        (f"{REGISTERED}-small/99", "is not in MLflow"),
        ("ffffffff", "no artifact"),
        ("", "artifacts"),
        ("7M", r"there is no model 7M in .*; there are small-\w+:20K, small-\w+:8K, small-\w+:base"),
        ("other:20K", "there is no model 20K of a run other in"),
    ],
)
def test_what_is_not_there_is_said_so(made, address, remembered, given, words):
    with pytest.raises(OnwardError, match=words):
        resolve(given, made.store.root, address)


def test_the_command_draws_it_three_ways(made, address):
    name = f"{REGISTERED}-small@champion"
    text = onward(made, "lineage", name, "--mlflow", address)
    assert text.returncode == 0 and f"{name} is version" in text.stdout, text.stderr
    chart = onward(made, "lineage", name, "--mlflow", address, "--format", "mermaid")
    assert chart.stdout.startswith("flowchart LR\n") and "registered" in chart.stdout
    events = onward(made, "lineage", name, "--mlflow", address, "--format", "openlineage")
    assert json.loads(events.stdout)[-1]["job"]["name"] == "register"
    wrong = onward(made, "lineage", name, "--format", "dot")
    assert wrong.returncode == 2 and "text, mermaid, openlineage" in wrong.stderr
    gone = onward(made, "lineage", name)
    assert gone.returncode == 1 and "--mlflow" in gone.stderr and "Traceback" not in gone.stderr


def tokens_of(made: Made) -> dict[int, int]:
    """Tokens of every document that was tokenized, by id."""
    found = {}
    for artifact in made.store.artifacts("tokenize"):
        for path in artifact.part("tokens").paths:
            shard = TokenShard.open(path)
            found.update(zip(map(int, shard.docs), map(int, shard.lengths), strict=True))
    return found


def test_what_all_documents_give_a_model_is_what_it_was_trained_on(made):
    """Conservation: every target of every training is a token of one document."""
    trained: dict[str, int] = {}
    for document in tokens_of(made):
        for one in seen_by(made.store, document):
            trained[one.model.key] = trained.get(one.model.key, 0) + one.trained
    models = [model.export for model in made.models]
    assert trained == {
        model.key: sum(segment.stats["tokens"] for segment in line_of(model, made.store)) for model in models
    }
    assert min(trained.values()) > 0


def test_times_are_counted_as_the_trainer_reads_them(made):
    """Against a plain walk over the sequences, token by token."""
    model = made.models[-1].export
    counts: dict[int, int] = {}
    shards = {}
    for artifact in made.store.artifacts("tokenize"):
        for file in artifact.manifest.parts["tokens"].files:
            shard = TokenShard.open(artifact.path / file.path)
            owners = np.repeat(shard.docs, shard.lengths)
            shards[file.sha256] = np.concatenate([[np.uint64(0)], owners])
    for segment in line_of(model, made.store):
        config = segment.manifest.config
        for edge in segment.manifest.inputs["manifests"]:
            manifest = PackingManifest.open(made.artifacts[edge["key"]].part("manifest").only())
            pieces = manifest.pieces
            for row in range(len(pieces)):
                step = int(pieces.sequence[row]) // config["sequences_per_step"] + 1
                if config["first_step"] < step <= config["last_step"]:
                    begin, length = int(pieces.offset[row]), int(pieces.length[row])
                    owners = shards[manifest.shards[int(pieces.shard[row])].digest]
                    for owner in owners[begin : begin + length]:
                        counts[int(owner)] = counts.get(int(owner), 0) + 1
    lengths = tokens_of(made)
    for document, length in lengths.items():
        found = {one.model.key: one for one in seen_by(made.store, document)}
        expected = counts.get(document, 0)
        if model.key in found:
            assert (found[model.key].trained, found[model.key].tokens) == (expected, length)
        else:
            assert expected == 0
    assert sum(counts.values()) > 10_000


def test_explain_names_the_models_by_what_runs_call_them(made):
    catalog = Catalog(made.store)
    lengths = tokens_of(made)
    seen = {document: {one.model.key: one for one in seen_by(made.store, document)} for document in lengths}
    last = made.models[-1].export
    document = next(one for one, by in seen.items() if last.key in by and by[last.key].times == 1)
    told = fate(catalog, document)
    line = next(line for line in told.splitlines() if last.key[:16] in line)
    assert "seen 1 ×" in line and "(20K; " in line and f"it has {lengths[document]:,} tokens" in line
    held_out = catalog.sql(
        "select f.path as file, a.path from files f join artifacts a using (key) where f.part = 'holdout'"
    )
    import pyarrow.parquet as pq

    path = made.store.root / held_out[0]["path"] / held_out[0]["file"]
    told = fate(catalog, pq.read_table(path)["id"][0].as_py())
    assert "held out for measuring" in told and "no model was trained on text that holds it" in told
    assert "no stage" in fate(catalog, 1) and "model" not in fate(catalog, 1)


def test_an_artifact_that_is_gone_is_said_to_be(made, tmp_path):
    import shutil

    from storage.atomic import make_writable
    from storage.store import Store

    shutil.copytree(made.store.root, tmp_path / "store", symlinks=True)
    store = Store(tmp_path / "store")
    victim = next(one for one in store.artifacts("ingest"))
    make_writable(victim.path)
    shutil.rmtree(victim.path)
    text = as_text(graph_of(store, find_artifact(store, made.models[-1].export.key)))
    assert "gone from the store: part documents sha256" in text and victim.key[:16] in text
