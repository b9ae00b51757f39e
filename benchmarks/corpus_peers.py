"""One corpus step of a peer, in the environment that corpus.py makes for the peers.

    python benchmarks/corpus_peers.py STEP DOCUMENTS.parquet TOKENIZER_DIRECTORY WORK

STEP is one of `dedup` (datatrove's MinHash in its four steps), `filters` (datatrove's four quality filters), `map`
(`datasets.map` with the fast tokenizer, then saved), `tokens` (datatrove's DocumentTokenizer). One task, one
worker, one thread. Prints a JSON line: CPU and wall seconds of the step, without imports.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

os.environ.update(TOKENIZERS_PARALLELISM="false", RAYON_NUM_THREADS="1", HF_HUB_OFFLINE="1")


def reader(documents: Path) -> Any:
    from datatrove.pipeline.readers import ParquetReader

    return ParquetReader(str(documents.parent), glob_pattern=documents.name, doc_progress=False)


def run(work: Path, name: str, pipeline: list[Any], tasks: int = 1) -> None:
    from datatrove.executor import LocalPipelineExecutor

    LocalPipelineExecutor(
        pipeline=pipeline, tasks=tasks, workers=1, logging_dir=str(work / "logs" / name)
    ).run()


def dedup(documents: Path, tokenizer: Path, work: Path) -> None:
    """MinHash with FineWeb's parameters: word 5-grams, 14 bands of 8 rows, 64 bits."""
    from datatrove.pipeline.dedup import MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets
    from datatrove.pipeline.writers import ParquetWriter
    from datatrove.utils.hashing import HashConfig

    config = MinhashConfig(hash_config=HashConfig(precision=64))
    folders = {name: str(work / name) for name in ("signatures", "buckets", "remove", "kept")}
    run(work, "1", [reader(documents), MinhashDedupSignature(folders["signatures"], config=config)])
    buckets = MinhashDedupBuckets(folders["signatures"], folders["buckets"], config=config)
    run(work, "2", [buckets], tasks=config.num_buckets)
    run(work, "3", [MinhashDedupCluster(folders["buckets"], folders["remove"], config=config)])
    kept = ParquetWriter(folders["kept"])
    run(work, "4", [reader(documents), MinhashDedupFilter(folders["remove"]), kept])


def filters(documents: Path, tokenizer: Path, work: Path) -> None:
    """Gopher repetition, Gopher quality, C4 and FineWeb filters, in FineWeb's order."""
    from datatrove.pipeline import filters as f
    from datatrove.pipeline.writers import ParquetWriter

    chain = [
        f.GopherRepetitionFilter(),
        f.GopherQualityFilter(),
        f.C4QualityFilter(filter_no_terminal_punct=False),
        f.FineWebQualityFilter(),
    ]
    run(work, "filters", [reader(documents), *chain, ParquetWriter(str(work / "filtered"))])


def tokens(documents: Path, tokenizer: Path, work: Path) -> None:
    from datatrove.pipeline.tokens import DocumentTokenizer

    made = DocumentTokenizer(
        str(work / "tokens"),
        str(tokenizer / "tokenizer.json"),
        eos_token="<|endoftext|>",
        shuffle_documents=False,
    )
    run(work, "tokens", [reader(documents), made])


def map_(documents: Path, tokenizer: Path, work: Path) -> None:
    import datasets
    from tokenizers import Tokenizer

    fast = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))

    def encode(batch: dict[str, Any]) -> dict[str, Any]:
        return {"input_ids": [one.ids for one in fast.encode_batch(batch["text"], add_special_tokens=False)]}

    found: Any = datasets.load_dataset(
        "parquet", data_files=str(documents), split="train", cache_dir=str(work / "cache")
    )
    mapped = found.map(encode, batched=True, remove_columns=found.column_names)
    mapped.save_to_disk(str(work / "mapped"))


def spent() -> float:
    """CPU seconds of this process and of its ended children."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in both)


def main() -> None:
    step, documents, tokenizer, work = sys.argv[1], *map(Path, sys.argv[2:5])
    import datatrove.pipeline.filters
    import datatrove.pipeline.readers  # noqa: F401

    cpu, wall = spent(), time.monotonic()
    {"dedup": dedup, "filters": filters, "tokens": tokens, "map": map_}[step](documents, tokenizer, work)
    print(json.dumps({"cpu": spent() - cpu, "wall": time.monotonic() - wall}))


if __name__ == "__main__":
    main()
