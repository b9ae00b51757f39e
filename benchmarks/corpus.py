"""The corpus stages compared with their peers, per core-second, on the same text, in one run.

    python benchmarks/corpus.py [--megabytes 110] [--rounds 3] [--peer-rounds 1]       # 20 minutes on two cores

One thread, one worker. Each step of a peer (corpus_peers.py) and each run of our stages (corpus_ours.py) is a
process of its own. `tokenize` over all the text, which is compared with the peer's, also has its own process:
nothing is loaded before its clock starts. CPU seconds are those of the step, without imports. Ours are whole stages
with their store: files written, fsynced and digested. A peer's step reads and writes its own files.

The whole way is ingest to pack for us. For datatrove it is its four filters, MinHash and tokens, added up (it does
not pack). Each peer step is measured on all the text and scaled to the bytes that our stage of its kind was given,
so that dropping text early costs the peer nothing. With --peer-megabytes, peers get the first part of the text and
half of that part. The slope between the two gives their time for all the text, so that fixed costs count once.

Two workers and one worker take turns on a slice that is not the first of its run: wall seconds, medians of the
rounds. Packing is measured on a billion tokens, by repeating this text's shards as if so many slices had been read.
The peers' environment (peers.py) is made on the first run. Prints a Markdown table and a JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tasks import stages

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
OURS = ROOT / "benchmarks" / "corpus_ours.py"
DATA = Path(os.environ.get("ONWARD_TEST_DATA", ROOT.parent / "shared" / "data"))
STAGES = (*stages.CORPUS[1:], "pack")
PEERS = {"dedup": "dedup", "filter": "filters", "tokenize": "map", "tokens": "tokens"}
SAME = {
    "dedup": "dedup",
    "filter": "filter",
    "tokens": "tokenize",
}  # a peer's step: our stage of its kind
FIRST_MEGABYTES = 80
"""Size of the slice before the one that workers are measured on. It gives each worker a shard of every stage."""
GOALS = {"dedup": 40, "filter": 30, "tokenize": 12, "whole": 30}


# ---- what is worked on ----------------------------------------------------------------------------------------


def write_text(target: Path, megabytes: float) -> int:
    """Write real English text as one Parquet file with row groups of 1,000 documents. Returns the bytes of text."""
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
    """Write GPT-2's tokenizer."""
    target.mkdir()
    shutil.copy(DATA / "tokenizers" / "gpt2" / "tokenizer.json", target)
    facts = {"eos_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (target / "tokenizer_config.json").write_text(json.dumps(facts), encoding="utf-8")


# ---- the run --------------------------------------------------------------------------------------------------


def median(values: list[float]) -> float:
    return statistics.median(values)


def compare(
    home: Path, size: int, rounds: int, peer_rounds: int, peer_megabytes: float | None
) -> dict[str, Any]:
    """Ours and theirs, taking turns. With `peer_megabytes`, peers get the first part of the text and half of that
    part.
    """
    from corpus_ours import ask
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
            ours.append(ask([sys.executable, OURS, "steps", home, 1]))
        for name, step in PEERS.items() if number < peer_rounds else ():
            for some, part in given.items():
                work = home / f"peer-{name}-{number}"
                work.mkdir()
                script = ROOT / "benchmarks" / "corpus_peers.py"
                asked = ask([python, script, step, part, home / "tokenizer", work])
                theirs[name][some].append(asked["cpu"])
                shutil.rmtree(work)
    later, beside = scaling(home, rounds)
    cpu = {stage: median([one[stage]["cpu"] for one in ours]) for stage in ours[0]}
    peer = {
        name: at_size({some: median(all_) for some, all_ in parts.items()}, size)
        for name, parts in theirs.items()
    }
    bytes_in = {stage: int(ours[0][stage]["bytes"]) for stage in SAME.values()}
    whole, whole_peer = sum(cpu[stage] for stage in STAGES), whole_way(peer, bytes_in, size)
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
        "two_workers": median(later[1]["walls"]) / median(later[2]["walls"]),
        "two_workers_by_stage": {
            stage: round(median(later[1][stage]) / median(later[2][stage]), 2) for stage in STAGES
        },
        "two_processes": 2 * median(later[1]["walls"]) / median(beside),
        "same_bytes": all(found["digests"] == [digests(ours[0])] * rounds for found in later.values()),
    }


def scaling(home: Path, rounds: int) -> tuple[dict[int, dict[str, Any]], list[float]]:
    """Wall seconds with one worker and with two, taking turns: {workers: {walls, digests, stage: seconds}}, by
    rounds.

    Also the wall seconds of two simultaneous processes with one worker each: the most that the machine's two cores
    can give. The slice is not the first of its run, so everything that a process loads once, such as tokenizers, is
    loaded.
    """
    from corpus_ours import ask

    write_text(home / "first.parquet", FIRST_MEGABYTES)
    later: dict[int, dict[str, Any]] = {1: defaultdict(list), 2: defaultdict(list)}
    beside: list[float] = []
    for _ in range(rounds):
        for workers, found in later.items():
            steps = ask([sys.executable, OURS, "later", home, workers])
            found["walls"].append(wall_of(steps))
            found["digests"].append(digests(steps))
            for stage in STAGES:
                found[stage].append(steps[stage]["wall"])
        with ThreadPoolExecutor(2) as pool:
            beside += map(wall_of, pool.map(ask, [[sys.executable, OURS, "later", home, 1]] * 2))
    return later, beside


def wall_of(steps: dict[str, Any]) -> float:
    """Wall seconds of all stages together."""
    return float(sum(steps[stage]["wall"] for stage in STAGES))


def digests(steps: dict[str, Any]) -> list[Any]:
    """Digests of everything that the stages made."""
    return [steps[stage]["digests"] for stage in STAGES]


def at_size(seconds: dict[int, float], size: int) -> float:
    """Seconds for `size` bytes from the seconds for one or two sizes; with two, extrapolated by the slope between
    them.
    """
    (small, few), (large, many) = min(seconds.items()), max(seconds.items())
    if large == small:
        return many * size / large
    return many + (many - few) / (large - small) * (size - large)


def whole_way(peer: dict[str, float], bytes_in: dict[str, int], size: int) -> float:
    """Seconds of the peer's steps, scaled from `size` bytes to what our stages of their kind were given."""
    return sum(peer[step] * bytes_in[stage] / size for step, stage in SAME.items())


def heading(size: int, rounds: int, peer_megabytes: float | None) -> str:
    """What was measured, on which text and machine."""
    from peers import CORPUS

    cpus = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8")) or [
        platform.machine()
    ]
    commit = subprocess.run(
        ["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, encoding="utf-8"
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
    """The table for results.md."""
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
    by_stage = ", ".join(f"{stage} {ratio}" for stage, ratio in found["two_workers_by_stage"].items())
    lines.append(f"| two workers | {found['two_workers']:.2f} × one ({by_stage}) | | | 1.8 |")
    lines.append(f"| two processes of one worker each, at once | {found['two_processes']:.2f} × one | | | |")
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
        help="give peers only this much of the text, and half of it; the slope gives their time for all of it",
    )
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="onward-corpus-") as directory:
        home = Path(directory)
        size = write_text(home / "text.parquet", chosen.megabytes)
        write_tokenizer(home / "tokenizer")
        found = compare(home, size, chosen.rounds, chosen.peer_rounds, chosen.peer_megabytes)
    print(heading(size, chosen.rounds, chosen.peer_megabytes), table(found), sep="\n\n")
    print(json.dumps({**found, "python": platform.python_version(), "machine": platform.processor()}))


if __name__ == "__main__":
    main()
