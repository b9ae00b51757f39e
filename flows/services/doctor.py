"""`onward doctor`: checks the setup and says what to do about each problem.

Each check looks at one thing and returns a Finding. No check raises, and each removes what it creates. `ok` means as it
should be, `note` means it works but should be known, `bad` means a run will stop. Only a child process imports torch,
and only if there is a GPU.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from flows.machine.clock import younger
from flows.machine.environment import gpus
from flows.machine.servers import basic, credentials_for
from flows.services.record import HomeRecord, read_record, workers_online
from flows.services.rest import Api, ApiError
from storage.errors import ConfigError
from storage.lock import Lock
from storage.paths import home, mlflow_database, state_directory
from storage.secrets import without_secrets

_ROOT = Path(__file__).resolve().parents[2]
_MARKS = {"ok": "✓", "note": "!", "bad": "✗"}
_STORE_BYTES = 4_000_000_000
_STATE_BYTES = 1_000_000_000
_SLICE_FACTOR = 12
"""Bytes that a run keeps for each byte of a slice: documents of five stages, tokens, and room for checkpoints."""


@dataclass(frozen=True)
class Finding:
    """The result of a check. `do` is the command or action that helps; empty if all is well."""

    name: str
    state: Literal["ok", "note", "bad"]
    what: str
    do: str = ""


def examine(config: Path | None = None, constraints: Path | None = None) -> Iterator[Finding]:
    """Yields all findings, one after the other. `config` adds checks for its run."""
    run, found = _load(config)
    if found is not None:
        yield found
        if run is not None and found.state == "ok":
            yield from intentions(run)
    record = read_record()
    yield python()
    yield packages(constraints or _constraints())
    yield from store(
        run.store_path if run else home() / "store", run.corpus.slice_bytes if run else None, given=bool(run)
    )
    yield space(state_directory(), ".onward", _STATE_BYTES)
    yield gpu()
    address = os.environ.get("PREFECT_API_URL") or (f"{record.prefect}/api" if record else None)
    api = Api(address, seconds=5) if address else None
    yield from prefect(api, record)
    yield clock(api)
    yield mlflow(run, record)


def render(finding: Finding) -> str:
    """One line, or two if there is something to do. Passwords are removed."""
    line = without_secrets(f"{_MARKS[finding.state]} {finding.name:<12} {finding.what}")
    return f"{line}\n  {'':<12} → {without_secrets(finding.do)}\n" if finding.do else f"{line}\n"


def _load(config: Path | None) -> tuple[Any, Finding | None]:
    """(the run, the finding about its file)."""
    if config is None:
        return None, None
    from flows.config import load_config
    from flows.runs.checks import check

    run = None
    try:
        run = load_config(config)
        check(run)
    except ConfigError as error:
        act = f"correct {config}" if run is None else "put the file there, or correct its path or name"
        return run, Finding("config", "bad", str(error).strip(), act)
    names = (*run.evaluation.domain, *run.evaluation.general)
    files = f", files of {len(names)} benchmarks found" if names and run.benchmark_directory else ""
    return run, Finding("config", "ok", f"{config} is sound{files}")


def intentions(run: Any) -> Iterator[Finding]:
    """What the configuration allows but probably does not intend."""
    from flows.runs.checks import advice

    for line in advice(run):
        what, _, act = line.rpartition("; ")
        yield Finding("config", "note", what, act)


def python() -> Finding:
    """Python's version."""
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", "ok", f"{version} ({sys.executable})")


def _constraints() -> Path | None:
    for directory in (home(), _ROOT):
        if (directory / "constraints.txt").is_file():
            return directory / "constraints.txt"
    return None


def packages(constraints: Path | None) -> Finding:
    """Installed versions against constraints.txt. Direct dependencies of Onward must be as pinned."""
    name = "packages"
    if constraints is None:
        return Finding(name, "note", "there is no constraints.txt to compare with", "run it in the project")
    pinned = dict(
        re.findall(r"^([\w.-]+)==([^\s#;]+)", constraints.read_text(encoding="utf-8"), re.MULTILINE)
    )
    needed = _needed()
    wrong: list[str] = []
    others: list[str] = []
    for package, version in sorted(pinned.items()):
        installed = _version(package)
        if installed is None and package in needed:
            wrong.append(f"{package} is missing")
        elif installed is not None and installed.partition("+")[0] != version:
            (wrong if package in needed else others).append(f"{package} {installed} instead of {version}")
    act = f"pip install -c {constraints} -e {_ROOT}   (or: make install)"
    if wrong:
        return Finding(name, "bad", ", ".join((wrong + others)[:6]), act)
    if others:
        return Finding(name, "note", f"not as pinned: {', '.join(others[:6])}", act)
    return Finding(name, "ok", f"as pinned in {constraints} ({len(pinned)} packages)")


