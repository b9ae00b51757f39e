"""`stages.lock`: each stage's VERSION and the digest of the code that shapes its bytes.

A changed digest under the same VERSION means that keys no longer tell old output from new. Either raise the VERSION, or,
where the output is truly the same, accept the new digest: `make accept-stages`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

from storage.code import ROOT, stage_code_digest
from tasks.stages import TABLE

LOCK = ROOT / "stages.lock"


def current() -> dict[str, dict[str, str | int]]:
    """VERSION and code digest of every stage as the code stands now, by the stage's name."""
    found = {}
    for stage in TABLE:
        module = importlib.import_module(stage.module)
        found[module.STAGE] = {"version": module.VERSION, "code": stage_code_digest(module)}
    return dict(sorted(found.items()))


def locked(path: Path = LOCK) -> dict[str, dict[str, str | int]]:
    """What `stages.lock` holds."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def unaccepted(now: dict[str, dict[str, str | int]], before: dict[str, dict[str, str | int]]) -> list[str]:
    """Stages whose code changed and which were neither given a new VERSION nor accepted; and those unknown to the lock."""
    wrong = []
    for stage, entry in now.items():
        old = before.get(stage)
        if old is None:
            wrong.append(f"{stage}: not in stages.lock")
        elif old["code"] != entry["code"] and old["version"] == entry["version"]:
            wrong.append(f"{stage}: its code changed; raise VERSION, or accept it as giving the same bytes")
        elif old != entry:
            wrong.append(f"{stage}: VERSION {old['version']} → {entry['version']} is not in stages.lock yet")
    return wrong


def main() -> None:
    """Show what is not accepted (exit 1), or accept it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--accept", action="store_true", help="write stages.lock as the code stands now")
    if parser.parse_args().accept:
        LOCK.write_text(json.dumps(current(), indent=1) + "\n", encoding="utf-8")
        return
    wrong = unaccepted(current(), locked())
    sys.stdout.write("".join(f"{line}\n" for line in wrong))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
