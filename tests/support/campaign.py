"""A campaign: one byte is flipped in each kind of file of a finished store, and the run is made again, which must heal it.

The run is the DAG, made by the store alone (driver.py), in this process.
"""

from __future__ import annotations

import os
import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flows.config import load_config
from flows.dag.pretrain import adapt
from flows.dag.requests import Requests
from flows.inspect.verify import verify
from storage.atomic import make_writable
from storage.errors import OnwardError
from storage.store import Store
from storage.workers import Workers
from tests.support.driver import builder

_NUMBERED = re.compile(r"/?[a-z]*-?\d{4,}[^/]*(?=/)|tokens-\d+")


@dataclass
class Outcome:
    """What became of one flip: `healed` (said, and the bytes are the undisturbed ones), `harmless`, `refused` (with the
    way out), or `not met` by a read."""

    kind: str
    what: str
    said: str = ""


@dataclass
class Campaign:
    """A finished store in `home`, made by the configuration `config`; `ONWARD_HOME` is that home."""

    home: Path
    config: Path
    seed: int = 0
    outcomes: list[Outcome] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.root = self.home / "store"
        self.random = random.Random(self.seed)
        self.asked: set[str] = set()
        self.run([])
        verify(Store(self.root), repair=True)  # it reads all, so that every file is known
        self.calm = self.digests()

    def digests(self) -> dict[str, dict[str, str]]:
        """The digest of every part of every artifact."""
        return {
            f"{one.stage}/{one.key[:16]}": {name: part.digest for name, part in one.manifest.parts.items()}
            for one in Store(self.root).artifacts()
        }

    def kinds(self) -> dict[str, list[Path]]:
        """Every file of the store by its kind: the stage, and the file's name without numbers."""
        found: dict[str, list[Path]] = {}
        for artifact in Store(self.root).artifacts():
            if artifact.key not in self.asked:
                continue
            for path in sorted(artifact.path.rglob("*")):
                if path.is_file() and path.stat().st_size:
                    name = _NUMBERED.sub("", str(path.relative_to(artifact.path)))
                    found.setdefault(f"{artifact.stage} {name}", []).append(path)
        found["the digests"] = [self.root / ".digests"]
        return found

    def strike(self, kind: str, path: Path) -> Outcome:
        """Flip a byte, run again, and look at what is there. Raises AssertionError if bad bytes were kept silently."""
        facts = path.stat()
        make_writable(path.parent)
        raw = bytearray(path.read_bytes())
        raw[self.random.randrange(len(raw))] ^= 1 << self.random.randrange(8)
        path.write_bytes(raw)
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        said: list[str] = []
        outcome = Outcome(kind, "harmless")
        for _ in range(2):
            try:
                self.run(said)
                break
            except OnwardError as error:
                said.append(str(error))
                outcome.what = "refused"
        else:
            assert "again" in said[-1] or "onward " in said[-1], (
                f"{kind}: refused, but not what to do: {said[-1]}"
            )
        now = self.digests()
        assert {name: now.get(name) for name in self.calm} == self.calm, f"{kind}: other bytes"
        damaged = verify(Store(self.root)).damaged
        assert not damaged, f"{kind}: kept, {damaged}"
        if any("damaged" in line for line in said) and outcome.what == "harmless":
            outcome.what = "healed"
        outcome.said = said[0] if said else ""
        self.outcomes.append(outcome)
        return outcome

    def run(self, said: list[str]) -> None:
        """The run, from its beginning."""
        run = load_config(self.config)
        store = Store(run.store_path)

        def say(event: str, *words: str) -> None:
            if event == "warn":
                said.append(" ".join(words))
            elif event in ("find", "make"):
                self.asked.add(words[1])

        with Workers(1) as workers:
            adapt(Requests(run, store, warn=lambda line: None), builder(store, workers, say))


def figures(outcomes: Sequence[Outcome]) -> str:
    """How many kinds, and what became of the flips."""
    counted = Counter(one.what for one in outcomes)
    kinds = len({one.kind for one in outcomes})
    return f"{kinds} kinds, {len(outcomes)} flips: " + ", ".join(
        f"{count} {what}" for what, count in sorted(counted.items())
    )
