"""The inputs of earlier runs' reports. The run record names the report, and the report's manifest names its inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from storage.artifact import Artifact
from storage.errors import ConfigError, OnwardError
from storage.runs import RunRecord, damaged_records, read_records, record_name
from storage.store import Request, Store
from tasks.pages.data import data
from tasks.pages.plain import read_as
from tasks.pages.report import report
from tasks.pages.report.inputs import ReportConfig, ReportInputs

_REFERENCE = {"stage", "key", "part", "digest"}


def record_of(store: Store, name: str) -> RunRecord:
    """The record of a run, by its full name (`edu-125m-3f9a2c`), a beginning of it, or the digest alone.

    Raises ConfigError, with a list of the runs, if no run or more than one matches, and OnwardError if its record is
    damaged.
    """
    records = list(read_records(store))
    found = [record for record in records if record.run == name]
    found = found or [
        one for one in records if one.run.startswith(name) or one.run.rpartition("-")[2] == name
    ]
    if len(found) == 1:
        return found[0]
    for path in () if found else damaged_records(store):
        run = record_name(path)
        if run.startswith(name) or run.rpartition("-")[2] == name:
            raise OnwardError(
                f"the run record {path} cannot be read: run its configuration again, which finds all that is made "
                "and writes the record anew"
            )
    known = ", ".join(record.run for record in found or records) or "none"
    problem = "means several runs" if found else "is no run"
    raise ConfigError(f"{name!r} {problem} in {store.root} (there are: {known})")


def report_of(store: Store, record: RunRecord) -> Artifact:
    """The newest report of a run. Raises OnwardError if it has none (yet)."""
    found = [
        artifact
        for stage, key in record.artifacts
        if stage == report.STAGE and (artifact := store.look(stage, key, fully=True)) is not None
    ]
    if not found:
        raise OnwardError(
            f"the run {record.run} has no report in {store.root} (its state: {record.state}); run it to its end first"
        )
    return max(found, key=lambda artifact: str(artifact.manifest.provenance.get("ended", "")))


def inputs_of(store: Store, page: Artifact) -> tuple[ReportConfig, ReportInputs]:
    """Configuration and inputs of a report, as its stage got them. Raises OnwardError if one of them no longer exists."""
    known = {field.name for field in dataclasses.fields(ReportInputs)}
    found = {name: _resolved(store, value) for name, value in page.manifest.inputs.items() if name in known}
    return ReportConfig.model_validate(page.manifest.config), read_as(ReportInputs, found)


def request_of(store: Store, page: Artifact) -> Request:
    """The request that makes a report or data page again with the current code. Raises OnwardError like `inputs_of`."""
    if page.stage == report.STAGE:
        return Request(report, *inputs_of(store, page))
    config = data.DataConfig.model_validate(page.manifest.config)
    return Request(data, config, read_as(data.DataInputs, _resolved(store, page.manifest.inputs)))


def _resolved(store: Store, value: Any) -> Any:
    if isinstance(value, Mapping):
        if value.keys() >= _REFERENCE:
            return _part(store, value)
        return {name: _resolved(store, item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_resolved(store, item) for item in value)
    return value


def _part(store: Store, reference: Mapping[str, Any]) -> Any:
    artifact = store.look(reference["stage"], reference["key"], fully=True)
    if artifact is None or not artifact.has(reference["part"]):
        raise OnwardError(
            f"{reference['stage']}/{reference['key'][:16]}, which a report was made of, is gone from {store.root}; "
            "run it again"
        )
    return artifact.part(reference["part"])
