"""`python -m tasks.training.join STORE N`: train along on this machine, as machine N (1, 2, …) of a run.

Run it once on each further machine. The store must lie under the same path as on the run's machine. It waits for a
run that trains on several machines, joins it, and waits for the next: each segment of training is a start of its
own, and so is each retry. Ctrl-C ends it; the training that it takes part in then stops on all machines, with a
checkpoint. Standard library only.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.training.process import launch

_ROOT = Path(__file__).resolve().parents[2]
_GRACE_SECONDS = 120.0


def main(arguments: list[str]) -> int:
    """Join each run that asks for this machine, until interrupted. Exit codes: 0 interrupted, 2 wrong usage."""
    if len(arguments) != 2 or not arguments[1].isdigit() or int(arguments[1]) < 1:
        _say("usage: python -m tasks.training.join STORE N   (N: 1, 2, …; the run itself is on machine 0)")
        return 2
    store, node = Path(arguments[0]).resolve(), int(arguments[1])
    if not (store / ".work").is_dir():
        _say(f"there is no store at {store}; it must have the same path as on the machine of the run")
        return 2
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, _interrupt)
    _say(f"waiting for a run in {store} that trains on several machines")
    try:
        for work, call in calls(store, node):
            _say(f"joining {work.name} as machine {node} of {call['nodes']}")
            _say(f"left {work.name} with exit code {join(work, call, node)}")
    except KeyboardInterrupt:
        return 0
    return 0


def calls(store: Path, node: int) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Starts that want this machine, each once: (work directory, contents of `rendezvous.json`)."""
    known = set()
    while True:
        for path in sorted((store / ".work").glob(f"*/{launch.RENDEZVOUS}")):
            try:
                call = json.loads(path.read_bytes())
            except (OSError, ValueError):
                continue
            if call["id"] not in known and node < call["nodes"]:
                known.add(call["id"])
                yield path.parent, call
        time.sleep(0.5)


def join(work: Path, call: dict[str, Any], node: int) -> int:
    """Announce this machine, train along, and return torchrun's exit code."""
    spec = work / "spec.json"
    command = launch.torchrun(
        spec, call["processes"], nodes=call["nodes"], node=node, address=call["address"], run=call["id"]
    )
    reader, writer = os.pipe()
    process = subprocess.Popen(
        command,
        cwd=_ROOT,
        env={
            **launch.environment(reader, call["nodes"]),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        },
        stdin=subprocess.DEVNULL,
        pass_fds=(reader,),
        start_new_session=True,
    )
    os.close(reader)
    try:
        launch.joined(work, call["id"], node).touch()
        return process.wait()
    except FileNotFoundError:  # the run went on without this machine
        return process.wait()
    finally:
        os.close(writer)
        if process.poll() is None:
            try:
                process.wait(_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _say(line: str) -> None:
    sys.stderr.write(f"join: {line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
