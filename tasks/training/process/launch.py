"""How torchrun is called for a trainer of several processes. Standard library only.

`--standalone` keeps to this machine. With several machines the rendezvous is static: the numbers of machines and
processes are fixed, machine 0 is where the run is, and holds the store that all of them meet at.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

PARENT = "ONWARD_PARENT_FD"
"""Environment variable: the number, in torchrun's own process, of the pipe that ends with the one who started it."""
RENDEZVOUS = "rendezvous.json"
"""In the work directory: what machines to come need to join ({id, address, nodes, processes})."""
MEETS_WITHIN_SECONDS = 90
RESTARTS = 3
"""How often torchrun starts all processes again where one died (restart.py)."""


def torchrun(
    spec: Path,
    processes: int,
    *,
    nodes: int = 1,
    node: int = 0,
    address: str | None = None,
    run: str = "onward",
) -> list[str]:
    """The command that trains as `spec` says with `processes` on each of `nodes` machines, this one being `node`."""
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
    """What machine `node` writes to say that it joins this start."""
    return work / f"joined-{run}-{node}"


def environment(pipe: int, nodes: int = 1, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """For torchrun: `pipe` is a descriptor that it inherits, whose end asks every process to stop."""
    found = dict(os.environ if base is None else base)
    found[PARENT] = str(pipe)
    found.setdefault("OMP_NUM_THREADS", "1")  # the trainer sets its own; without, torchrun prints a banner
    if nodes == 1 and sys.platform == "linux":
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            found.setdefault(name, "lo")
    return found
