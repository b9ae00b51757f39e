"""What can go wrong under a run of the UIs, done for real, and what came of it: a row for each fault.

Each fault strikes while the long training runs, in a store of its own. A row says how long it took until the run's state
was true, what was lost, and whether the run, once it went on, ended with the bytes of one that nothing happened to.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from operated import Operated
from small import digests, run_json


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


Fault = Callable[[Operated, str], None]


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


def wake_mlflow(operated: Operated) -> None:
    """The end of it."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(operated.services()["mlflow"], signal.SIGCONT)


def power_cut(operated: Operated, run: str) -> None:
    """Every process of the machine is gone at once; then it is started again."""
    operated.kill_everything()
    operated.up()


def strike(
    operated: Operated,
    fault: str,
    act: Fault,
    reference: dict[str, dict[str, str]],
    *,
    ends_in: str | None,
    state: str,
) -> Row:
    """One fault. `ends_in` is the state type the run must come to, after which it is retried; None: it goes on by itself
    and completes."""
    store = "store-" + fault.replace(" ", "-")
    run = operated.start(store)
    operated.wait_training(store)
    step, _ = operated.training(store)
    began = time.monotonic()
    act(operated, run)
    lost = 0
    if ends_in is None:
        operated.wait(run, "RUNNING", "COMPLETED")
        seconds = time.monotonic() - began
    else:
        operated.wait(run, ends_in)
        seconds = time.monotonic() - began
        lost = max(0, step - _newest_checkpoint_when_quiet(operated, store))
    left = tuple(operated.left(store)) if ends_in else ()
    if ends_in:
        operated.retry(run)
    operated.wait(run, "COMPLETED", seconds=400)
    if act is hang_mlflow:
        wake_mlflow(operated)
    tasks = operated.tasks(run)
    unended = [task["name"] for task in tasks if task["state_type"] in ("RUNNING", "PENDING")]
    assert not unended, f"task runs of a run that has ended: {unended}"
    made = Counter(task["name"] for task in tasks if task["state_name"] == "Completed")
    repeated = sum(count - 1 for name, count in made.items() if count > 1)
    end = operated.state(run)["name"]
    return Row(fault, state, seconds, lost, repeated, left, end, digests(operated.home / store) == reference)


def _newest_checkpoint_when_quiet(operated: Operated, store: str, seconds: float = 40) -> int:
    """Once nothing works in the store any more: an orphaned trainer checkpoints and leaves within seconds."""
    began = time.monotonic()
    while operated.left(store) and time.monotonic() - began < seconds:
        time.sleep(0.2)
    return operated.training(store)[1]


FAULTS: dict[str, tuple[Fault, str | None, str]] = {
    "cancelled": (cancel, "CANCELLED", "Cancelled"),
    "flow killed": (kill_flow, "CRASHED", "Crashed"),
    "worker killed": (kill_worker, "CRASHED", "Crashed"),
    "worker alone killed": (kill_worker_alone, None, "Running"),
    "server restarted": (kill_prefect, None, "Running"),
    "MLflow hangs": (hang_mlflow, None, "Running"),
    "power cut": (power_cut, "CRASHED", "Crashed"),
}
"""Name → what is done, the state type it must come to (None: it goes on by itself), the state's name."""
