"""Times our stages over the corpus.

    python benchmarks/corpus_ours.py steps HOME WORKERS            # every stage over HOME/text.parquet, in one process
    python benchmarks/corpus_ours.py later HOME WORKERS            # the same, after a slice of HOME/first.parquet
    python benchmarks/corpus_ours.py tokenize ASKED.pickle STORE   # tokenize alone, in a fresh process

corpus.py writes HOME and starts the first two. CPU seconds are those of this process and its children, without
imports. They cover whole stages with their store: files written, fsynced and digested. Prints a JSON line.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
PACKED_TOKENS = 1_000_000_000


@dataclass
class Steps:
    """Runs our stages one after another. `found` is {stage: {cpu, wall, tokens, bytes, digests}}."""

    home: Path
    text: str
    pool: Any
    found: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.store = self.home / f"store-{self.text}-{os.getpid()}"
        self.store.mkdir()

    def take(self, module: Any, config: Any, inputs: Callable[[], Any], name: str = "") -> Any:
        """Run a stage and time it, including the search for its inputs. Returns its artifact. `name`: record it by
        this name.
        """
        from storage.testing import artifact_of

        cpu, wall = spent(), time.monotonic()
        made = artifact_of(module, config, inputs(), self.store, self.pool)
        self.found[name or module.STAGE] = {
            "wall": time.monotonic() - wall,
            "cpu": spent() - cpu,
            "digests": {name: part.digest for name, part in made.manifest.parts.items()},
            "tokens": made.stats.get("tokens"),
            "bytes": made.stats.get("bytes_in"),
        }
        return made

    def close(self) -> None:
        """Remove everything that was made."""
        make_writable(self.store)
        shutil.rmtree(self.store)


def our_steps(home: Path, workers: int, later: bool = False) -> dict[str, dict[str, Any]]:
    """Every stage in turn over the text in `home`: {stage: {cpu, wall, tokens, bytes, digests}}.

    `later`: as for a slice that is not the first of a run, so processes have loaded what they need, such as
    tokenizers.
    """
    from storage.workers import Workers

    pool = Workers(workers) if workers > 1 else None
    if pool:  # workers import before the clock starts, as this process does
        for _ in pool.run((str(number), imported, ()) for number in range(workers)):
            pass
    if later:
        one_slice(home, "first.parquet", pool)
    found = one_slice(home, "text.parquet", pool, tokenize_alone=not pool and not later)
    if pool:
        pool.close()
    return found


def one_slice(home: Path, text: str, pool: Any, tokenize_alone: bool = False) -> dict[str, dict[str, Any]]:
    """Every stage in turn over one text, as the only slice of a temporary store."""
    from tasks.corpus import tokenize

    steps, tokenizer = Steps(home, text, pool), tokenizer_of(home)
    read = ingested(steps)
    clean = cleaned(steps, read)
    tokens = steps.take(
        tokenize,
        tokenize.TokenizeConfig(),
        lambda: tokenize.TokenizeInputs(clean.part("documents"), tokenizer),
    )
    pack_all(steps, tokens)
    if tokenize_alone:  # like the peer: on all the text, in a fresh process
        asked = home / f"tokenize-{os.getpid()}.pickle"
        asked.write_bytes(pickle.dumps((read.part("documents"), tokenizer)))
        alone = [sys.executable, __file__, "tokenize", asked, home / "store-tokenize"]
        steps.found["tokenize_all"] = ask(alone)
    steps.close()
    return steps.found


def tokenizer_of(home: Path) -> Any:
    """The tokenizer in `home` as an input of `tokenize`."""
    from storage.artifact import Input

    names = ("tokenizer.json", "tokenizer_config.json")
    digest = hashlib.sha256((home / "tokenizer" / names[0]).read_bytes()).hexdigest()
    return Input("base", digest, "tokenizer", digest, home / "tokenizer", names)


def ingested(steps: Steps) -> Any:
    """The text in `home` through `ingest`. Its time includes planning the slice."""
    from tasks.corpus import ingest
    from tasks.corpus.reading.digests import FileDigests
    from tasks.corpus.reading.slice_plan import plan_slice
    from tasks.corpus.reading.sources import IngestConfig, SourceConfig

    files = (str(steps.home / steps.text),)
    source = SourceConfig(name="real", role="domain", weight=1.0, files=files)
    config = IngestConfig.of(source, slice_bytes=10**12, seed=0, max_bad_fraction=0.01)

    def plan() -> Any:
        planned = plan_slice(config, source, None, steps.home, FileDigests(steps.store / "digests.sqlite"))
        assert planned is not None
        return planned

    return steps.take(ingest, plan().config, lambda: plan().inputs)


def cleaned(steps: Steps, read: Any) -> Any:
    """Documents through `dedup`, `filter` and `decontaminate`."""
    from tasks.corpus import decontaminate, dedup, filter

    kept = steps.take(dedup, dedup.DedupConfig(), lambda: dedup.DedupInputs(read.part("documents")))
    four = filter.FilterConfig(language="any", pii="off")  # the families that the peer runs
    good = steps.take(filter, four, lambda: filter.FilterInputs(kept.part("documents")))
    return steps.take(
        decontaminate,
        decontaminate.DecontaminateConfig(holdout_fraction=0.0),
        lambda: decontaminate.DecontaminateInputs(good.part("documents"), (), True),
    )


def pack_all(steps: Steps, tokens: Any) -> None:
    """The tokens through `pack`: once, and then repeated to a billion, as if so many slices had been read."""
    from tasks.corpus import pack

    for name, times in (("pack", 1), ("pack_billion", -(-PACKED_TOKENS // tokens.stats["tokens"]))):
        sequences = int(tokens.stats["tokens"]) * times * 99 // 100 // 1024
        config = pack.PackConfig(sources=(pack.SourceWeight(name="real", weight=1.0),), sequences=sequences)
        given = (tokens.part("tokens"),) * times
        steps.take(pack, config, lambda given=given: pack.PackInputs({"real": given}), name)  # type: ignore[misc]


def tokenize_alone(asked: Path, store: Path) -> dict[str, Any]:
    """Stage `tokenize` with the documents and the tokenizer in `asked`, in this fresh process."""
    from storage.testing import artifact_of
    from tasks.corpus import tokenize

    documents, tokenizer = pickle.loads(asked.read_bytes())
    loaded = tokenize.loaded.cache_info().currsize + tokenize.tools.cache_info().currsize
    cpu, wall = spent(), time.monotonic()
    made = artifact_of(
        tokenize, tokenize.TokenizeConfig(), tokenize.TokenizeInputs(documents, tokenizer), store
    )
    found = {"wall": time.monotonic() - wall, "cpu": spent() - cpu, "tokens": made.stats["tokens"]}
    make_writable(store)
    shutil.rmtree(store)
    return {**found, "tokenizers_before": loaded}


def imported() -> None:
    """In a worker: import what a stage imports. It takes long enough for the other worker to take the next call."""
    from tasks.corpus import decontaminate, dedup, filter, ingest, pack, tokenize  # noqa: F401

    time.sleep(2)


def make_writable(store: Path) -> None:
    """Make files writable, because artifacts are read-only."""
    for path in (store, *store.rglob("*")):
        if path.is_dir():
            path.chmod(0o755)


def spent() -> float:
    """CPU seconds of this process and of its ended children."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in both)


def ask(command: list[Any]) -> Any:
    """The JSON in the last line that a process prints. It has one thread, unless it has workers."""
    threads = dict.fromkeys(("RAYON_NUM_THREADS", "POLARS_MAX_THREADS", "OMP_NUM_THREADS"), "1")
    answer = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, **threads, "ARROW_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        encoding="utf-8",
    )
    if answer.returncode:
        raise SystemExit(f"{command} failed:\n{answer.stderr[-4000:]}")
    return json.loads(answer.stdout.splitlines()[-1])


def main() -> None:
    what, first, second = sys.argv[1:]
    if what == "tokenize":
        print(json.dumps(tokenize_alone(Path(first), Path(second))))
    else:
        print(json.dumps(our_steps(Path(first), int(second), later=what == "later")))


if __name__ == "__main__":
    main()
