"""Work pools, deployments, the nightly check and automations: made once, renewed without undoing a person's work.

    pretrain/<name>        the whole run, one for each configuration file
    pretrain/corpus-only   reading and cleaning alone, of the first real configuration
    pretrain/nightly-demo  the demo, everything made again each night and compared: is this machine still sound
    evaluate/model         a given model on the benchmarks

What was changed in the UI stays: schedules always, parameters unless the configuration file they came from has changed
since. Its digest is in the deployment's version (`<code>+<configuration>`). `python -m flows.deploy [CONFIG…]` does it.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal
from zoneinfo import ZoneInfo

from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate, WorkPoolCreate
from prefect.client.schemas.filters import DeploymentFilter, FlowRunFilter
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.workers.process import ProcessWorker

from flows.automations import install
from flows.config import RunConfig, load_config
from flows.entrypoints import evaluate, pretrain
from flows.environment import gpus
from flows.form import form_schema, form_values
from flows.places import home as project_directory
from storage.code import ROOT
from storage.errors import ConfigError, OnwardError
from storage.provenance import git_commit

Pool = Literal["cpu", "gpu"]

NIGHTLY = "nightly-demo"
_NIGHT = "0 3 * * *"
_NIGHT_QUEUE = "nightly"
_MISSED = timedelta(hours=1)
_POOLS: dict[Pool, tuple[str, int | None]] = {
    "cpu": ("Runs that need no GPU; each is a process on a worker's machine.", None),
    "gpu": (
        "Runs that use a GPU: one at a time. Another waits, as Late, until that one has ended.",
        1,
    ),
}


@dataclass(frozen=True)
class Wanted:
    """A deployment as this code and a configuration file want it."""

    flow: Flow[..., Any]
    name: str
    description: str
    parameters: dict[str, Any]
    digest: str
    """Of the file that the parameters come from."""
    pool: str
    tags: tuple[str, ...]
    queue: str | None = None
    schedules: list[DeploymentScheduleCreate] = field(default_factory=list)

    @property
    def title(self) -> str:
        """`pretrain/demo`."""
        return f"{self.flow.name}/{self.name}"


@dataclass(frozen=True)
class _Given:
    """A configuration file that was read."""

    run: RunConfig
    path: Path
    digest: str
    about: str


def deploy(
    home: Path, configs: Sequence[Path], say: Callable[[str], object] = lambda line: None
) -> list[str]:
    """Make or renew everything; a line for each deployment and automation, with what was done.

    `say` is told of configurations that are passed over. Raises OnwardError where Prefect does not answer.
    """
    given = list(_read(configs, say))
    with get_client(sync_client=True) as client:
        if (error := client.api_healthcheck()) is not None:
            raise OnwardError(
                f"Prefect at {client.api_url} does not answer ({error}); start it (onward up), or set PREFECT_API_URL"
            )
        _make_pools(client)
        done = [_apply(client, wanted, home) for wanted in _wanted(home, given, say)]
        _drop_missed_nights(client)
        return [*done, *install(client)]


# ---- what is wanted -----------------------------------------------------------------------------------------------


def _read(configs: Sequence[Path], say: Callable[[str], object]) -> Iterator[_Given]:
    names: set[str] = set()
    for path in configs:
        try:
            run = load_config(path)
        except ConfigError as error:
            say(f"passed over: {error}")
            continue
        if run.name in names or run.name in ("corpus-only", NIGHTLY):
            say(f"passed over: {path}: another deployment has the name {run.name} already")
            continue
        names.add(run.name)
        yield _given(run, path)


def _given(run: RunConfig, path: Path) -> _Given:
    text = path.read_text()
    lines = text.splitlines()
    head = [line.removeprefix("#").strip() for line in lines[: next(_code(lines), 0)]]
    return _Given(run, path, hashlib.sha256(text.encode()).hexdigest()[:12], " ".join(head).strip())


def _code(lines: Sequence[str]) -> Iterator[int]:
    return (at for at, line in enumerate(lines) if not line.startswith("#"))


def _wanted(home: Path, given: Sequence[_Given], say: Callable[[str], object]) -> Iterator[Wanted]:
    schema = form_schema(pretrain)

    def of(run: RunConfig, **options: Any) -> dict[str, Any]:
        return form_values({"config": _plain(run, home), **options}, schema)

    for one in given:
        about = f"{one.about}\n\nFrom {one.path.name}: the whole run, from text to report.".strip()
        yield Wanted(pretrain, one.run.name, about, of(one.run), one.digest, pool(), ("onward", "training"))
    real = next((one for one in given if one.run.name != "demo"), next(iter(given), None))
    if real is not None:
        about = (
            f"From {real.path.name}: reads, cleans and tokenizes all text, and trains nothing. A whole run of the "
            "same configuration finds what this made."
        )
        parameters = of(real.run, until="tokenize")
        yield Wanted(pretrain, "corpus-only", about, parameters, real.digest, "cpu", ("onward", "corpus"))
    yield _evaluation(home, real)
    night = _nightly(home, given, of)
    if night is None:
        say(f"passed over: pretrain/{NIGHTLY}: there is no configuration demo")
    else:
        yield night


def _evaluation(home: Path, real: _Given | None) -> Wanted:
    parameters: dict[str, Any] = {"store": str(home / "store")}
    digest = "none"
    if real is not None:
        run = _plain(real.run, home)
        digest = real.digest
        parameters = {
            "store": run["store"],
            "benchmark_files": run["benchmark_files"],
            "benchmarks": run["evaluation"],
            "sequence_length": run["packing"]["sequence_length"],
            "seed": run["seed"],
        }
    about = (
        "A given model on the benchmarks: one of the store (the beginning of its key), a local directory, or one of "
        "the hub; with the name of a run, on that run's held-out text too. What was measured before is found."
    )
    values = form_values(parameters, form_schema(evaluate))
    return Wanted(evaluate, "model", about, values, digest, pool(), ("onward", "evaluation"))


def _nightly(home: Path, given: Sequence[_Given], of: Callable[..., dict[str, Any]]) -> Wanted | None:
    shipped = ROOT / "configs" / "demo.yaml"
    demo = next((one for one in given if one.run.name == "demo"), None)
    if demo is None and not shipped.is_file():
        return None
    demo = demo or _given(load_config(shipped), shipped)
    run = demo.run.model_copy(update={"name": NIGHTLY, "store": f"stores/{NIGHTLY}"})
    zone = timezone()
    about = (
        f"Is this machine still sound: each night at 03:00 ({zone}) the demo, every stage made again in a store of its "
        "own and compared with what it gave before. It fails where a byte differs, and names the stage."
    )
    night = DeploymentScheduleCreate(schedule=CronSchedule(cron=_NIGHT, timezone=zone), active=True)
    parameters = of(run, force=["all"])
    tags = ("onward", "health")
    return Wanted(pretrain, NIGHTLY, about, parameters, demo.digest, "cpu", tags, _NIGHT_QUEUE, [night])


def pool() -> str:
    """The work pool of runs that train: `ONWARD_POOL`, else `gpu` where this machine has an NVIDIA GPU, else `cpu`."""
    return os.environ.get("ONWARD_POOL") or ("gpu" if gpus() else "cpu")


def timezone() -> str:
    """The machine's time zone by its IANA name (`TZ`, or where /etc/localtime points), or UTC."""
    localtime = Path("/etc/localtime")
    linked = str(localtime.resolve()).partition("zoneinfo/")[2] if localtime.exists() else ""
    for name in (os.environ.get("TZ", "").removeprefix(":"), linked):
        try:
            if name and ZoneInfo(name):
                return name
        except (ValueError, OSError):  # no such zone
            continue
    return "UTC"


