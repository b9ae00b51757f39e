"""Builds the torchrun command for a trainer of several processes. Standard library only.

On one machine, `--standalone` keeps everything local. With several machines the rendezvous is static: the numbers
of machines and processes are fixed. Machine 0 runs the flow and holds torchrun's store, where all machines meet.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

PARENT = "ONWARD_PARENT_FD"
"""Environment variable: the file descriptor, in torchrun's own process, of a pipe that ends with torchrun's starter."""
RENDEZVOUS = "rendezvous.json"
"""In the work directory: what further machines need to join ({id, address, nodes, processes})."""
MACHINE = 74
"""Exit code of a trainer that failed because of the machine, such as a full disk: the same again may succeed."""
DAMAGED = 76
"""Exit code of a trainer that found damaged bytes: what it reads is verified, and made again."""
CODE_SAID = "exit code "
"""In the log, before the code of a failure: torchrun gives no code but 1."""
MEETS_WITHIN_SECONDS = 90
RESTARTS = 3
"""How often torchrun restarts all processes after one died (restart.py)."""


def torchrun(
    spec: Path,
    processes: int,
    *,
    nodes: int = 1,
    node: int = 0,
    address: str | None = None,
    run: str = "onward",
) -> list[str]:
    """The command that trains `spec` with `processes` on each of `nodes` machines. This machine is number `node`."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    command += ["--max-restarts", str(RESTARTS), "--log-dir", str(spec.parent / "torchrun")]
    if nodes == 1:
        command += ["--standalone", "--local-addr", "127.0.0.1"]
    else:
        host, _, port = (address or "").rpartition(":")
        command += ["--nnodes", str(nodes), "--node-rank", str(node), "--rdzv-id", run]
        command += ["--master-addr", host.strip("[]"), "--master-port", port]
        command += ["--rdzv-conf", f"timeout={MEETS_WITHIN_SECONDS}"]
    return [*command, "-m", "tasks.training", str(spec)]


def joined(work: Path, run: str, node: int) -> Path:
    """The file that machine `node` writes to announce that it joins this start."""
    return work / f"joined-{run}-{node}"


def environment(pipe: int, nodes: int = 1, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for torchrun, which inherits the descriptor `pipe`. The end of the pipe asks every process to
    stop.
    """
    found = dict(os.environ if base is None else base)
    found[PARENT] = str(pipe)
    found.setdefault("OMP_NUM_THREADS", "1")  # avoids torchrun's banner; the trainer sets its own
    if nodes == 1 and sys.platform == "linux":
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            found.setdefault(name, "lo")
    return found
