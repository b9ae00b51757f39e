"""Lineage as OpenLineage events (https://openlineage.io/spec/2-0-2): a completed run per artifact, files as datasets.

A run's id is derived from the stage key, so reading the same artifact twice gives the same run. A dataset is a part of
an artifact, named by its path in the store, or an external file, package or model. Its version is its digest.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from flows.lineage.graph import Edge, Graph, Outside, Registered
from storage.artifact import Artifact

JOBS = "onward"
_SPEC = "https://openlineage.io/spec"
_CORE = f"{_SPEC}/2-0-2/OpenLineage.json#/$defs"
_FACETS = {
    "version": "1-0-1/DatasetVersionDatasetFacet",
    "dataSource": "1-0-1/DatasourceDatasetFacet",
    "datasetType": "1-0-1/DatasetTypeDatasetFacet",
    "outputStatistics": "1-0-2/OutputStatisticsOutputDatasetFacet",
    "jobType": "2-0-4/JobTypeJobFacet",
    "processing_engine": "1-1-1/ProcessingEngineRunFacet",
}
"""Standard facets, with the version of each schema."""

Json = dict[str, Any]


def as_openlineage(graph: Graph) -> list[Json]:
    """RunEvents, each after the events of its inputs. The registration of a registered model comes last."""
    events = [_event(graph, artifact) for artifact in graph.nodes.values()]
    if graph.registered is not None:
        events.append(_registration(graph, graph.registered))
    return events


def _event(graph: Graph, artifact: Artifact) -> Json:
    made = graph.made_of(artifact.key)
    inputs = [_part(graph.nodes[edge.source], edge.part) for edge in _each_once(made)]
    inputs += [_from_outside(one) for one in dict.fromkeys(graph.outside[artifact.key])]
    outputs = [
        _part(artifact, name) | {"outputFacets": {"outputStatistics": _statistics(artifact, name)}}
        for name in sorted(artifact.manifest.parts)
    ]
    known = artifact.manifest.provenance
    stage = {
        "stage": artifact.stage,
        "key": artifact.key,
        "version": artifact.manifest.version,
        "config": artifact.manifest.config,
        "code": known.get("code"),
        "git": known.get("git"),
        "started": known.get("started"),
    }
    return _run_event(
        str(known.get("ended") or _moment(0)),
        f"{artifact.stage}/{artifact.key}",
        artifact.stage,
        {
            "onward_stage": _facet({n: v for n, v in stage.items() if v is not None}, f"{_CORE}/RunFacet"),
            "processing_engine": _standard("processing_engine", name="Onward", version=_version()),
        },
        "STAGE",
        inputs,
        outputs,
    )


def _registration(graph: Graph, registered: Registered) -> Json:
    digest = graph.target.part("export").digest if graph.target.has("export") else graph.target.key
    name = f"{registered.name}/{registered.version}"
    output = {
        "namespace": f"mlflow:{registered.uri}",
        "name": name,
        "facets": {
            "version": _standard("version", datasetVersion=digest),
            "datasetType": _standard("datasetType", datasetType="MODEL"),
        },
        "outputFacets": {},
    }
    return _run_event(
        _moment(registered.created),
        f"register/{registered.uri}/{name}",
        "register",
        {"processing_engine": _standard("processing_engine", name="Onward", version=_version())},
        "REGISTRATION",
        [_part(graph.target, "export")] if graph.target.has("export") else [],
        [output],
    )


def _run_event(
    time: str, identity: str, job: str, run: Json, kind: str, inputs: list[Json], outputs: list[Json]
) -> Json:
    job_type = _standard("jobType", processingType="BATCH", integration="ONWARD", jobType=kind)
    return {
        "eventType": "COMPLETE",
        "eventTime": time,
        "run": {"runId": str(uuid.uuid5(uuid.NAMESPACE_URL, f"onward:{identity}")), "facets": run},
        "job": {"namespace": JOBS, "name": job, "facets": {"jobType": job_type}},
        "inputs": [one | {"inputFacets": {}} for one in inputs],
        "outputs": outputs,
        "producer": _producer(),
        "schemaURL": f"{_CORE}/RunEvent",
    }


def _each_once(edges: Iterable[Edge]) -> list[Edge]:
    return list({(edge.source, edge.part): edge for edge in edges}.values())


def _part(artifact: Artifact, name: str) -> Json:
    """A part of an artifact, as a directory of the store. OpenLineage names local files in this way."""
    part = artifact.manifest.parts[name]
    place = f"{artifact.path}/{name}"
    files = [{"path": file.path, "bytes": file.bytes, "sha256": file.sha256} for file in part.files]
    return {
        "namespace": "file",
        "name": place,
        "facets": {
            "version": _standard("version", datasetVersion=part.digest),
            "dataSource": _standard(
                "dataSource", name=f"{artifact.stage}/{artifact.key[:16]}", uri=f"file://{place}"
            ),
            "datasetType": _standard("datasetType", datasetType="MODEL" if name == "export" else "FILE"),
            "onward_files": _facet({"files": files}, f"{_CORE}/DatasetFacet"),
        },
    }


def _statistics(artifact: Artifact, name: str) -> Json:
    files = artifact.manifest.parts[name].files
    rows = [file.rows for file in files if file.rows is not None]
    counts = {"size": sum(file.bytes for file in files), "fileCount": len(files)}
    return _standard("outputStatistics", **counts, **({"rowCount": sum(rows)} if rows else {}))


def _from_outside(one: Outside) -> Json:
    """A source file, named by its source and file name. A manifest holds no path of the machine that read the file."""
    hub = one.facts.get("hub")
    if hub:
        namespace, name = "https://huggingface.co", f"datasets/{hub['dataset']}@{hub['commit']}/{one.name}"
    elif one.kind == "package":
        namespace, name = "pypi", one.name
    elif one.kind == "model" and one.group == "hub":
        namespace, name = "https://huggingface.co", one.name
    else:
        namespace, name = f"onward:{one.kind}/{one.group}", one.name
    content: Json = {one.scheme: one.digest, "kind": one.kind, "of": one.group}
    content |= {"bytes": one.bytes} if one.bytes is not None else {}
    kind = "MODEL" if one.kind in ("model", "classifier") else "FILE"
    return {
        "namespace": namespace,
        "name": name,
        "facets": {
            "version": _standard("version", datasetVersion=one.digest),
            "dataSource": _standard("dataSource", name=one.group, uri=f"{namespace}/{name}"),
            "datasetType": _standard("datasetType", datasetType=kind),
            "onward_content": _facet(content, f"{_CORE}/DatasetFacet"),
        },
    }


def _standard(facet: str, **fields: Any) -> Json:
    version_name = _FACETS[facet]
    name = version_name.partition("/")[2]
    return _facet(fields, f"{_SPEC}/facets/{version_name}.json#/$defs/{name}")


def _facet(fields: Mapping[str, Any], schema: str) -> Json:
    return {"_producer": _producer(), "_schemaURL": schema, **fields}


def _producer() -> str:
    return f"urn:onward:{_version()}"


def _version() -> str:
    try:
        return metadata.version("onward")
    except metadata.PackageNotFoundError:
        return "0"


def _moment(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")
