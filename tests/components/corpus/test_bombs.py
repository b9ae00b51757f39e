"""Small files that stand for gigabytes: a process that plans and reads them takes little memory, and ends with a reason."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

MEMORY_OF = """
import re, sys
from pathlib import Path
from storage.testing import artifact_of
from tasks.corpus import ingest
source = ingest.SourceConfig(name="bomb", role="domain", weight=1, files=("*.*",))
config = ingest.IngestConfig.of(source, slice_bytes=10**9, seed=0, max_bad_fraction=1.0)
def peak():  # of this program alone: ru_maxrss would count the process that started it
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
plan = ingest.plan_slice(config, source, None, Path(sys.argv[1]), ingest.FileDigests(None))
planned = peak() - before
made = artifact_of(ingest, config, plan.inputs, Path(sys.argv[2]))
print(planned, peak() - before, *made.stats["dropped_by_reason"])
"""


def line_of_4_gb(directory: Path) -> None:
    with (
        (directory / "a.jsonl.zst").open("wb") as file,
        zstandard.ZstdCompressor().stream_writer(file) as out,
    ):
        for _ in range(4096):
            out.write(b"a" * (1 << 20))


def value_of_300_mb(directory: Path) -> None:
    pq.write_table(pa.table({"text": ["a" * 300_000_000]}), directory / "a.parquet", compression="zstd")


def values_of_100_gb(directory: Path) -> None:
    values = pa.DictionaryArray.from_arrays(pa.array([0] * 100_000, pa.int32()), pa.array(["a" * 10**6]))
    pq.write_table(pa.table({"text": ["a text"] * 100_000, "more": values}), directory / "a.parquet")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bomb", "reason"),
    [
        (line_of_4_gb, "line_too_long"),
        (value_of_300_mb, "expands_too_much"),
        (values_of_100_gb, "expands_too_much"),
    ],
)
def test_a_small_file_that_stands_for_gigabytes_takes_little_memory(
    tmp_path: Path, bomb: object, reason: str
) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    assert callable(bomb)
    bomb(corpus)
    (corpus / "good.jsonl").write_text('{"text": "a good line"}\n')
    assert sum(path.stat().st_size for path in corpus.iterdir()) < 200_000
    command = [sys.executable, "-c", MEMORY_OF, str(corpus), str(tmp_path / "store")]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert out[2:] == [reason]
    assert int(out[0]) * 1024 < 200_000_000 and int(out[1]) * 1024 < 600_000_000, out
