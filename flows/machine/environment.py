"""The environment of Onward's processes, set before prefect or mlflow is imported. Light to import.

`prepare` is for a user's command, and `service_environment` for servers, workers and their flow runs. Both must agree
on the location of data. The user's settings stay, except those that would lock us out of our own loopback servers.
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import stat
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from flows.machine.servers import credentials_for, make_credentials, make_private, running_servers
from storage.errors import ConfigError
from storage.paths import home, prefect_home, state_directory
from storage.secrets import without_secrets

_QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "true",  # serves both; MLflow accepts no other word than this
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUTF8": "1",  # in any locale: what one process writes, another reads
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # the smallest value; the crash automation counts on it
}
_SPINS = {"GOMP_SPINCOUNT": "20000"}
"""Number of times that an OpenMP thread (libgomp) looks for work before it sleeps; libgomp's default is 300,000.

On cores that others use too, a spinning thread blocks the thread that it waits for. Beside two busy processes, a training
step took 1.8 s with 300,000 and 1.4 s with 20,000; on idle cores there was no difference. Results do not change.
"""
_OF_OTHER_SERVERS = (
    "PREFECT_API_KEY",  # a leftover key overrides everything and gives 401
    "PREFECT_API_AUTH_STRING",
    "PREFECT_SERVER_API_AUTH_STRING",
    "PREFECT_SERVER_API_HOST",
    "PREFECT_SERVER_API_PORT",
    "PREFECT_SERVER_API_BASE_PATH",
    "PREFECT_PROFILE",
    "PREFECT_UI_API_URL",
    "PREFECT_SERVER_UI_API_URL",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
)


def prepare() -> None:
    """Set this process's environment for a run: quiet, data in this home, the servers of `onward up` if they run.

    Raises ConfigError if there is no place for that data.
    """
    own = os.environ.get("PREFECT_API_URL") is None
    if own:
        for name in ("PREFECT_API_KEY", "PREFECT_PROFILE"):
            os.environ.pop(name, None)
    with contextlib.suppress(OSError):  # a home that cannot be written to, and whose data is elsewhere
        make_private(state_directory())
    os.environ.setdefault("PREFECT_HOME", str(prefect_home()))
    try:
        Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{os.environ['PREFECT_HOME']} cannot be made ({error.strerror}), and a run keeps its servers' data there: set "
            "ONWARD_HOME to a directory that can be written; relative paths of the configuration start there"
        ) from error
    for name, value in {**_QUIET, **_spins()}.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault(
        "PREFECT_SERVER_EPHEMERAL_ENABLED", "false"
    )  # our own server (flows/services/server.py) ends with its run
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault(
        "PREFECT_LOGGING_INTERNAL_LEVEL", "CRITICAL"
    )  # each event that a server missed, in full
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("SQLITE_TMPDIR", os.environ["PREFECT_HOME"])  # TMPDIR may be full or not ours
    record = running_servers()
    if own and record is not None:
        elsewhere = "MLFLOW_TRACKING_URI" in os.environ
        for name, value in addresses(record["prefect_port"], record["mlflow_port"]).items():
            if not (elsewhere and "MLFLOW" in name):
                os.environ.setdefault(name, value)
    if known := credentials_for(os.environ.get("PREFECT_API_URL")):
        os.environ["PREFECT_API_AUTH_STRING"] = known


def _spins() -> dict[str, str]:
    return {} if "OMP_WAIT_POLICY" in os.environ else _SPINS  # keep the user's own choice


def addresses(prefect_port: int, mlflow_port: int) -> dict[str, str]:
    """The addresses of the servers of `onward up`, for clients and for links."""
    prefect, mlflow = f"http://127.0.0.1:{prefect_port}", f"http://127.0.0.1:{mlflow_port}"
    return {
        "PREFECT_API_URL": f"{prefect}/api",
        "PREFECT_UI_URL": prefect,
        "MLFLOW_TRACKING_URI": mlflow,
        "ONWARD_MLFLOW_URL": mlflow,
        "ONWARD_MLFLOW_LOCAL": "1",  # same machine: experiment files are in storage.paths.mlflow_files()
    }


def service_environment(prefect_port: int, mlflow_port: int) -> dict[str, str]:
    """Environment of the services and flow runs of `onward up`: their password, no other server, data in this home.

    MLflow's client gets the password from flows/tracking/client.py, which knows whom it asks.
    """
    public = {
        name: os.environ[name] for name in ("PREFECT_UI_URL", "ONWARD_MLFLOW_URL") if name in os.environ
    }
    without = (*_OF_OTHER_SERVERS, "PYTHONOPTIMIZE")  # transformers and mlflow read docstrings
    kept = {name: value for name, value in os.environ.items() if name not in without}
    return {
        **_QUIET,
        **_spins(),
        "PREFECT_WORKER_QUERY_SECONDS": "5",
        "PREFECT_WORKER_HEARTBEAT_SECONDS": "10",
        **kept,
        "ONWARD_HOME": str(home()),
        "PREFECT_HOME": str(prefect_home()),
        "SQLITE_TMPDIR": os.environ.get("SQLITE_TMPDIR") or str(prefect_home()),
        "PREFECT_RUNNER_AUTO_INSTALL_DEPENDENCIES": "false",  # a flow run uses the installed packages
        "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PYTHONUNBUFFERED": "1",
        "PYTHONSAFEPATH": "1",  # Prefect runs a script beside its own storage.py, which would hide our package
        "PREFECT_API_AUTH_STRING": make_credentials(),
        **addresses(prefect_port, mlflow_port),
        **public,
    }


def server_environment(server: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The services' environment with what `prefect` or `mlflow` itself needs: the password that it asks for."""
    ours = dict(environment)
    known = ours.pop("PREFECT_API_AUTH_STRING")
    if server == "prefect":
        return {**ours, "PREFECT_API_AUTH_STRING": known, "PREFECT_SERVER_API_AUTH_STRING": known}
    for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_BACKEND_STORE_URI"):
        ours.pop(variable, None)
    return {**ours, "ONWARD_SERVER_AUTH": known}


