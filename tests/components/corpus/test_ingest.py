"""Reading by processes: the same bytes by any number, after a kill too; memory stays flat."""

from __future__ import annotations

import gzip
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.store import Request
from storage.testing import artifact_of
from storage.workers import Workers
from tasks.corpus import ingest
from tasks.corpus.ingest import FileDigests, plan_slice
from tests.support.corpus.sources import config_of, digests, source_of


def test_bytes_do_not_depend_on_workers_or_on_where_the_files_are(corpus: Path, tmp_path: Path) -> None:
    source = source_of("*.jsonl", "*.parquet")
    config = config_of(source, 150_000)
    moved = tmp_path / "elsewhere" / "moved"
    shutil.copytree(corpus, moved)
    here, there = (plan_slice(config, source, None, base, FileDigests(None)) for base in (corpus, moved))
    assert here and there
    assert Request(ingest, config, here.inputs).key == Request(ingest, config, there.inputs).key
    with Workers(2) as workers:
        many = artifact_of(ingest, config, there.inputs, tmp_path / "many", workers)
    assert digests(many) == digests(artifact_of(ingest, config, here.inputs, tmp_path / "one"))
    assert str(tmp_path) not in (many.path / "manifest.json").read_text()
    assert str(tmp_path) not in many.part("cursor").only().read_text()


KILLED = """
import sys
from pathlib import Path
from storage.testing import artifact_of
from tasks.corpus import ingest
from tasks.corpus.reading import ingest_shard
ingest_shard.PIECE_BYTES = 400_000
source = ingest.SourceConfig(name="edu", role="domain", weight=1, files=(sys.argv[1],))
config = ingest.IngestConfig.of(source, slice_bytes=12_000_000, seed=0)
plan = ingest.plan_slice(config, source, None, Path("/"), ingest.FileDigests(None))
made = artifact_of(ingest, config, plan.inputs, Path(sys.argv[2]))
print({name: part.digest for name, part in made.manifest.parts.items()})
"""


@pytest.mark.slow
def test_a_killed_ingest_goes_on_from_its_shards_to_the_same_bytes(shared_data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(shared_data / "edu/*.parquet")]
    undisturbed = subprocess.run([*command, str(tmp_path / "a")], capture_output=True, text=True, check=True)
    process = subprocess.Popen([*command, str(tmp_path / "b")], stdout=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("b/.work/ingest-*/documents/*/.shard.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = {
        path: path.stat().st_mtime_ns for path in tmp_path.glob("b/.work/ingest-*/documents/*/*/part.parquet")
    }
    assert kept and not list(tmp_path.glob("b/ingest"))
    again = subprocess.run([*command, str(tmp_path / "b")], capture_output=True, text=True, check=True)
    assert again.stdout == undisturbed.stdout
    final = {p.stat().st_mtime_ns for p in tmp_path.glob("b/ingest/*/documents/*/*/part.parquet")}
    assert set(kept.values()) <= final


MEMORY_OF = """
import re, sys
from pathlib import Path
from storage.testing import artifact_of
from tasks.corpus import ingest
source = ingest.SourceConfig(name="big", role="domain", weight=1, files=(sys.argv[1],))
config = ingest.IngestConfig.of(source, slice_bytes=10**10, seed=0)
def peak():  # of this program alone: ru_maxrss would count the process that started it
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
plan = ingest.plan_slice(config, source, None, Path("/"), ingest.FileDigests(None))
made = artifact_of(ingest, config, plan.inputs, Path(sys.argv[2]))
print(made.stats["documents_out"], made.stats["bytes_out"], peak() - before)
"""


def grown(pattern: Path, store: Path) -> tuple[int, int, int]:
    """Documents, bytes of text, and bytes of memory that ingest took beyond its imports."""
    command = [sys.executable, "-c", MEMORY_OF, str(pattern), str(store)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return int(out[0]), int(out[1]), int(out[2]) * 1024


@pytest.mark.slow
def test_memory_stays_flat_for_one_huge_row_group_and_one_huge_compressed_file(tmp_path: Path) -> None:
    rows = [f"{n} " + "some text of a long book " * 400 for n in range(40_000)]
    pq.write_table(
        pa.table({"text": rows}), tmp_path / "a.parquet", row_group_size=10**6, use_dictionary=False
    )
    with gzip.open(tmp_path / "a.jsonl.gz", "wb", compresslevel=1) as file:
        for row in rows:
            file.write(orjson.dumps({"text": row}) + b"\n")
    total = sum(map(len, rows))
    for name in ("a.parquet", "a.jsonl.gz"):
        documents_out, bytes_out, memory = grown(tmp_path / name, tmp_path / name.replace(".", "-"))
        assert (documents_out, bytes_out) == (len(rows), total)
        assert memory < 0.8 * total, f"{name}: {memory:,} bytes"  # 400 MB of text
