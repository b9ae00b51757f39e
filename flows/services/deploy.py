"""Work pools, deployments, the nightly check and automations. They are created once; renewing them keeps a user's changes.

    pretrain/<name>        the whole run, one for each configuration file
    pretrain/corpus-only   reading and cleaning alone, of the first real configuration
    pretrain/nightly-demo  the demo, made again each night and compared, to check that this machine is sound
    evaluate/model         a given model on the benchmarks
    tune/trials            short trials of the first real configuration, compared

Changes in the UI stay: schedules and descriptions always, parameters unless their configuration file has changed since.
The deployment's version holds the file and its digest (`<code>+<file>@<digest>`), so a deployment does not depend on which
other files are deployed with it. Usage: `python -m flows.services.deploy [CONFIG…]`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolCreate
from prefect.client.schemas.filters import DeploymentFilter, FlowRunFilter
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from prefect.workers.process import ProcessWorker

from flows.entrypoints import pretrain
from flows.machine.servers import credentials_for
from flows.services.automations import install
from flows.services.deployments import NIGHT_QUEUE, NIGHTLY, OF_A_HOME, Wanted, read, wanted
from flows.ui.form import form_schema
from storage.code import ROOT
from storage.errors import OnwardError
from storage.paths import home as project_directory
from storage.provenance import git_commit

_MISSED = timedelta(hours=1)
_POOLS: dict[str, tuple[str, int | None]] = {
    "cpu": ("Runs that need no GPU; each is a process on a worker's machine.", None),
    "gpu": (
        "Runs that use a GPU: one at a time. Another waits, as Late, until that one has ended.",
        1,
    ),
}


def deploy(
    home: Path, configs: Sequence[Path], say: Callable[[str], object] = lambda line: None
) -> list[str]:
    """Create or renew everything. Returns a line for each deployment and automation that says what was done.

    `say` is called for configurations that are skipped. Raises OnwardError if Prefect does not answer.
    """
    with get_client(sync_client=True) as client:
        if (error := client.api_healthcheck()) is not None:
            raise OnwardError(
                f"Prefect at {client.api_url} does not answer ({error}); start it (onward up), or set PREFECT_API_URL"
            )
        _make_pools(client)
        given = list(read(configs, home, say, lambda name: _source(client, name)))
        known = {title: _known(client, title) for title in OF_A_HOME}
        sources = {title: _origin(one)[0] for title, one in known.items() if one is not None}
        done = [_apply(client, one, home) for one in wanted(home, given, say, sources)]
        _drop_missed_nights(client)
        return [*done, *install(client)]


def _make_pools(client: SyncPrefectClient) -> None:
    """Create missing pools and the nightly queue. A changed limit stays."""
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
        client.read_work_queue_by_name(NIGHT_QUEUE, work_pool_name="cpu")
    except ObjectNotFound:
        client.create_work_queue(
            NIGHT_QUEUE, description="One check at a time.", concurrency_limit=1, work_pool_name="cpu"
        )


def _apply(client: SyncPrefectClient, one: Wanted, home: Path) -> str:
    known = _known(client, one.title)
    if known is None:
        _create(client, one, home)
        return f"{one.title} (made)"
    done = _renew(client, known, one, home)
    if known.work_pool_name != one.pool:
        done += f"; it stays in the pool {known.work_pool_name}, where {one.pool} is meant: Edit it, or delete it first"
    return f"{one.title} ({done})"


def _known(client: SyncPrefectClient, title: str) -> DeploymentResponse | None:
    with contextlib.suppress(ObjectNotFound):
        return client.read_deployment_by_name(title)
    return None


def _source(client: SyncPrefectClient, name: str) -> str | None:
    """The file from which the deployment of a configuration's name was made."""
    known = _known(client, f"{pretrain.name}/{name}")
    return None if known is None else _origin(known)[0] or None


