"""Faults during runs that are operated from the UIs: time until the state is true, work lost, and bytes at the end.

    python benchmarks/faults.py [FAULT …]

Prints the table of `benchmarks/results.md`. Every fault is real: processes are killed, servers hang, the disk is
full (on a file system mounted for it, by root). Takes some minutes; needs no network.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.faults import FAULTS, Row, strike, undisturbed  # noqa: E402
from tests.support.operated import Operated  # noqa: E402


def main(names: list[str]) -> None:
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="onward-faults-") as directory:
        operated = Operated(Path(directory))
        reference = undisturbed(operated)
        operated.up()
        try:
            for name in names or list(FAULTS):
                rows.append(strike(operated, name, FAULTS[name], reference))
                print(f"{rows[-1]}", file=sys.stderr, flush=True)
        finally:
            operated.down()
    print(
        "| fault | true state | after | steps lost | finished stages repeated | end | bytes as undisturbed |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        print(
            f"| {row.fault} | {row.state} | {row.seconds:.0f} s | {row.steps_lost} | {row.repeated} "
            f"| {row.end} | {'yes' if row.same_bytes else 'NO'} |"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
