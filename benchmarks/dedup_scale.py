"""Dedup over millions of documents: seconds per slice, growth exponent, memory, and recall on planted copies.

    python benchmarks/dedup_scale.py [--documents 10M] [--slice 400K] [--words 100] [--directory DIR]

Synthetic documents go slice by slice through the real stage and its store, in one process with one thread. Before
each slice another process writes its documents; they are removed after the slice. Word j of document i is a
function of (i, j), by Zipf's law over 60,000 words, so a copy of any earlier document can be made. 1 in 100 is an
exact copy of a document drawn evenly from all before it. 1 in 20 is a copy with one of its 50 to 150 words changed
(Jaccard 0.80 to 0.93). 1 in 20 is a table: all tables have the same words and differ only in the numbers between
them.

Seconds are CPU seconds of the stage with its files written, synced and digested. The exponent is log10(T(n) / T(n /
10)) of one run. Memory is the largest resident set of the process, including mapped files. 10 million documents
(6.5 GB of text) need some 10 GB in DIR during the run; results.md has a run of one million. Prints a Markdown table
and a JSON line.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.update(
    dict.fromkeys(("RAYON_NUM_THREADS", "POLARS_MAX_THREADS", "OMP_NUM_THREADS", "ARROW_NUM_THREADS"), "1")
)

import numpy as np

VOCABULARY = 60_000
PIECE_BYTES = 32_000_000  # as ingest writes them
EXACT, NEAR = 0.01, 0.05  # shares of the documents that are planted copies
TABLES = 0.05  # share of the original documents that differ from each other only in numbers
_A, _B, _C = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


# ---- documents that are functions of their numbers --------------------------------------------------------------


def mixed(*numbers: Any) -> np.ndarray:
    """64 bits from the numbers, by SplitMix64's finaliser."""
    state = np.uint64(0)
    with np.errstate(over="ignore"):
        for number in numbers:
            state = (state + np.asarray(number).astype(np.uint64) + np.uint64(1)) * _A
            state = (state ^ (state >> np.uint64(30))) * _B
            state = (state ^ (state >> np.uint64(27))) * _C
            state = state ^ (state >> np.uint64(31))
    return np.atleast_1d(state)


def shares(*numbers: Any) -> np.ndarray:
    """The same bits as numbers from 0 to 1."""
    return (mixed(*numbers) >> np.uint64(11)) / float(1 << 53)


def kinds(documents: np.ndarray) -> np.ndarray:
    """0: an original; 1: an exact copy; 2: a near copy."""
    drawn = shares(documents, 1)
    found = np.where(drawn < EXACT, 1, np.where(drawn < EXACT + NEAR, 2, 0))
    return np.where(documents < 100, 0, found)


def origins(documents: np.ndarray) -> np.ndarray:
    """The original that each document copies, drawn evenly from all before it; an original is its own."""
    at = documents.copy()
    while (copies := np.flatnonzero(kinds(at))).size:
        at[copies] = (shares(at[copies], 2) * at[copies]).astype(np.int64)
    return at


