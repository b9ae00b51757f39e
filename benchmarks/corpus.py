"""The corpus stages beside their peers, per core-second, on the same text, in one run.

    python benchmarks/corpus.py [--megabytes 110] [--rounds 3] [--peer-rounds 1]       # 20 minutes on two cores

One thread, one worker. Each of the peers' steps is a process of its own, and so is each run of our stages. `tokenize` over
all of the text, which stands beside the peer's, has a process of its own too: nothing is loaded before its clock starts.
CPU seconds are those of the step, without imports. Ours are whole stages with their store: files written, fsynced and
digested. A peer's step reads and writes what it would. The whole way is, of ours, ingest to pack; of datatrove, its four
filters, MinHash and tokens, added up (it does not pack), each for as many bytes as our stage of its kind was given: its
steps are measured on all of the text, and what a step before drops costs the next nothing. With --peer-megabytes the
peers get the first of the text and half of that, and their time for all is by the slope between the two, so that what
a step costs whatever it is given is counted once.
Packing is measured on a billion tokens: this text's shards as often as that takes, as if so many slices had been read.
The peers' environment (peers.py) is made on the first run. Prints a Markdown table and a JSON line.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
import platform
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
DATA = Path(os.environ.get("ONWARD_TEST_DATA", ROOT.parent / "shared" / "data"))
STAGES = ("ingest", "dedup", "filter", "decontaminate", "tokenize", "pack")
PEERS = {"dedup": "dedup", "filter": "filters", "tokenize": "map", "tokens": "tokens"}
SAME = {
    "dedup": "dedup",
    "filter": "filter",
    "tokens": "tokenize",
}  # a peer's step on the whole way: our stage
PACKED_TOKENS = 1_000_000_000
GOALS = {"dedup": 40, "filter": 30, "tokenize": 12, "whole": 30}


# ---- what is worked on ----------------------------------------------------------------------------------------


def write_text(target: Path, megabytes: float) -> int:
    """Real English, as one Parquet file of row groups of 1,000 documents; its bytes of text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts: list[str] = []
    size = 0
    for path in sorted([*(DATA / "edu").glob("*.parquet"), *(DATA / "general").glob("*.parquet")]):
        for text in pq.read_table(path, columns=["text"])["text"].to_pylist():
            if size >= megabytes * 1e6:
                break
            texts.append(text)
            size += len(text.encode())
    table = pa.table({"id": [str(number) for number in range(len(texts))], "text": pa.array(texts)})
    pq.write_table(table, target, row_group_size=1000, compression="zstd")
    return size