def _create(client: SyncPrefectClient, one: Wanted, home: Path) -> None:
    client.create_deployment(
        flow_id=client.create_flow_from_name(one.flow.name),
        name=one.name,
        version=_version(one),
        description=one.description,
        parameters=one.parameters,
        parameter_openapi_schema=form_schema(one.flow),
        enforce_parameter_schema=True,
        tags=list(one.tags),
        schedules=one.schedules,
        entrypoint=_entrypoint(one.flow),
        work_pool_name=one.pool,
        work_queue_name=one.queue,
        job_variables={"working_dir": str(home)},
        pull_steps=_at(home),
    )


def _renew(client: SyncPrefectClient, known: DeploymentResponse, one: Wanted, home: Path) -> str:
    """Renew a deployment: always its code and form; its parameters if their file changed or they no longer fit the form."""
    changed = _origin(known)[1] != one.digest
    update: dict[str, Any] = {
        "version": _version(one),
        "entrypoint": _entrypoint(one.flow),
        "parameter_openapi_schema": form_schema(one.flow),
        "job_variables": {**known.job_variables, "working_dir": str(home)},
        "pull_steps": _at(home),
    }
    fresh = {"parameters": one.parameters}
    try:
        client.update_deployment(known.id, DeploymentUpdate(**update, **(fresh if changed else {})))
    except PrefectHTTPStatusError as error:
        if changed or error.response.status_code != 409:
            raise
        client.update_deployment(known.id, DeploymentUpdate(**update, **fresh))
        return f"its parameters no longer fitted and are as in the file again: {_detail(error)}"
    return "parameters renewed: its file has changed" if changed else "kept"


def _at(home: Path) -> list[dict[str, Any]]:
    """Run in the project directory. Without a step of its own, Prefect would copy the worker's directory there."""
    return [{"prefect.deployments.steps.set_working_directory": {"directory": str(home)}}]


def _detail(error: PrefectHTTPStatusError) -> str:
    try:
        return str(error.response.json()["detail"])
    except (ValueError, KeyError):
        return error.response.text


def _version(one: Wanted) -> str:
    code = git_commit() or hashlib.sha256((ROOT / "stages.lock").read_bytes()).hexdigest()
    return f"{code[:12]}+{one.source}@{one.digest}"


def _origin(known: DeploymentResponse) -> tuple[str, str]:
    """(file that a deployment's parameters came from, its digest), read from the deployment's version."""
    source, _, digest = (known.version or "").partition("+")[2].rpartition("@")
    return source, digest


def _entrypoint(flow: Flow[..., Any]) -> str:
    return f"{flow.fn.__module__}.{flow.fn.__name__}"


def _drop_missed_nights(client: SyncPrefectClient) -> None:
    """Delete missed nightly runs, for instance after a week without power. The next night is enough."""
    before = datetime.now(UTC) - _MISSED
    missed = client.read_flow_runs(
        deployment_filter=DeploymentFilter(name={"any_": [NIGHTLY]}),
        flow_run_filter=FlowRunFilter(
            state={"type": {"any_": ["SCHEDULED"]}}, expected_start_time={"before_": before}
        ),
        limit=200,
    )
    for run in missed:
        if run.auto_scheduled and run.run_count == 0 and run.state_name in ("Scheduled", "Late"):
            client.delete_flow_run(run.id)  # a run that somebody retries, or that `down` put back, stays


def main() -> None:
    """Deploy the given configurations, or all of `configs/`. Prints a line for each deployment."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="*", type=Path, help="configuration files; default: configs/*.yaml")
    home = project_directory()
    configs = parser.parse_args().configs or sorted((home / "configs").glob("*.y*ml"))
    known = credentials_for(PREFECT_API_URL.value())  # started by hand, against this home's server
    try:
        with temporary_settings({PREFECT_API_AUTH_STRING: known} if known else {}):
            done = deploy(home, configs, lambda line: sys.stderr.write(f"{line}\n"))
    except OnwardError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(1)
    sys.stdout.write("".join(f"{line}\n" for line in done))


if __name__ == "__main__":
    main()