def _plain(run: RunConfig, home: Path) -> dict[str, Any]:
    """The configuration as plain JSON with absolute paths: a worker may be started anywhere."""
    raw: dict[str, Any] = run.model_dump(mode="json")
    raw["store"] = str(home / run.store)
    if run.benchmark_files is not None:
        raw["benchmark_files"] = str(home / run.benchmark_files)
    for source in raw["corpus"]["sources"]:
        if source["files"] is not None:
            source["files"] = [str(home / pattern) for pattern in source["files"]]
    for own in raw["evaluation"]["own"]:
        if own["file"] is not None:
            own["file"] = str(home / own["file"])
    if isinstance(run.model.base, str) and (home / run.model.base).is_dir():
        raw["model"]["base"] = str(home / run.model.base)
    return raw


# ---- making it so -------------------------------------------------------------------------------------------------


def _make_pools(client: SyncPrefectClient) -> None:
    """Pools and the nightly queue, where they are not there; a limit that was changed stays."""
    for name, (about, limit) in _POOLS.items():
        try:
            client.read_work_pool(name)
        except ObjectNotFound:
            template = ProcessWorker.get_default_base_job_template()
            client.create_work_pool(
                WorkPoolCreate(
                    name=name,
                    type="process",
                    description=about,
                    concurrency_limit=limit,
                    base_job_template=template,
                )
            )
    try:
        client.read_work_queue_by_name(_NIGHT_QUEUE, work_pool_name="cpu")
    except ObjectNotFound:
        client.create_work_queue(
            _NIGHT_QUEUE, description="One check at a time.", concurrency_limit=1, work_pool_name="cpu"
        )


