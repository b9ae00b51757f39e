"""What of a whole small run must stand in MLflow, once."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from flows.tracking.champion import standing_of
from tests.support.made import NAMES, REGISTERED, Made


def client_of(address: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(address)


def runs_of(client: Any, experiment: str = "small") -> tuple[dict[str, Any], list[Any]]:
    """(children by stage key, parents) of an experiment; fails where a stage has two."""
    known = client.get_experiment_by_name(experiment)
    runs = client.search_runs([known.experiment_id], max_results=1000)
    keys = Counter(run.data.tags["stage_key"] for run in runs if "stage_key" in run.data.tags)
    assert set(keys.values()) <= {1}
    children = {run.data.tags["stage_key"]: run for run in runs if "stage_key" in run.data.tags}
    return children, [run for run in runs if "stage_key" not in run.data.tags]


def histories(client: Any, run: Any) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of each metric, as they were written; fails where a step is there twice or goes back."""
    found = {}
    for name in run.data.metrics:
        points = sorted(client.get_metric_history(run.info.run_id, name), key=lambda p: (p.timestamp, p.step))
        steps = [point.step for point in points]
        assert steps == sorted(set(steps)), f"{run.info.run_name}: {name} has the steps {steps}"
        found[name] = [(point.step, point.value) for point in points]
    return found


def check_whole(made: Made, address: str, experiment: str = "small") -> dict[str, Any]:
    """Everything of the run is in MLflow, once; returns what a second look must find again."""
    client = client_of(address)
    children, parents = runs_of(client, experiment)
    assert set(children) == set(made.artifacts)
    assert {run.info.status for run in children.values()} == {"FINISHED"}
    numbers: dict[str, Any] = {key: histories(client, run) for key, run in children.items()}
    for model in made.models:
        for journal in model.journals:
            rows = journal_of(journal)
            assert [step for step, _ in numbers[journal.key]["train/loss"]] == [row["tokens"] for row in rows]
            assert [v for _, v in numbers[journal.key]["train/loss"]] == [row["loss"] for row in rows]
            assert len(numbers[journal.key]["train/tokens_per_second"]) == len(rows)
        line = [row["tokens"] for journal in model.journals for row in journal_of(journal)]
        if line:
            assert [step for step, _ in numbers[model.export.key]["line/loss"]] == line == sorted(set(line))
    numbers["registered"] = check_models(made, client, experiment)
    assert parents
    return numbers


def journal_of(artifact: Any) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.read_table(artifact.part("journal").only()).to_pylist()
    return rows


def check_models(made: Made, client: Any, experiment: str) -> dict[str, Any]:
    known = client.get_experiment_by_name(experiment)
    logged = {one.tags["stage_key"]: one for one in client.search_logged_models([known.experiment_id])}
    assert len(logged) == len(client.search_logged_models([known.experiment_id])) == len(NAMES)
    registered = f"{REGISTERED}-{experiment}"
    versions = list(client.search_model_versions(f"name = '{registered}'"))
    assert Counter(one.tags["stage_key"] for one in versions) == Counter(m.export.key for m in made.models)
    aliases = dict(client.get_registered_model(registered).aliases)
    assert set(aliases) == {"base", "tokens-8k", "tokens-20k", "champion"}
    children, _ = runs_of(client, experiment)
    base = made.models[0]
    for model, alias in zip(made.models, ("base", "tokens-8k", "tokens-20k"), strict=True):
        key, digest = model.export.key, model.export.part("export").digest
        version = client.get_model_version_by_alias(registered, alias)
        assert (version.tags["stage_key"], version.tags["digest"]) == (key, digest)
        assert version.run_id == children[key].info.run_id
        assert logged[key].status == "READY"
        tied = {(one.key, one.dataset_name, one.step): one.value for one in logged[key].metrics}
        assert len(tied) == len(logged[key].metrics)
        for source, score in model.perplexity.items():
            name = (f"perplexity/{source}", f"holdout/{source}", model.tokens)
            assert tied[name] == pytest.approx(score.stats["perplexity"])
        for benchmark, score in model.scores.items():
            name = (f"eval/{benchmark}/acc", f"benchmark/{benchmark}", model.tokens)
            assert tied[name] == pytest.approx(score.stats["metrics"]["acc"])
        place = standing_of(version.tags)
        assert place is not None
        assert (place.general, place.verdict) == verdict_of(made, model.name)
        reason = version.tags["champion"]
        assert reason.startswith("champion: " if aliases["champion"] == version.version else "no champion: ")
        assert version.description.endswith(f"{reason}.") and version.description.count("Champion?") == 1
        assert (
            f"perplexity general | {base.perplexity['general'].stats['perplexity']:.2f} |"
            in version.description
        )
        assert "| continuation acc" in version.description, version.description
        told = f"In general against its base: {place.verdict}." in version.description
        assert told == (model is not base), version.description
        shown = {
            "stage",
            "stage_key",
            "digest",
            "tokens",
            "store",
            "model_id",
            "source_run",
            "standing",
            "loads",
            "champion",
        }
        assert set(version.tags) == shown
    return {"versions": sorted((int(v.version), v.tags["stage_key"]) for v in versions), "aliases": aliases}


def verdict_of(made: Made, name: str) -> tuple[float, str]:
    """What the report says of a model's perplexity on replay text against the base: the loss as a negative number."""
    report = json.loads((made.report.path / "report.json").read_text())
    (row,) = [row for row in report["perplexity"] if row["source"] == "general"]
    for change in row["changes"]:
        if (change["from"], change["to"]) == ("base", name):
            return -change["value"], change["verdict"]
    return 0.0, "no clear change"
