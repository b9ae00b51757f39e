"""What can go wrong under a run of the UIs, done for real, and what came of it: a row for each fault.

Each fault strikes while the long training runs, in a store of its own. A row says how long it took until the run's state
was true, what was lost, and whether the run, once it went on, ended with the bytes of one that nothing happened to.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.support import ROOT
from tests.support.cluster import DaskCluster
from tests.support.operated import Operated
from tests.support.small import digests, run_json

_SECOND_REPORT_SECONDS = 15.0
"""Prefect's worker reports a killed process twice; a retry in between would be set Crashed by the second."""


@dataclass(frozen=True)
class Row:
    """`state` was true `seconds` after the fault; `steps_lost` optimizer steps and `repeated` finished stages were
    computed again; in the end the run was `end`, with the undisturbed run's bytes or not."""

    fault: str
    state: str
    seconds: float
    steps_lost: int
    repeated: int
    left: tuple[str, ...]
    end: str
    same_bytes: bool


@dataclass(frozen=True)
class Fault:
    """`act` strikes; the run must come to `ends_in` (a state type) and is then retried, or goes on by itself (None).

    `prepare` comes before the run starts, `repair` before the retry, or after the end of a run that went on by itself.
    `moment` waits for when to strike: without one, the long training. `executor`: where the corpus stages run.
    """

    act: Callable[[Operated, str], None]
    ends_in: str | None
    state: str
    prepare: Callable[[Operated, str], None] | None = None
    repair: Callable[[Operated, str], None] | None = None
    moment: Callable[[Operated, str], object] = Operated.wait_training
    executor: Callable[[], str] | None = None


def undisturbed(operated: Operated) -> dict[str, dict[str, str]]:
    """Digests of a run by `onward run`, without servers: what every disturbed run is compared with."""
    store = operated.home / "undisturbed"
    run_json(operated.home, operated.config, "--set", f"store={store}")
    return digests(store)


def cancel(operated: Operated, run: str) -> None:
    """The button `Cancel`."""
    operated.cancel(run)


def kill_flow(operated: Operated, run: str) -> None:
    """The flow's process is killed (the kernel, short of memory, does this)."""
    os.kill(operated.flow_process(run), signal.SIGKILL)


def kill_worker(operated: Operated, run: str) -> None:
    """The worker is killed, its flow with it."""
    flow = operated.flow_process(run)
    for name, pid in operated.services().items():
        if name.startswith("worker"):
            os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(flow, signal.SIGKILL)


def kill_worker_alone(operated: Operated, run: str) -> None:
    """The worker is killed, its flow is not."""
    for name, pid in operated.services().items():
        if name.startswith("worker"):
            os.kill(pid, signal.SIGKILL)


def kill_prefect(operated: Operated, run: str) -> None:
    """The Prefect server is killed; its supervisor starts it again."""
    os.kill(operated.services()["prefect"], signal.SIGKILL)


def hang_mlflow(operated: Operated, run: str) -> None:
    """The MLflow server hangs until the run has ended."""
    os.kill(operated.services()["mlflow"], signal.SIGSTOP)


def wake_mlflow(operated: Operated, store: str) -> None:
    """The end of it."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(operated.services()["mlflow"], signal.SIGCONT)


def power_cut(operated: Operated, run: str) -> None:
    """Every process of the machine is gone at once; then it is started again."""
    operated.kill_everything()
    operated.up()


def small_disk(operated: Operated, store: str) -> None:
    """A file system of its own for the store. Raises PermissionError where this user may mount none."""
    path = operated.home / store
    path.mkdir()
    answer = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", path], capture_output=True, text=True
    )
    if answer.returncode != 0:
        raise PermissionError(answer.stderr.strip())


def fill_disk(operated: Operated, run: str) -> None:
    """Not a byte is left on the store's file system."""
    with (
        (_store_of(operated, run) / "filler").open("wb", buffering=0) as filler,
        contextlib.suppress(OSError),
    ):
        while True:
            filler.write(bytes(1 << 16))


def make_room(operated: Operated, store: str) -> None:
    """Somebody deletes what filled it."""
    (operated.home / store / "filler").unlink()