def _apply(client: SyncPrefectClient, wanted: Wanted, home: Path) -> str:
    try:
        known = client.read_deployment_by_name(wanted.title)
    except ObjectNotFound:
        _create(client, wanted, home)
        return f"{wanted.title} (made)"
    return f"{wanted.title} ({_renew(client, known, wanted, home)})"


def _create(client: SyncPrefectClient, wanted: Wanted, home: Path) -> None:
    client.create_deployment(
        flow_id=client.create_flow_from_name(wanted.flow.name),
        name=wanted.name,
        version=_version(wanted),
        description=wanted.description,
        parameters=wanted.parameters,
        parameter_openapi_schema=form_schema(wanted.flow),
        enforce_parameter_schema=True,
        tags=list(wanted.tags),
        schedules=wanted.schedules,
        entrypoint=_entrypoint(wanted.flow),
        work_pool_name=wanted.pool,
        work_queue_name=wanted.queue,
        job_variables={"working_dir": str(home)},
        pull_steps=_at(home),
    )


def _renew(client: SyncPrefectClient, known: DeploymentResponse, wanted: Wanted, home: Path) -> str:
    """Code and form always; parameters where their file changed, or where they no longer fit the form. Never schedules."""
    changed = (known.version or "").rpartition("+")[2] != wanted.digest
    update: dict[str, Any] = {
        "version": _version(wanted),
        "entrypoint": _entrypoint(wanted.flow),
        "parameter_openapi_schema": form_schema(wanted.flow),
        "job_variables": {**known.job_variables, "working_dir": str(home)},
        "pull_steps": _at(home),
    }
    fresh = {"parameters": wanted.parameters, "description": wanted.description}
    try:
        client.update_deployment(known.id, DeploymentUpdate(**update, **(fresh if changed else {})))
    except PrefectHTTPStatusError as error:
        if changed or error.response.status_code != 409:
            raise
        client.update_deployment(known.id, DeploymentUpdate(**update, **fresh))
        return f"its parameters no longer fitted and are as in the file again: {_detail(error)}"
    return "parameters renewed: its file has changed" if changed else "kept"


def _at(home: Path) -> list[dict[str, Any]]:
    """Runs start in the project directory. Without a step of its own, Prefect copies the worker's directory there."""
    return [{"prefect.deployments.steps.set_working_directory": {"directory": str(home)}}]


def _detail(error: PrefectHTTPStatusError) -> str:
    try:
        return str(error.response.json()["detail"])
    except (ValueError, KeyError):
        return error.response.text


def _version(wanted: Wanted) -> str:
    code = git_commit() or hashlib.sha256((ROOT / "stages.lock").read_bytes()).hexdigest()
    return f"{code[:12]}+{wanted.digest}"


def _entrypoint(flow: Flow[..., Any]) -> str:
    return f"{flow.fn.__module__}.{flow.fn.__name__}"


def _drop_missed_nights(client: SyncPrefectClient) -> None:
    """Of a machine that was off for a week, one night is enough: the next."""
    before = datetime.now(UTC) - _MISSED
    missed = client.read_flow_runs(
        deployment_filter=DeploymentFilter(name={"any_": [NIGHTLY]}),
        flow_run_filter=FlowRunFilter(
            state={"type": {"any_": ["SCHEDULED"]}}, expected_start_time={"before_": before}
        ),
        limit=200,
    )
    for run in missed:
        if run.auto_scheduled:
            client.delete_flow_run(run.id)


def main() -> None:
    """Deploy the given configurations, or all of `configs/`; a line on standard output for each deployment."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="*", type=Path, help="configuration files; default: configs/*.yaml")
    home = project_directory()
    configs = parser.parse_args().configs or sorted((home / "configs").glob("*.y*ml"))
    try:
        done = deploy(home, configs, lambda line: sys.stderr.write(f"{line}\n"))
    except OnwardError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(1)
    sys.stdout.write("".join(f"{line}\n" for line in done))


if __name__ == "__main__":
    main()
