"""Makes the artifacts of a configuration again, and compares the digests of all parts before and after.

    python benchmarks/same_bytes.py configs/demo.yaml             the whole run: onward run CONFIG --force all
    python benchmarks/same_bytes.py --store stores/demo --pages   only the reports and data pages

Use it to check that a change of the code changes no bytes. The store must hold a whole run (`make demo`).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from flows.config import load_config
from flows.inspect.reports import request_of
from storage.artifact import Artifact
from storage.store import Store
from tasks.pages.data import data
from tasks.pages.report import report

ROOT = Path(__file__).resolve().parents[1]
Digests = dict[tuple[str, str, str], str]
"""(stage, key, part) → the digest of the part's files."""


def digests(artifacts: Iterator[Artifact]) -> Digests:
    """The digests of every part, from the manifests of the artifacts."""
    return {
        (one.stage, one.key, name): part.digest
        for one in artifacts
        for name, part in one.manifest.parts.items()
    }


def pages_again(store: Store) -> Iterator[Artifact]:
    """Make each report and data page of a store again with this code. The inputs of the pages must still be there."""
    for module in (report, data):
        for artifact in list(store.artifacts(module.STAGE)):
            request = request_of(store, artifact)
            if request.key != artifact.key:
                sys.stdout.write(
                    f"{module.STAGE} {artifact.key[:16]} has another key now: {request.key[:16]}\n"
                )
            yield store.ensure(request, force=True).artifact


def run_again(config: Path) -> None:
    """Run a configuration, making every stage again."""
    command = [sys.executable, "-m", "flows.cli", "run", str(config), "--force", "all"]
    subprocess.run(command, cwd=ROOT, check=False)  # it fails if bytes differ, which is reported below


def differing(before: Digests, after: Digests) -> list[str]:
    """A line for each part whose bytes differ from before, or that is gone."""
    return [
        f"{stage} {key[:16]} part {part}: {digest[:16]} → {(after.get((stage, key, part)) or 'gone')[:16]}"
        for (stage, key, part), digest in before.items()
        if after.get((stage, key, part)) != digest
    ]


def main() -> None:
    """Compare. The exit code is 1 if something differs or nothing was compared."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "config", type=Path, nargs="?", help="the configuration of a run that is in its store"
    )
    parser.add_argument("--store", type=Path, help="the store, if no configuration is given")
    parser.add_argument("--pages", action="store_true", help="only reports and data pages")
    given = parser.parse_args()
    if given.config is None and not (given.store and given.pages):
        parser.error("name a configuration, or a store with --pages")
    store = Store(given.store or load_config(given.config).store_path)
    if given.pages:
        stages = (report.STAGE, data.STAGE)
        before = digests(one for stage in stages for one in store.artifacts(stage))
        after = digests(pages_again(store))
    else:
        before = digests(store.artifacts())
        run_again(given.config)
        after = digests(store.artifacts())
    found = differing(before, after)
    for line in found:
        sys.stdout.write(f"{line}\n")
    sys.stdout.write(f"{len(before) - len(found)} of {len(before)} parts have the same bytes\n")
    sys.exit(1 if found or not before else 0)


if __name__ == "__main__":
    main()