def _needed() -> set[str]:
    """Direct dependencies of Onward, without extras."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        lines = [line for line in metadata.requires("onward") or () if "extra ==" not in line]
        return {re.split(r"[\s<>=!~\[;]", line, maxsplit=1)[0].lower().replace("_", "-") for line in lines}
    return {"prefect", "fastapi", "sqlalchemy", "mlflow", "torch", "transformers", "pyarrow", "duckdb"}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def store(root: Path, slice_bytes: int | None = None, *, given: bool = True) -> Iterator[Finding]:
    """Whether the store exists or can be created, has room, and lies on a file system that locks and renames correctly."""
    there = next(path for path in (root, *root.parents) if path.exists())
    if not there.is_dir():
        yield Finding(
            "store", "bad", f"{there} is a file, not a directory", f"move it away: mv {there} {there}.old"
        )
        return
    if not given and not root.exists():
        yield Finding("store", "note", "no configuration given, so no store is known", "onward doctor CONFIG")
        return
    try:
        problem = _try_store(there)
    except OSError as error:
        act = f"chown -R {_user()} {there}; or name another directory as `store:`"
        yield Finding("store", "bad", f"{there} cannot be written to: {error.strerror or error}", act)
        return
    if problem:
        yield Finding(
            "store", "bad", f"{there}: {problem}", "put the store on a local disk or a file system with flock"
        )
        return
    state = "writable; locks and renames hold" if root.exists() else f"will be made in {there}"
    yield Finding("store", "ok", f"{root}: {state}")
    yield space(there, "store space", max(_STORE_BYTES, _SLICE_FACTOR * (slice_bytes or 0)))


def _user() -> str:
    return str(os.getuid())


_TRY_LOCK = """
import sys
from pathlib import Path
from storage.lock import Lock
sys.exit(0 if Lock(Path(sys.argv[1])).try_acquire() else 9)
"""


def _try_store(directory: Path) -> str | None:
    """Really write, rename and lock, also from a second process. Returns what fails, or None. Raises OSError."""
    probe = directory / f".doctor-{os.getpid()}"
    probe.mkdir()
    try:
        made = probe / "made"
        made.mkdir()
        with (made / "file").open("wb") as file:
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
        made.rename(probe / "renamed")
        if not (probe / "renamed" / "file").is_file():
            return "a renamed directory did not arrive under its new name"
        with Lock(probe / "lock"):
            if _second_process_locks(probe / "lock"):
                return "a second process can take a lock that is held (flock does not work)"
        if not _second_process_locks(probe / "lock"):
            return "a second process cannot take a lock that was released"
    finally:
        shutil.rmtree(probe, ignore_errors=True)
    return None


def _second_process_locks(path: Path) -> bool:
    path_of_modules = os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])
    answer = subprocess.run(
        [sys.executable, "-c", _TRY_LOCK, str(path)],
        env={**os.environ, "PYTHONPATH": path_of_modules},
        capture_output=True,
        encoding="utf-8",
    )
    if answer.returncode not in (0, 9):
        raise OSError(
            answer.stderr.strip().splitlines()[-1] if answer.stderr.strip() else "no second process"
        )
    return answer.returncode == 0


def space(directory: Path, name: str, needed: int) -> Finding:
    """Free bytes in the directory or its future place."""
    there = next(path for path in (directory, *directory.parents) if path.exists())
    free = shutil.disk_usage(there).free
    what = f"{free / 1e9:.1f} GB free at {there}"
    if free >= needed:
        return Finding(name, "ok", what)
    wanted = f", {needed / 1e9:.1f} GB wanted"
    act = "free space (onward gc --work; df -h), or move it to a larger disk"
    return Finding(name, "bad" if free < needed / 10 else "note", what + wanted, act)


def gpu() -> Finding:
    """The GPUs that the driver lists, and whether torch sees them."""
    names = gpus()
    if not names:
        broken = shutil.which("nvidia-smi") is not None
        if broken:
            return Finding(
                "gpu", "note", "nvidia-smi lists no GPU: runs use the CPU", "nvidia-smi; see the driver"
            )
        return Finding("gpu", "ok", "none: CPU")
    code = "import torch; print(torch.__version__, torch.cuda.device_count())"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", timeout=120)
    version, _, count = answer.stdout.strip().rpartition(" ")
    if answer.returncode == 0 and count.isdigit() and int(count):
        return Finding("gpu", "ok", f"{', '.join(names)}; torch {version} sees {count}")
    what = f"{', '.join(names)}, but torch {version or 'cannot be imported and'} sees no GPU"
    return Finding(
        "gpu", "bad", what, "install torch's CUDA build for this driver: pip install -c constraints.txt torch"
    )


def prefect(api: Api | None, record: HomeRecord | None) -> Iterator[Finding]:
    """The server, its version and scheduler; pools and workers; deployments and automations."""
    start = "onward up"
    if api is None:
        yield Finding("prefect", "note", "no server runs here; a run starts one for itself", start)
        return
    try:
        version = str(api.get("/admin/version"))
    except ApiError as error:
        act = "look at PREFECT_API_URL and its server" if os.environ.get("PREFECT_API_URL") else start
        state: Literal["note", "bad"] = "bad" if _expected(record) else "note"
        yield Finding("prefect", state, _refusal(error), act)
        return
    own = _version("prefect")
    if version != own:
        act = "install the same version on both sides (constraints.txt)"
        yield Finding("prefect", "bad", f"{api.url} runs {version}, here is {own}", act)
    else:
        yield Finding("prefect", "ok", f"{api.url} runs {version}")
    if record is not None and not record.supervised and record.running:
        yield Finding("supervisor", "bad", "it is gone; a service that dies is not started again", start)
    try:
        yield scheduler(api)
        yield from workers(api, start)
        yield automations(api)
    except ApiError as error:
        yield Finding("prefect", "bad", str(error), start)


def _expected(record: HomeRecord | None) -> bool:
    """Whether a server should answer: one is configured, or its process exists."""
    return bool(os.environ.get("PREFECT_API_URL")) or (record is not None and "prefect" in record.running)


def _refusal(error: ApiError) -> str:
    if error.status in (401, 403):
        return f"{error}; set PREFECT_API_AUTH_STRING, and unset a stray PREFECT_API_KEY"
    return str(error)


def scheduler(api: Api) -> Finding:
    """Active schedules must have future runs. A server can look healthy although its scheduler is dead."""
    active, oldest = [], time.time()
    for deployment in api.every("/deployments/filter", {}):
        if not deployment["paused"] and any(schedule["active"] for schedule in deployment["schedules"]):
            active.append(deployment["id"])
            oldest = min(
                oldest, datetime.fromisoformat(deployment["updated"].replace("Z", "+00:00")).timestamp()
            )
    if not active:
        return Finding("scheduler", "ok", "no schedule is on")
    body = {
        "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
        "deployments": {"id": {"any_": active}},
    }
    ahead = api.post("/flow_runs/count", body)
    if ahead:
        return Finding("scheduler", "ok", f"{len(active)} schedules on, {ahead} runs ahead")
    if younger(oldest, 120):
        return Finding(
            "scheduler", "note", "schedules are on; no run was created yet", "ask again in two minutes"
        )
    what = f"{len(active)} schedules are on, but the server creates no runs"
    return Finding(
        "scheduler", "bad", what, 'pip install -c constraints.txt "sqlalchemy<2.1"; onward down; onward up'
    )


def workers(api: Api, start: str) -> Iterator[Finding]:
    """Each pool that a deployment uses must exist, be active and have a worker."""
    used = {row["work_pool_name"] for row in api.every("/deployments/filter", {}) if row["work_pool_name"]}
    known = {row["name"]: row for row in api.every("/work_pools/filter", {})}
    if not used:
        yield Finding(
            "deployments", "bad", "there are none", f"{start}   (or: python -m flows.services.deploy CONFIG)"
        )
    for pool in sorted(used | known.keys()):
        online = [worker["name"] for worker in workers_online(api, pool)] if pool in known else []
        name = f"pool {pool}"
        if known[pool]["is_paused"]:
            yield Finding(name, "bad", "is paused: its runs wait", f"prefect work-pool resume {pool}")
        elif online:
            yield Finding(name, "ok", f"worker online: {', '.join(online)}")
        elif pool in used:
            yield Finding(name, "bad", "no worker is online: its runs wait", start)
        else:
            yield Finding(name, "ok", "no worker is online, and no deployment uses it")


def automations(api: Api) -> Finding:
    """The crash automation, which deploying installs."""
    there = list(api.every("/automations/filter", {}))
    crash = [row for row in there if "crash" in row["name"].lower() or "heartbeat" in row["name"].lower()]
    if not crash:
        act = "onward up   (or: python -m flows.services.deploy)"
        return Finding("automations", "bad", "no automation sets a run Crashed when its machine is gone", act)
    off = [row["name"] for row in crash if not row["enabled"]]
    if off:
        return Finding(
            "automations", "bad", f"{off[0]} is off", "turn it on in the Prefect UI, under Automations"
        )
    return Finding("automations", "ok", f"{sum(row['enabled'] for row in there)} of {len(there)} on")


def clock(api: Api | None) -> Finding:
    """This machine's clock must be plausible and within a minute of the server's."""
    before = time.monotonic()
    now = datetime.now(UTC)
    zone = datetime.now().astimezone().strftime("%Z (UTC%z)")
    act = "timedatectl set-ntp true"
    if now.year < 2025 or time.monotonic() < before:
        return Finding("clock", "bad", f"it is not {now:%Y-%m-%d %H:%M}", act)
    if api is not None and api.date:
        apart = abs((datetime.now(UTC) - parsedate_to_datetime(api.date)).total_seconds())
        if apart > 60:
            return Finding(
                "clock", "bad", f"{apart:.0f} s apart from the Prefect server's", f"{act}, on both"
            )
        if apart > 5:
            return Finding(
                "clock", "note", f"{apart:.0f} s apart from the Prefect server's", f"{act}, on both"
            )
        return Finding("clock", "ok", f"{now:%Y-%m-%d %H:%M:%S} UTC as on the server; here {zone}")
    return Finding("clock", "ok", f"{now:%Y-%m-%d %H:%M:%S} UTC; here {zone}")


def mlflow(run: Any, record: HomeRecord | None) -> Finding:
    """The MLflow address that a run would use."""
    configured = (run.tracking.mlflow_uri if run else None) or os.environ.get("MLFLOW_TRACKING_URI")
    up = record.mlflow if record and record.running else None
    address = configured or up
    if address is None or not address.startswith("http"):
        return _database(address or mlflow_database())
    name = without_secrets(address)
    act = (
        "onward up" if not configured else "start it, or correct tracking.mlflow_uri (or MLFLOW_TRACKING_URI)"
    )
    known = credentials_for(address)
    try:
        asked = urllib.request.Request(
            f"{address.rstrip('/')}/{'version' if known else 'health'}",
            headers={"Authorization": basic(known)} if known else {},
        )
        with urllib.request.urlopen(asked, timeout=5) as answer:
            if answer.status == 200:
                return Finding("mlflow", "ok", f"{name} answers")
            return Finding("mlflow", "bad", f"{name} answers {answer.status}", act)
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            user = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" if not known else "onward up"
            return Finding("mlflow", "bad", f"{name} refuses us ({error.code})", user)
        return Finding("mlflow", "bad", f"{name} answers {error.code}", act)
    except (OSError, ValueError) as error:
        what = f"{name} does not answer ({getattr(error, 'reason', error)}); a run would publish to it later"
        return Finding("mlflow", "bad", what, act)


def _database(address: str) -> Finding:
    scheme, _, rest = address.partition(":")
    path = rest.removeprefix("//").removeprefix("/")
    if scheme != "sqlite":
        return Finding("mlflow", "note", f"{scheme}: not looked at")
    there = next(parent for parent in Path(path).parents if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        return Finding("mlflow", "bad", f"{there} cannot be written to", f"chown -R {_user()} {there}")
    return Finding("mlflow", "ok", f"no server: the database {path}")


def run_all(config: Path | None, write: Callable[[str], object]) -> bool:
    """Write all findings as they come. Returns True if none is bad."""
    well = True
    for finding in examine(config):
        write(render(finding))
        well = well and finding.state != "bad"
    return well
