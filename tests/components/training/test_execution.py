"""What a process has to be told before CUDA computes."""

from __future__ import annotations

import subprocess
import sys


def test_deterministic_kernels_are_asked_for_before_cuda_computes() -> None:
    # no GPU is needed to see what is set: in a process of its own, since torch keeps it
    program = (
        "import os, torch\n"
        "from tasks.training.device import execution\n"
        "torch.cuda.set_device = lambda device: None\n"
        "of = {'device': 'cuda', 'threads': 1, 'deterministic': %s}\n"
        "execution.apply(of)\n"
        "print(torch.are_deterministic_algorithms_enabled(), os.environ.get('CUBLAS_WORKSPACE_CONFIG'))\n"
    )
    for asked, expected in ((True, "True :4096:8"), (False, "False None")):
        done = subprocess.run([sys.executable, "-c", program % asked], capture_output=True, text=True)
        assert done.stdout.strip() == expected, done.stderr
