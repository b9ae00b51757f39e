"""`python -m flows.services.worker POOL NAME`: one Prefect worker in a container, with the sweep of lost runs beside it.

It does for a container what supervisor.py does for a home. On SIGTERM, it first ends the worker's runs, each with time
for a checkpoint and with a correct final state, and then the worker. (A Prefect worker alone would wait for its runs, and
the end of the container would kill them.) If the worker ends by itself, this process ends too, and the container is
started again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading

from flows.machine.environment import worker_command
from flows.machine.processes import on_hangup, send, stop_group
from flows.services.lost_runs import LostRuns, sweep_until
from flows.services.rest import Api
from flows.services.supervisor import stop_flows, tell

_WORKER_GRACE_SECONDS = 20.0


def main(arguments: list[str]) -> int:
    """Run the worker. Returns exit code 0 after a stop, else the worker's own."""
    pool, name = arguments
    api = Api(os.environ["PREFECT_API_URL"])
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    on_hangup(stop.set)
    tell(f"worker {name} of the pool {pool} (process {os.getpid()})")
    command = [*worker_command(pool, name), "--with-healthcheck"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    watch = LostRuns(api, frozenset([pool]), frozenset([name]))
    threading.Thread(target=sweep_until, args=(watch, stop, tell), daemon=True).start()
    while process.poll() is None and not stop.wait(0.5):
        pass
    asked = stop.is_set()
    stop.set()
    if asked and process.poll() is None:
        send([process.pid], signal.SIGSTOP)  # it takes no new run while its own runs are ended
    try:
        stop_flows(api, [pool], tell, [name])
    finally:
        send([process.pid], signal.SIGTERM)
        send([process.pid], signal.SIGCONT)
        stop_group(process.pid, _WORKER_GRACE_SECONDS)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)
    tell(f"{name} ended")
    return 0 if asked else process.returncode or 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