def outlive_readers() -> None:
    """Let a run survive the death of what reads its output: its worker, a terminal, `tee`. Later output goes to a file.

    Without this, the next line that any library writes to standard error would end the run.
    """
    watched = [number for number in (1, 2) if _has_reader(number)]

    def redirect_when_broken() -> None:
        broken = select.poll()
        for number in watched:
            broken.register(number, 0)  # errors only: the reading end was closed
        broken.poll()
        logs = state_directory() / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        file = os.open(logs / "flows.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        for number in watched:
            os.dup2(file, number)

    if watched:
        threading.Thread(target=redirect_when_broken, name="outlive-readers", daemon=True).start()


def _has_reader(number: int) -> bool:
    with contextlib.suppress(OSError):
        mode = os.fstat(number).st_mode
        return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(number)
    return False


def command_line() -> str:
    """The command of this process, as a shell takes it, without secrets."""
    if Path(sys.argv[0]).stem in ("onward", "cli") and len(sys.argv) > 1:
        return without_secrets(shlex.join(["onward", *sys.argv[1:]]))
    return "run the same again"


def gpus() -> list[str]:
    """Names of the NVIDIA GPUs of this machine, from the driver. Does not load torch."""
    import pynvml

    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        try:
            handles = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
            return [str(pynvml.nvmlDeviceGetName(handle)) for handle in handles]
        finally:
            pynvml.nvmlShutdown()
    return []


def worker_command(pool: str, name: str) -> list[str]:
    """The command line of a Prefect worker. The pool already exists, and nothing is installed."""
    options = ["--pool", pool, "--name", name, "--install-policy", "never", "--no-create-pool-if-not-found"]
    return [sys.executable, "-m", "flows.machine.start", "flows.services.prefect_worker", *options]
