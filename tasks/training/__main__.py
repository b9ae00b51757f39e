"""`python -m tasks.training SPEC.json`. Exit codes: 0 done, 75 resumable (asked to stop), 1 failed, 74 failed because of
the machine, 76 found damaged bytes, 2 wrong usage.

torchrun treats every code but 0 as a failure. Under torchrun, 0 therefore also means "asked to stop"; in that case
result.json does not exist.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

from storage.errors import DamagedArtifact, OnwardError
from tasks.training.process.launch import CODE_SAID, DAMAGED, MACHINE, PARENT
from tasks.training.process.restart import LostOthers, TorchrunStart, is_lost_connection, reason_of
from tasks.training.process.stop import Stop
from tasks.training.read_spec import read_spec


def main(arguments: list[str]) -> int:
    """Train as the specification says; errors are written to standard error. Returns the exit code."""
    if len(arguments) != 1:
        _say("usage: python -m tasks.training SPEC.json")
        return 2
    attempt = TorchrunStart.of(Path(arguments[0]), os.environ)
    if (failed := attempt.failed_before()) is not None:
        _say(f"error: {failed}")
        return 1
    stop = Stop()
    stop.on_signals()
    try:
        spec = read_spec(Path(arguments[0]))
        if attempt.launched:
            pipe = os.environ.get(PARENT)
            stop.on_end_of_launcher(int(pipe) if pipe else None)
        elif spec.parent_fd is not None:
            stop.on_end_of(spec.parent_fd)
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
        from tasks.training.loop import RESUMABLE, train  # torch and transformers load here
        from tasks.training.process.processes import join_processes

        processes = join_processes()
        code = train(spec, stop, _say if processes.first else _say_nothing, processes)
        processes.leave()
        if code == RESUMABLE and (processes.first or stop.reason):
            _say(f"left because of {stop.reason or 'another process'}")
        return 0 if attempt.launched and code == RESUMABLE else code
    except LostOthers as error:
        _say(attempt.words(error))
        return 1
    except DamagedArtifact as error:
        return _failed(attempt, str(error), DAMAGED)
    except OnwardError as error:
        return _failed(attempt, str(error))
    except Exception as error:
        if attempt.launched and is_lost_connection(error):
            _say(attempt.words(LostOthers(f"This process lost the others ({reason_of(error)}).")))
            return 1
        if not _disk_is_full(error):
            raise
        return _failed(attempt, f"the disk is full ({error}). Free space first.", MACHINE)


def _failed(attempt: TorchrunStart, message: str, code: int = 1) -> int:
    attempt.fail(message)
    _say(f"error: {message}")
    if attempt.launched and code != 1:
        _say(f"{CODE_SAID}{code}")
    return code


def _disk_is_full(error: Exception) -> bool:
    """safetensors gives the system's error number only in its message."""
    codes = (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "errno", None) in codes or any(f"(os error {code})" in str(error) for code in codes)


def _say_nothing(_: str) -> None:
    pass


def _say(line: str) -> None:
    rank = os.environ.get("RANK", "0")
    sys.stderr.write(f"trainer{'' if rank == '0' else ' ' + rank}: {line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
