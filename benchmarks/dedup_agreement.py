"""Recall and precision of dedup on the duplicates planted in dirty/, compared with datatrove.

    python benchmarks/dedup_agreement.py ../shared/data

Recall is over the pairs of `truth.json`, by their true Jaccard similarity: a pair counts if one of the two is gone.
Precision is the share of dropped documents that have a twin among all given documents: the same text, or Jaccard
0.7 or more. Similarities are between sets of word 5-grams, with words as Python's `\\w+` finds them in lower-cased
text; neither side uses this definition itself. datatrove runs in its own environment (peers.py) with FineWeb's
parameters, which are the defaults here. Exits with 1 if recall at 0.8 is under 0.95, an exact copy is left, or
precision is under datatrove's.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.peers import environment
from storage.artifact import Input
from storage.draft import Draft
from tasks.corpus import dedup
from tasks.corpus.documents import document_ids, write_documents

ROOT = Path(__file__).resolve().parents[1]
RECALL, SIMILAR = 0.95, 0.7


def read(data: Path) -> pl.DataFrame:
    """`id` and `text` of every document of dirty/ that has text."""
    frames = [
        pl.read_parquet(path, columns=["id", "text"])
        if path.suffix == ".parquet"
        else pl.read_ndjson(path).select("id", "text")
        for path in sorted((data / "dirty").glob("part-*"))
    ]
    return pl.concat(frames).filter(pl.col("text").fill_null("").str.contains(r"\S"))


def ours(texts: list[str], work: Path) -> set[int]:
    """Rows that our stage drops."""
    ids = document_ids("dirty", 0, len(texts))
    columns = {
        "id": pa.array(ids),
        "source": pa.repeat(pa.scalar("dirty"), len(texts)),
        "text": pa.array(texts, pa.large_string()),
        "meta": pa.repeat(pa.scalar("{}"), len(texts)),
    }
    file = "documents/0000/part.parquet"
    (work / file).parent.mkdir(parents=True)
    write_documents(work / file, pa.table(columns))
    digest = hashlib.sha256((work / file).read_bytes()).hexdigest()
    given = Input("ingest", digest, "documents", digest, work, (file,), {})
    dedup.run(dedup.DedupConfig(), dedup.DedupInputs(given), Draft(work / "draft"))
    row_of = {own: row for row, own in enumerate(ids.tolist())}
    return {row_of[own] for own in pq.read_table(work / "draft" / "dropped.parquet")["id"].to_pylist()}


def theirs(texts: list[str], work: Path) -> set[int]:
    """Rows that datatrove's MinHash pipeline drops."""
    work.mkdir()
    pq.write_table(
        pa.table({"id": [str(row) for row in range(len(texts))], "text": texts}), work / "in.parquet"
    )
    script = ROOT / "benchmarks" / "corpus_peers.py"
    command = [environment(), script, "dedup", work / "in.parquet", work, work / "out"]
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
    kept = pl.read_parquet(sorted((work / "out" / "kept").glob("*.parquet")), columns=["id"])["id"]
    return set(range(len(texts))) - {int(row) for row in kept.to_list()}


class Twins:
    """True similarities between sets of shingles, in plain Python."""

    def __init__(self, texts: list[str]) -> None:
        words = [re.findall(r"\w+", text.lower()) for text in texts]
        self.plain = [" ".join(text.lower().split()) for text in texts]
        self.sets = [{tuple(own[i : i + 5]) for i in range(len(own) - 4)} for own in words]
        self.holding: dict[tuple[str, ...], list[int]] = {}
        for row, own in enumerate(self.sets):
            for shingle in own:
                self.holding.setdefault(shingle, []).append(row)
        self.copies = Counter(self.plain)

    def has_one(self, row: int) -> bool:
        """Whether another document is a copy or similar enough."""
        if self.copies[self.plain[row]] > 1:
            return True
        own = self.sets[row]
        shared = Counter(other for shingle in own for other in self.holding[shingle] if other != row)
        return any(
            both / (len(own) + len(self.sets[other]) - both) >= SIMILAR for other, both in shared.items()
        )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    data = parser.parse_args().data
    documents = read(data)
    names, texts = documents["id"].to_list(), documents["text"].to_list()
    truth = json.loads((data / "dirty" / "truth.json").read_text(encoding="utf-8"))
    rows = {name: row for row, name in enumerate(names) if name not in truth["duplicate_ids"]}
    pairs = [
        (rows[cluster["original"]], rows[member["id"]], member["jaccard5_vs_original"])
        for cluster in truth["near_dup_clusters"]
        for member in cluster["members"]
        if cluster["original"] in rows and member["id"] in rows
    ]
    twins, found = Twins(texts), {}
    with tempfile.TemporaryDirectory(prefix="onward-duplicates-") as directory:
        gone_by = {
            "here": ours(texts, Path(directory, "a")),
            "datatrove": theirs(texts, Path(directory, "b")),
        }
    print(f"{len(texts):,} documents, {len(pairs)} planted pairs")
    print("| | recall of pairs at ≥ 0.8 | at ≥ 0.7 | dropped | of them with a twin | exact copies left |")
    print("| --- | --- | --- | --- | --- | --- |")
    for side, gone in gone_by.items():
        recall = []
        for least in (0.8, SIMILAR):
            due = [{a, b} for a, b, similarity in pairs if similarity >= least]
            caught = sum(bool(pair & gone) for pair in due)
            recall.append(f"{caught} of {len(due)} ({caught / len(due):.1%})")
            found[side, least] = caught / len(due)
        true = sum(map(twins.has_one, gone))
        kept = Counter(twins.plain[row] for row in range(len(texts)) if row not in gone)
        found[side, "precision"], found[side, "left"] = true / len(gone), sum(n - 1 for n in kept.values())
        print(
            f"| {side} | {recall[0]} | {recall[1]} | {len(gone)} | {true} ({true / len(gone):.1%}) "
            f"| {found[side, 'left']} |"
        )
    good = found["here", 0.8] >= RECALL and not found["here", "left"]
    return 0 if good and found["here", "precision"] >= found["datatrove", "precision"] else 1


if __name__ == "__main__":
    sys.exit(main())
