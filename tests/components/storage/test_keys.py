"""A key is the same in every process."""

from __future__ import annotations

import os
import subprocess
import sys

from storage.store import Request
from tests.support import ROOT
from tests.support import letters_stage as stages


def test_the_key_is_the_same_under_any_hash_seed_and_in_any_process():
    request = Request(stages, stages.LettersConfig(letter="é"), stages.LettersInputs())
    code = (
        "from tests.support import letters_stage as stages; from storage.store import Request;"
        "print(Request(stages, stages.LettersConfig(letter='é'), stages.LettersInputs()).key)"
    )
    for seed in ("0", "1", "4711"):
        answer = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert answer.stdout.strip() == request.key
