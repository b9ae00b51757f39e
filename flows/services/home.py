"""`onward up` and `onward down`: Prefect server, MLflow server, workers and deployments of one home, on 127.0.0.1.

One supervisor (flows/services/supervisor.py) keeps them running and its record (flows/services/record.py) correct. If
the supervisor is killed, they continue; the next `up` adopts them, or `down` stops them. Light to import: only child
processes import prefect and mlflow.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from flows.machine.processes import alive
from flows.machine.servers import SERVERS, USER, make_credentials, make_private
from flows.services.ready import Say, answers, check_ports, last_words, online, unguarded, wait_for
from flows.services.record import HomeRecord, Service, logs, pools, read_record, record_path, rotate
from flows.services.status import views
from storage.errors import ConfigError, OnwardError
from storage.lock import Lock
from storage.paths import home, state_directory

PREFECT_PORT, MLFLOW_PORT = 4200, 5000
STOP_SECONDS = 300.0
_ROOT = Path(__file__).resolve().parents[2]


def up(configs: Sequence[Path], prefect_port: int | None, mlflow_port: int | None, say: Say) -> HomeRecord:
    """Start what does not run yet, deploy, and return when everything answers.

    Raises ConfigError if a port is taken, and OnwardError if something does not start. In both cases, the processes that
    this call started are stopped.
    """
    configs = list(configs) or sorted((home() / "configs").glob("*.y*ml"))
    for config in configs:
        if not config.is_file():
            raise ConfigError(f"there is no configuration {config}")
    with _turn(say):
        record = read_record()
        if record is not None and _replace_unguarded(record, say):
            prefect_port = prefect_port or record.prefect_port
            mlflow_port, record = mlflow_port or record.mlflow_port, None
        found = dict(record.running) if record else {}
        began = record is None or not record.supervised
        if record is not None and found:
            _say_found(record, found, (prefect_port, mlflow_port), say)
        if record is not None:
            record.stop_left()
        if record is None or not found:
            record = HomeRecord(prefect_port or PREFECT_PORT, mlflow_port or MLFLOW_PORT)
        make_credentials(renew=not found)
        if began:
            check_ports(record, found)
            process = _start_supervisor(record)
        try:
            if began:
                _wait_taken_over(process)
            wait_for(partial(answers, f"{record.prefect}/api/health"), "prefect", say)
            deployed = _deploy(record, configs, say)
            wait_for(partial(answers, f"{record.mlflow}/health"), "mlflow", say)
            served = [name for name in (read_record() or record).services if name.startswith("worker-")]
            for worker in served:
                wait_for(partial(online, record, worker.removeprefix("worker-")), worker, say)
            if {f"worker-{pool}" for pool in pools()} - set(served):
                say("! this machine now serves other work pools: run onward down, then onward up")
        except BaseException:
            if began and not found:  # adopted services and their runs are not this call's to stop
                stop_supervisor(process, say=lambda line: None)
                record_path().unlink(missing_ok=True)
            raise
        record = read_record() or record
        _say_up(record, deployed, say)
        return record


def down(say: Say) -> None:
    """Stop everything: workers and their runs first, and Prefect last, after it has written its state."""
    from flows.services.supervisor import flow_processes

    with _turn(say):
        record = read_record()
        if record is not None:
            record.stop_left()
        runs = bool(record and flow_processes(record.api.url))
        if record is None or not (record.supervised or record.running or runs):
            record_path().unlink(missing_ok=True)
            say("nothing runs")
            return
        _stop(record, say)


def _stop(record: HomeRecord, say: Say) -> None:
    from flows.services.supervisor import flow_processes, stop_all

    if record.supervised:
        stop_supervisor(record.pid, say)
    left = read_record()
    if left is not None and (left.running or flow_processes(left.api.url)):
        stop_all(left, say)  # the supervisor was killed, so its work is done here
        left.stop_left()
    record_path().unlink(missing_ok=True)


def _replace_unguarded(record: HomeRecord, say: Say) -> bool:
    """Stop servers that do not ask for this home's password, unless runs are under way. Returns whether it did.

    Version 0.1.0 started servers without one. A password that was removed while servers ran is another than theirs.
    """
    from flows.services.supervisor import flow_processes

    why = [line for line in (unguarded(record, name) for name in SERVERS if name in record.running) if line]
    if not why:
        return False
    say(f"! {'; '.join(why)}")
    if flow_processes(record.api.url):
        say(
            "! runs are under way, so the servers stay as they are: onward down, then onward up, changes that"
        )
        return False
    say("they are stopped, and started again")
    _stop(record, say)
    return True


def stop_supervisor(process: subprocess.Popen[bytes] | int, say: Say) -> None:
    """Ask the supervisor to stop its services and itself, and repeat its messages. Kill it if it does not end."""
    pid = process if isinstance(process, int) else process.pid
    known = read_record()
    ticks = known.started if known and known.pid == pid else ""
    told = 0
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + STOP_SECONDS
    while time.monotonic() < until:
        gone = not alive(pid, ticks) if isinstance(process, int) else process.poll() is not None
        record = read_record()
        for line in record.messages[told:] if record else ():
            say(line)
            told += 1
        if gone:
            return
        time.sleep(0.2)
    say(f"the supervisor (process {pid}) did not end within {STOP_SECONDS:.0f} s and is killed")
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    time.sleep(0.5)


@contextlib.contextmanager
def _turn(say: Say) -> Iterator[None]:
    """Allow only one `up` or `down` at a time in a home."""
    make_private(state_directory())
    logs().mkdir(exist_ok=True)
    with Lock(
        state_directory() / "turn.lock",
        waiting=lambda path: say("another onward up or down is at work; waiting"),
    ):
        yield


def _start_supervisor(record: HomeRecord) -> subprocess.Popen[bytes]:
    log = logs() / "supervisor.log"
    rotate(log)
    with log.open("ab") as output:
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "flows.services.supervisor",
                str(record.prefect_port),
                str(record.mlflow_port),
            ],
            cwd=_ROOT,
            env=record.environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # it outlives this command, and Ctrl-C must not reach it
        )


def _wait_taken_over(process: subprocess.Popen[bytes]) -> None:
    """Wait until services.json belongs to the new supervisor."""
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        record = read_record()
        if record is not None and record.pid == process.pid:
            return
        time.sleep(0.1)
    raise OnwardError(f"the supervisor did not start:\n{last_words(logs() / 'supervisor.log')}")


def _deploy(record: HomeRecord, configs: Sequence[Path], say: Say) -> list[str]:
    """Run flows/services/deploy.py against the servers. Returns what it deployed. It is idempotent."""
    answer = subprocess.run(
        [
            sys.executable,
            "-m",
            "flows.machine.start",
            "flows.services.deploy",
            *map(str, (config.resolve() for config in configs)),
        ],
        env={**record.environment, "PYTHONPATH": os.pathsep.join([str(_ROOT), *_python_path()])},
        cwd=home(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
    )
    (logs() / "deploy.log").write_text(answer.stdout + answer.stderr, encoding="utf-8")
    if answer.returncode != 0:
        raise OnwardError(f"the deployments could not be made:\n{last_words(logs() / 'deploy.log')}")
    for line in answer.stderr.splitlines():
        if line.startswith("passed over"):
            say(f"! {line}")
    return [line.strip() for line in answer.stdout.splitlines() if line.strip()]


def _python_path() -> list[str]:
    return [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]


def _say_found(
    record: HomeRecord, found: dict[str, Service], wanted: tuple[int | None, int | None], say: Say
) -> None:
    names = ", ".join(sorted(found))
    if record.supervised:
        say(f"runs already: {names}")
    else:
        say(f"their supervisor is gone; they are taken over: {names}")
    for option, asked, port in zip(
        ("--prefect-port", "--mlflow-port"), wanted, (record.prefect_port, record.mlflow_port), strict=True
    ):
        if asked is not None and asked != port:
            say(f"! {option} {asked} is not used: it runs on {port}; onward down first, to move it")


def _say_up(record: HomeRecord, deployed: Sequence[str], say: Say) -> None:
    say(f"Prefect      {record.prefect}")
    say(f"MLflow       {record.mlflow}")
    say(f"log in       as {USER}; onward status shows the password of both")
    say(f"workers      {', '.join(pools())}")
    for number, line in enumerate(deployed or ["none: there is no configuration in configs/"]):
        say(f"{'' if number else 'deployed':<12} {line}")
    for number, (name, page) in enumerate(views(record.mlflow).items()):
        say(f"{'' if number else 'runs':<12} {name}: {page}")
    say(f"data         {state_directory()} (logs/, prefect/, mlflow/)")
    say(
        f"next         open {record.prefect}, Deployments, Run; or onward status · onward doctor · onward down"
    )
