"""`stages.lock`: each stage's VERSION, those of its components, and the digest of the code that shapes its bytes.

A changed digest under the same versions means that keys no longer tell old output from new. Either raise the VERSION, or
that of the component whose output changed (docs/upgrades.md), or, where the output is truly the same, accept the new
digest: `make accept-stages`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

from storage.code import ROOT, stage_code_digest
from storage.keys import difference
from tasks.stages import TABLE

LOCK = ROOT / "stages.lock"


Entry = dict[str, Any]
"""Of a stage: `version`, `code`, and `components`: the versions above 1, where there are any."""


def current() -> dict[str, Entry]:
    """Versions and code digest of every stage as the code stands now, by the stage's name."""
    found = {}
    for stage in TABLE:
        module = importlib.import_module(stage.module)
        entry: Entry = {"version": module.VERSION, "code": stage_code_digest(module)}
        if raised := {n: v for n, v in getattr(module, "COMPONENTS", {}).items() if v > 1}:
            entry["components"] = raised
        found[module.STAGE] = entry
    return dict(sorted(found.items()))


def locked(path: Path = LOCK) -> dict[str, Entry]:
    """What `stages.lock` holds."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def unaccepted(now: dict[str, Entry], before: dict[str, Entry]) -> list[str]:
    """Stages whose code changed and which were neither given a new version nor accepted; and those unknown to the lock."""
    wrong = []
    for stage, entry in now.items():
        old = before.get(stage)
        if old is None:
            wrong.append(f"{stage}: not in stages.lock")
        elif old["code"] != entry["code"] and _versions(old) == _versions(entry):
            wrong.append(
                f"{stage}: its code changed; raise VERSION, or that of the component that changed (COMPONENTS), or "
                "accept it as giving the same bytes"
            )
        elif old != entry:
            raised = ", ".join(str(one) for one in difference(_versions(old), _versions(entry)))
            wrong.append(f"{stage}: {raised} is not in stages.lock yet")
    return wrong


def _versions(entry: Entry) -> dict[str, Any]:
    return {"VERSION": entry["version"], **entry.get("components", {})}


def main() -> None:
    """Show the stages that are not accepted (exit code 1), or accept them."""
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