def write_tokenizer(target: Path) -> None:
    """GPT-2's."""
    target.mkdir()
    shutil.copy(DATA / "tokenizers" / "gpt2" / "tokenizer.json", target)
    facts = {"eos_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (target / "tokenizer_config.json").write_text(json.dumps(facts))


# ---- ours -----------------------------------------------------------------------------------------------------


def our_steps(home: Path, workers: int) -> dict[str, dict[str, Any]]:
    """Every stage in turn over the text in `home`: {stage: {cpu, wall, tokens}} and the digests of what they made."""
    from storage.artifact import Input
    from storage.testing import artifact_of
    from storage.workers import Workers
    from tasks.corpus import decontaminate, dedup, filter, ingest, pack, tokenize
    from tasks.corpus.digests import FileDigests
    from tasks.corpus.sources import IngestConfig, SourceConfig, plan_slice

    pool = Workers(workers) if workers > 1 else None
    if pool:  # imports are made before the clock starts, as in this process
        for _ in pool.run((str(number), imported, ()) for number in range(workers)):
            pass
    store = home / f"store-{workers}-{os.getpid()}"
    found: dict[str, dict[str, Any]] = {}

    def timed(module: Any, config: Any, inputs: Callable[[], Any], name: str = "") -> Any:
        cpu, wall = spent(), time.monotonic()
        made = artifact_of(module, config, inputs(), store, pool)
        digests = {name: part.digest for name, part in made.manifest.parts.items()}
        found[name or module.STAGE] = {
            "wall": time.monotonic() - wall,
            "cpu": spent() - cpu,
            "digests": digests,
            "tokens": made.stats.get("tokens"),
            "bytes": made.stats.get("bytes_in"),
        }
        return made

    source = SourceConfig(name="real", role="domain", weight=1.0, files=(str(home / "text.parquet"),))
    config = IngestConfig.of(source, slice_bytes=10**12, seed=0, max_bad_fraction=0.01)
    store.mkdir()
    names = ("tokenizer.json", "tokenizer_config.json")
    digest = hashlib.sha256((home / "tokenizer" / names[0]).read_bytes()).hexdigest()
    tokenizer = Input("base", digest, "tokenizer", digest, home / "tokenizer", names)

    def plan() -> Any:
        planned = plan_slice(config, source, None, home, FileDigests(store / "digests.sqlite"))
        assert planned is not None
        plans.append(planned)
        return planned.inputs

    plans: list[Any] = []
    first = plan_slice(config, source, None, home, FileDigests(store / "digests.sqlite"))
    assert first is not None
    read = timed(ingest, first.config, plan)
    kept = timed(dedup, dedup.DedupConfig(), lambda: dedup.DedupInputs(read.part("documents")))
    four = filter.FilterConfig(language="any", pii="off")  # the families that the peer is asked for
    good = timed(filter, four, lambda: filter.FilterInputs(kept.part("documents")))
    clean = timed(
        decontaminate,
        decontaminate.DecontaminateConfig(holdout_fraction=0.0),
        lambda: decontaminate.DecontaminateInputs(good.part("documents"), (), True),
    )
    tokens = timed(
        tokenize,
        tokenize.TokenizeConfig(),
        lambda: tokenize.TokenizeInputs(clean.part("documents"), tokenizer),
    )
    for name, times in (("pack", 1), ("pack_billion", -(-PACKED_TOKENS // tokens.stats["tokens"]))):
        sequences = int(tokens.stats["tokens"]) * times * 99 // 100 // 1024
        given = (tokens.part("tokens"),) * times  # as if so many slices had been read
        timed(
            pack,
            pack.PackConfig(sources=(pack.SourceWeight(name="real", weight=1.0),), sequences=sequences),
            lambda given=given: pack.PackInputs({"real": given}),  # type: ignore[misc]
            name,
        )
    if not pool:  # of all the text, as the peer has it, and as it: in a process that has no tokenizer yet
        asked = home / f"tokenize-{os.getpid()}.pickle"
        asked.write_bytes(pickle.dumps((read.part("documents"), tokenizer)))
        found["tokenize_all"] = ask([sys.executable, __file__, "--tokenize", asked, home / "store-tokenize"])
    if pool:
        pool.close()
    make_writable(store)
    shutil.rmtree(store)
    return found


def tokenize_alone(asked: Path, store: Path) -> dict[str, Any]:
    """Stage `tokenize` over the documents and with the tokenizer in `asked`, in this process, which did nothing before."""
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
    """In a worker: what a stage imports; long enough for another worker to take the next call."""
    from tasks.corpus import decontaminate, dedup, filter, ingest, pack, tokenize  # noqa: F401

    time.sleep(2)


def make_writable(store: Path) -> None:
    """Artifacts are read-only."""
    for path in (store, *store.rglob("*")):
        if path.is_dir():
            path.chmod(0o755)


def spent() -> float:
    """CPU seconds of this process and of children that have ended."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in both)


# ---- the run --------------------------------------------------------------------------------------------------


def ask(command: list[Any]) -> Any:
    """What a process prints as its last line. One thread, unless it has workers."""
    threads = dict.fromkeys(("RAYON_NUM_THREADS", "POLARS_MAX_THREADS", "OMP_NUM_THREADS"), "1")
    answer = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, **threads, "ARROW_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    if answer.returncode:
        raise SystemExit(f"{command} failed:\n{answer.stderr[-4000:]}")
    return json.loads(answer.stdout.splitlines()[-1])


def median(values: list[float]) -> float:
    return statistics.median(values)


def compare(
    home: Path, size: int, rounds: int, peer_rounds: int, peer_megabytes: float | None
) -> dict[str, Any]:
    """Ours and theirs, taking turns. With `peer_megabytes` peers are given the first of the text, and half of that."""
    from peers import environment

    python, given = environment(), {size: home / "text.parquet"}
    if peer_megabytes is not None:
        given = {}
        for megabytes in (peer_megabytes / 2, peer_megabytes):
            part = home / f"peer-{megabytes:g}" / "text.parquet"
            part.parent.mkdir()
            given[write_text(part, megabytes)] = part
    ours: list[Any] = []
    theirs: dict[str, dict[int, list[float]]] = {name: {some: [] for some in given} for name in PEERS}
    for number in range(max(rounds, peer_rounds)):
        if number < rounds:
            ours.append(ask([sys.executable, __file__, "--ours", home, 1]))
        for name, step in PEERS.items() if number < peer_rounds else ():
            for some, part in given.items():
                work = home / f"peer-{name}-{number}"
                work.mkdir()
                script = ROOT / "benchmarks" / "corpus_peers.py"
                asked = ask([python, script, step, part, home / "tokenizer", work])
                theirs[name][some].append(asked["cpu"])
                shutil.rmtree(work)
    two = ask([sys.executable, __file__, "--ours", home, 2])
    cpu = {stage: median([one[stage]["cpu"] for one in ours]) for stage in ours[0]}
    peer = {
        name: at_size({some: median(all_) for some, all_ in parts.items()}, size)
        for name, parts in theirs.items()
    }
    bytes_in = {stage: int(ours[0][stage]["bytes"]) for stage in SAME.values()}
    whole, whole_peer = sum(cpu[stage] for stage in STAGES), whole_way(peer, bytes_in, size)
    walls = [sum(one[stage]["wall"] for stage in STAGES) for one in (ours[-1], two)]
    return {
        "bytes": size,
        "rows": {
            "dedup": (cpu["dedup"], peer["dedup"]),
            "filter": (cpu["filter"], peer["filter"]),
            "tokenize": (cpu["tokenize_all"], peer["tokenize"]),
            "whole": (whole, whole_peer),
        },
        "cpu": cpu,
        "peer_cpu": peer,
        "bytes_in": bytes_in,
        "packed_tokens_per_core_second": ours[0]["pack_billion"]["tokens"] / cpu["pack_billion"],
        "two_workers": walls[0] / walls[1],
        "same_bytes": all(ours[0][stage]["digests"] == two[stage]["digests"] for stage in STAGES),
    }


def at_size(seconds: dict[int, float], size: int) -> float:
    """Seconds for `size` bytes by those for one size or two: beyond the larger by the slope between them."""
    (small, few), (large, many) = min(seconds.items()), max(seconds.items())
    if large == small:
        return many * size / large
    return many + (many - few) / (large - small) * (size - large)


def whole_way(peer: dict[str, float], bytes_in: dict[str, int], size: int) -> float:
    """Seconds of the peer's steps, which were each given `size` bytes, for what our stages of their kind were given."""
    return sum(peer[step] * bytes_in[stage] / size for step, stage in SAME.items())


def heading(size: int, rounds: int, peer_megabytes: float | None) -> str:
    """What was measured, of what, on what."""
    from peers import CORPUS

    cpus = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()) or [platform.machine()]
    commit = subprocess.run(
        ["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    return (
        f"`make bench-corpus` · {len(cpus)} cores of {cpus[0]} · "
        f"{time.strftime('%Y-%m-%d')} · commit {commit} · Python {platform.python_version()}, {', '.join(CORPUS[:3])} · "
        f"{size / 1e6:.0f} MB of English, median of {rounds}"
        + (
            f"; peers on the first {peer_megabytes:g} MB of it and on half of that"
            if peer_megabytes is not None
            else ""
        )
    )


def table(found: dict[str, Any]) -> str:
    """As in results.md."""
    lines = ["| step | ours, MB per core-second | peer's | ratio | goal |", "| --- | --- | --- | --- | --- |"]
    peers = {"dedup": "datatrove", "filter": "datatrove", "tokenize": "datasets.map", "whole": "datatrove"}
    size = found["bytes"] / 1e6
    for name, (own, other) in found["rows"].items():
        lines.append(
            f"| {name} | {size / own:.1f} | {size / other:.2f} ({peers[name]}) | {other / own:.1f} | {GOALS[name]} |"
        )
    packed = found["packed_tokens_per_core_second"] / 1e6
    lines.append(f"| pack | {packed:,.0f} million tokens | | | 500 million |")
    given = ", ".join(f"{stage} {some / 1e6:.1f}" for stage, some in found["bytes_in"].items())
    lines.append(f"| MB that stages were given on the whole way | {given} | the same | | |")
    lines.append(f"| two workers | {found['two_workers']:.2f} × one | | | 1.8 |")
    lines.append(f"| bytes with two workers | {'the same' if found['same_bytes'] else 'OTHERS'} | | | |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=110)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer-rounds", type=int, default=1)
    parser.add_argument(
        "--peer-megabytes",
        type=float,
        help="give peers only so much of the text, and half of that: their time for all is by the slope",
    )
    parser.add_argument("--ours", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--tokenize", nargs=2, type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.ours:
        print(json.dumps(our_steps(Path(chosen.ours[0]), int(chosen.ours[1]))))
        return
    if chosen.tokenize:
        print(json.dumps(tokenize_alone(*chosen.tokenize)))
        return
    with tempfile.TemporaryDirectory(prefix="onward-corpus-") as directory:
        home = Path(directory)
        size = write_text(home / "text.parquet", chosen.megabytes)
        write_tokenizer(home / "tokenizer")
        found = compare(home, size, chosen.rounds, chosen.peer_rounds, chosen.peer_megabytes)
    print(heading(size, chosen.rounds, chosen.peer_megabytes), table(found), sep="\n\n")
    print(json.dumps({**found, "python": platform.python_version(), "machine": platform.processor()}))


if __name__ == "__main__":
    main()