def texts(documents: np.ndarray, words: int) -> Any:
    """The texts of documents, as an Arrow array."""
    import pyarrow as pa
    import pyarrow.compute as pc

    source, kind = origins(documents), kinds(documents)
    lengths = (words // 2 + mixed(source, 3) % np.uint64(words + 1)).astype(np.int64)
    first = np.concatenate([[0], np.cumsum(lengths)])
    places = np.arange(first[-1]) - np.repeat(first[:-1], lengths)
    drawn = shares(np.repeat(source, lengths), places, 4)
    ranks = (np.expm1(drawn * math.log(VOCABULARY + 1))).astype(np.int32)  # P(rank) about 1 / rank
    table = np.repeat(shares(source, 7) < TABLES, lengths)
    ranks = np.where(table, np.where(places % 2, places % 40, ranks + VOCABULARY), ranks).astype(np.int32)
    edited = np.flatnonzero(kind == 2)
    place = (shares(documents[edited], 5) * lengths[edited]).astype(np.int64)
    ranks[first[edited] + place] = (shares(documents[edited], 6) * VOCABULARY).astype(np.int32)
    words_of_all = [spelling(rank) for rank in range(VOCABULARY)]
    spelled = pa.array([*words_of_all, *map(str, range(VOCABULARY))])
    lists = pa.LargeListArray.from_arrays(pa.array(first), spelled.take(pa.array(ranks)))
    return pc.binary_join(lists, " ")


def spelling(rank: int) -> str:
    """A word of letters; rarer ranks get longer words."""
    letters = ""
    rank += 3
    while rank:
        rank, letter = divmod(rank, 12)
        letters += "aeiounrstlmd"[letter] + "bcdfghklmnprst"[(rank + letter) % 14]
    return letters


def write_slice(root: Path, begin: int, end: int, words: int) -> dict[str, Any]:
    """Write documents `begin` to `end` as ingest would. Returns their file names and the bytes of their text."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from tasks.corpus.documents import document_ids, write_documents

    made, files, size = np.arange(begin, end), [], 0
    per_file = max(1, round(PIECE_BYTES / (6.2 * words)))
    for number, low in enumerate(range(0, len(made), per_file)):
        own = made[low : low + per_file]
        text = texts(own, words).cast(pa.large_string())
        files.append(f"documents/{number:05d}/part.parquet")
        (root / files[-1]).parent.mkdir(parents=True)
        columns = {
            "id": pa.array(document_ids("synthetic", int(own[0]), len(own))),
            "source": pa.repeat(pa.scalar("synthetic"), len(own)),
            "text": text,
            "meta": pa.repeat(pa.scalar("{}"), len(own)),
        }
        write_documents(root / files[-1], pa.table(columns))
        size += pc.sum(pc.binary_length(text)).as_py()
    return {"files": files, "bytes": size}


# ---- the stage over them ----------------------------------------------------------------------------------------


def measure(documents: int, per_slice: int, words: int, home: Path) -> dict[str, Any]:
    """Run slice after slice. Returns the stage's seconds and what it found."""
    from storage.artifact import Chain, Input
    from storage.testing import artifact_of
    from tasks.corpus import dedup

    links: list[Input] = []
    slices: list[dict[str, Any]] = []
    for begin in range(0, documents, per_slice):
        end, root = min(begin + per_slice, documents), home / f"in-{begin}"
        order = [sys.executable, __file__, "--write", str(root), str(begin), str(end), str(words)]
        written = json.loads(subprocess.run(order, check=True, stdout=subprocess.PIPE).stdout)
        given = Input(
            "ingest", f"{begin:064d}", "documents", f"{begin}-{end}", root, tuple(written["files"]), {}
        )
        cpu, wall = time.process_time(), time.monotonic()
        inputs = dedup.DedupInputs(given, Chain(tuple(links)) if links else None)
        made = artifact_of(dedup, dedup.DedupConfig(), inputs, home / "store")
        slices.append(
            {
                "documents": end,
                "cpu": time.process_time() - cpu,
                "wall": time.monotonic() - wall,
                "bytes": written["bytes"],
                "peak": peak_bytes(),
                "compared": made.stats["compared"],
                **found_of(made, begin, end),
            }
        )
        print(json.dumps(slices[-1]), file=sys.stderr, flush=True)
        links.append(made.part("signatures"))
        shutil.rmtree(root)
    return {"slices": slices, **growth(slices)}


def peak_bytes() -> int:
    """The largest resident set of this process so far."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert found
    return int(found[1]) * 1024


def found_of(made: Any, begin: int, end: int) -> dict[str, int]:
    """A slice's planted copies, how many of them were dropped, and how many other documents were."""
    import pyarrow.parquet as pq

    from tasks.corpus.documents import document_ids

    own = np.arange(begin, end)
    ids = document_ids("synthetic", begin, len(own))
    gone = np.isin(ids, pq.read_table(made.path / "dropped.parquet", columns=["id"])["id"].to_numpy())
    kind = kinds(own)
    return {
        "exact": int((kind == 1).sum()),
        "exact_found": int((gone & (kind == 1)).sum()),
        "near": int((kind == 2).sum()),
        "near_found": int((gone & (kind == 2)).sum()),
        "others": int((gone & (kind == 0)).sum()),
    }


def growth(slices: list[dict[str, Any]]) -> dict[str, Any]:
    """Seconds for the first tenth of the documents and for all of them, and the exponent between the two."""
    total = slices[-1]["documents"]
    ends = np.array([0, *(one["documents"] for one in slices)])
    spent = np.array([0.0, *np.cumsum([one["cpu"] for one in slices])])
    tenth = float(np.interp(total / 10, ends, spent))
    return {
        "cpu": float(spent[-1]),
        "cpu_tenth": tenth,
        "exponent": math.log10(float(spent[-1]) / tenth),
        "peak": max(one["peak"] for one in slices),
        "megabytes": sum(one["bytes"] for one in slices) / 1e6,
    }


def table(found: dict[str, Any]) -> str:
    """The table for results.md: one row for each tenth of the run."""
    lines = [
        "| documents | text | CPU time | MB per core-second | peak memory | exact found | near found | others dropped |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    so_far: dict[str, float] = dict.fromkeys(
        ("cpu", "bytes", "exact", "exact_found", "near", "near_found", "others"), 0
    )
    rows = {math.ceil(len(found["slices"]) * tenth / 10) for tenth in range(1, 11)}
    for number, one in enumerate(found["slices"], 1):
        so_far = {name: value + one[name] for name, value in so_far.items()}
        if number in rows:
            lines.append(
                f"| {one['documents']:,} | {so_far['bytes'] / 1e9:.2f} GB | {so_far['cpu']:,.0f} s "
                f"| {so_far['bytes'] / 1e6 / so_far['cpu']:.1f} | {one['peak'] / 2**30:.2f} GiB "
                f"| {so_far['exact_found'] / max(so_far['exact'], 1):.2%} "
                f"| {so_far['near_found'] / max(so_far['near'], 1):.2%} | {so_far['others']:,.0f} |"
            )
    lines.append(f"\nExponent from a tenth of them to all: {found['exponent']:.3f}")
    return "\n".join(lines)


def main() -> None:
    from storage.counts import parse_count

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=parse_count, default=10_000_000)
    parser.add_argument("--slice", type=parse_count, default=400_000, help="documents in a slice")
    parser.add_argument("--words", type=int, default=100, help="words in a document, on average")
    parser.add_argument(
        "--directory", type=Path, default=None, help="a directory with enough space; emptied afterwards"
    )
    parser.add_argument("--write", nargs=4, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.write:
        root, begin, end, words = chosen.write
        print(json.dumps(write_slice(Path(root), int(begin), int(end), int(words))))
        return
    with tempfile.TemporaryDirectory(prefix="onward-dedup-", dir=chosen.directory) as directory:
        try:
            found = measure(chosen.documents, chosen.slice, chosen.words, Path(directory))
        finally:
            for path in Path(directory).rglob("*"):  # artifacts are read-only
                if path.is_dir():
                    path.chmod(0o755)
    print(table(found))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