class LosingDask:
    """A Dask cluster of two workers that loses one of them in the middle of a shard."""

    def __init__(self) -> None:
        self._cluster: DaskCluster | None = None
        self._doomed: subprocess.Popen[bytes] | None = None

    @property
    def cluster(self) -> DaskCluster:
        """Once started."""
        assert self._cluster is not None
        return self._cluster

    def start(self, operated: Operated, store: str) -> None:
        """Scheduler and workers, on 127.0.0.1."""
        self._cluster = DaskCluster(operated.home / "dask", PYTHONPATH=str(ROOT))
        self._doomed = self._cluster.worker("--name", "doomed")
        self._cluster.worker("--name", "spared")

    def executor(self) -> str:
        """Its address as a configuration names it."""
        return self.cluster.executor

    def wait_shard(self, operated: Operated, store: str) -> None:
        """Until the worker to be killed has a shard in the making."""
        from distributed import Client

        began = time.monotonic()
        with Client(self.cluster.address, set_as_default=False) as client:
            workers = client.scheduler_info(-1)["workers"]
            address = next(a for a, worker in workers.items() if worker["name"] == "doomed")
            while not client.processing([address])[address]:
                assert time.monotonic() - began < 240, "the worker never had a shard to make"

    def kill(self, operated: Operated, run: str) -> None:
        """The worker is killed with what it makes."""
        assert self._doomed is not None
        self.cluster.kill(self._doomed)

    def end(self, operated: Operated, store: str) -> None:
        """Nothing of the cluster is left."""
        self.cluster.__exit__(None, None, None)


def _store_of(operated: Operated, run: str) -> Path:
    return Path(operated.api(f"/flow_runs/{run}", method="GET")["parameters"]["config"]["store"])


def strike(operated: Operated, name: str, fault: Fault, reference: dict[str, dict[str, str]]) -> Row:
    """One fault, from the start of a run to its end. Fails where a state does not come true, or the run not to its end."""
    store = "store-" + name.replace(" ", "-")
    if fault.prepare:
        fault.prepare(operated, store)
    run = operated.start(store, executor=fault.executor() if fault.executor else None)
    fault.moment(operated, store)
    step, _ = operated.training(store)
    began = time.monotonic()
    fault.act(operated, run)
    lost, left = 0, tuple[str, ...]()
    operated.wait(run, *((fault.ends_in,) if fault.ends_in else ("RUNNING", "COMPLETED")))
    seconds = time.monotonic() - began
    if fault.ends_in:
        lost = max(0, step - _newest_checkpoint_when_quiet(operated, store))
        left = tuple(operated.left(store))
        if fault.repair:
            fault.repair(operated, store)
        time.sleep(_SECOND_REPORT_SECONDS if fault.act is kill_flow else 0)
        operated.retry(run)
    operated.wait(run, "COMPLETED", seconds=400)
    if fault.repair and not fault.ends_in:
        fault.repair(operated, store)
    tasks = operated.tasks(run)
    unended = [task["name"] for task in tasks if task["state_type"] in ("RUNNING", "PENDING")]
    assert not unended, f"task runs of a run that has ended: {unended}"
    made = Counter(task["name"] for task in tasks if task["state_name"] == "Completed")
    repeated = sum(count - 1 for count in made.values() if count > 1)
    end = operated.state(run)["name"]
    same = digests(operated.home / store) == reference
    if fault.prepare is small_disk:
        subprocess.run(["umount", "-l", operated.home / store], check=True)
    return Row(name, fault.state, seconds, lost, repeated, left, end, same)


def _newest_checkpoint_when_quiet(operated: Operated, store: str, seconds: float = 40) -> int:
    """Once nothing works in the store any more: an orphaned trainer checkpoints and leaves within seconds."""
    began = time.monotonic()
    while operated.left(store) and time.monotonic() - began < seconds:
        time.sleep(0.2)
    return operated.training(store)[1]


_DASK = LosingDask()
FAULTS = {
    "cancelled": Fault(cancel, "CANCELLED", "Cancelled"),
    "flow killed": Fault(kill_flow, "CRASHED", "Crashed"),
    "worker killed": Fault(kill_worker, "CRASHED", "Crashed"),
    "worker alone killed": Fault(kill_worker_alone, None, "Running"),
    "server restarted": Fault(kill_prefect, None, "Running"),
    "MLflow hangs": Fault(hang_mlflow, None, "Running", repair=wake_mlflow),
    "disk full": Fault(fill_disk, "FAILED", "Failed", prepare=small_disk, repair=make_room),
    "Dask worker killed": Fault(
        _DASK.kill,
        None,
        "Running",
        prepare=_DASK.start,
        repair=_DASK.end,
        moment=_DASK.wait_shard,
        executor=_DASK.executor,
    ),
    "power cut": Fault(power_cut, "CRASHED", "Crashed"),
}
"""By name. After a power cut the machine is started again, which here is `onward up`."""
