"""Run as a process of its own, so that the real client asks the hub that its environment names: slices of a source.

    python -m tests.support.corpus.hub_slices '{"source": {…}, "store": …, "slice_bytes": …, "slices": …}'

Prints a JSON line for each slice (its key and the digests of its parts), and at the end an error, or the peak of memory.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from storage.artifact import Artifact
from storage.errors import OnwardError
from storage.store import Making, Request, Store
from storage.workers import Workers
from tasks.corpus import ingest
from tasks.corpus.ingest import IngestConfig, SourceConfig, plan_slice
from tasks.corpus.reading import remote
from tasks.corpus.reading.digests import FileDigests
from tasks.corpus.reading.hub import remembered_in


def main(wanted: dict[str, Any]) -> int:
    source = SourceConfig(**wanted["source"])
    config = IngestConfig.of(
        source, slice_bytes=wanted["slice_bytes"], seed=0, max_bad_fraction=wanted.get("bad", 0.01)
    )
    store = Store(Path(wanted["store"]))
    remembered = remembered_in(store.root)
    if "retries" in wanted:
        remote.RETRIES, remote.FIRST_WAIT_SECONDS = wanted["retries"], 0.05
    for name in ("BLOCK_BYTES", "SILENCE_SECONDS"):
        setattr(remote, name, wanted.get(name, getattr(remote, name)))
    made: list[Artifact] = []
    with Workers(wanted.get("workers", 1)) as workers:
        try:
            while len(made) < wanted.get("slices", 1000):
                cursor = made[-1].part("cursor") if made else None
                plan = plan_slice(config, source, cursor, Path(), FileDigests(None), remembered)
                if plan is None:
                    break
                outcome = store.ensure(Request(ingest, config, plan.inputs), Making(workers=workers))
                made.append(outcome.artifact)
                parts = {name: part.digest for name, part in made[-1].manifest.parts.items()}
                told = {
                    "key": made[-1].key,
                    "state": outcome.state,
                    "path": str(made[-1].path),
                    "parts": parts,
                }
                print(json.dumps(told), flush=True)
        except OnwardError as error:
            print(json.dumps({"error": type(error).__name__, "text": str(error)}), flush=True)
            return 1
    status = Path("/proc/self/status").read_text()  # the resource module's figure begins with the parent's
    peak = re.search(r"VmHWM:\s*(\d+) kB", status)
    assert peak is not None
    print(json.dumps({"peak": int(peak[1]) * 1024}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
