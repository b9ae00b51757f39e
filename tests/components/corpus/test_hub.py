"""Slices of a dataset on a hub, read by the real client over real connections that break, stall and come back."""

from __future__ import annotations

import gzip
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from pydantic import ValidationError

from storage.artifact import Artifact
from storage.errors import HubUnreachable
from storage.testing import artifact_of
from tasks.corpus import ingest
from tasks.corpus.documents import read_documents
from tasks.corpus.ingest import IngestConfig, SourceConfig, plan_slice
from tasks.corpus.reading.digests import FileDigests
from tests.support.loopback import LoopbackHub

BOOKS = "data/train-*.parquet"
LINES = ("lines/a.jsonl", "lines/b.jsonl.gz", "lines/c.jsonl.zst")
CARD = f"""---
configs:
- config_name: books
  data_files: {BOOKS}
  default: true
- config_name: lines
  data_files:
  - split: train
    path: {json.dumps(LINES)}
  - split: test
    path: lines/a.jsonl
- config_name: tables
  data_files: table.csv
---
"""
SOURCE: dict[str, Any] = {"name": "books", "role": "domain", "weight": 1.0}
SLICE = 120_000


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,000 documents of 1,000 bytes: Parquet in row groups of several sizes, JSON lines plain, gzip and zstd."""
    root = tmp_path_factory.mktemp("books")
    (root / "data").mkdir()
    (root / "lines").mkdir()
    rng = np.random.default_rng(0)

    def rows(name: str, count: int) -> list[dict[str, Any]]:
        words = rng.integers(0, 10**9, (count, 100))
        return [
            {
                "text": f"{name} {row} " + " ".join(f"{word:09d}" for word in words[row]),
                "row": row,
                "of": name,
            }
            for row in range(count)
        ]

    for number, size in enumerate((10, 25, 100)):
        table = pa.Table.from_pylist(rows(f"book{number}", 200))
        pq.write_table(table, root / f"data/train-{number:05d}.parquet", row_group_size=size)
    packed = [b"".join(orjson.dumps(row) + b"\n" for row in rows(name, 150)) for name in ("a", "b", "c")]
    (root / LINES[0]).write_bytes(packed[0])
    (root / LINES[1]).write_bytes(gzip.compress(packed[1]))
    (root / LINES[2]).write_bytes(zstandard.compress(packed[2]))
    (root / "table.csv").write_text("text\nhello\n")
    (root / "README.md").write_text(CARD)
    return root


@pytest.fixture
def hub(directory: Path) -> Iterator[LoopbackHub]:
    with LoopbackHub().running() as hub:
        hub.publish("datasets", "me/books", directory)
        yield hub


class World:
    """Processes that read from the hub into stores below one directory."""

    def __init__(self, hub: LoopbackHub, root: Path) -> None:
        self.hub, self.root = hub, root
        self.environment = hub.environment(root / "hf")

    def command(self, store: str, hub: dict[str, Any] | None = None, **over: Any) -> list[str]:
        source = {
            **SOURCE,
            "hub": {"dataset": "me/books", "name": "books", **(hub or {})},
            **over.pop("source", {}),
        }
        wanted = {"source": source, "store": str(self.root / store), "slice_bytes": SLICE, **over}
        return [sys.executable, "-m", "tests.support.corpus.hub_slices", json.dumps(wanted)]

    def run(self, store: str, hub: dict[str, Any] | None = None, **over: Any) -> list[dict[str, Any]]:
        """What the process told: a line a slice, and last the error or the peak."""
        done = subprocess.run(
            self.command(store, hub, **over),
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode in (0, 1), done.stderr
        self.said = done.stdout + done.stderr
        told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        assert told, done.stderr
        return told

    def slices(self, store: str, hub: dict[str, Any] | None = None, **over: Any) -> list[dict[str, Any]]:
        """The slices' parts, where all went well."""
        told = self.run(store, hub, **over)
        assert "peak" in told[-1], told[-1]
        return told[:-1]

    def error(self, store: str, hub: dict[str, Any] | None = None, **over: Any) -> tuple[str, str]:
        told = self.run(store, hub, **over)
        return told[-1]["error"], told[-1]["text"]


@pytest.fixture
def world(hub: LoopbackHub, tmp_path: Path) -> World:
    return World(hub, tmp_path)


def parts(slices: list[dict[str, Any]]) -> list[dict[str, str]]:
    return [one["parts"] for one in slices]


def texts(slices: list[dict[str, Any]]) -> list[str]:
    found: list[str] = []
    for one in slices:
        found += read_documents(sorted(Path(one["path"]).glob("documents/**/*.parquet")))["text"].to_pylist()
    return found


def local(patterns: tuple[str, ...], base: Path, store: Path, **over: Any) -> list[Artifact]:
    """Slices of the same files on this disk."""
    source = SourceConfig(**{**SOURCE, "files": patterns, **over.pop("source", {})})
    config = IngestConfig.of(
        source, slice_bytes=over.get("slice_bytes", SLICE), seed=0, max_bad_fraction=over.get("bad", 0.01)
    )
    made: list[Artifact] = []
    digests = FileDigests(None)
    while plan := plan_slice(config, source, made[-1].part("cursor") if made else None, base, digests):
        made.append(artifact_of(ingest, config, plan.inputs, store))
    return made


def same_documents(slices: list[dict[str, Any]], artifacts: list[Artifact]) -> bool:
    wanted = [artifact.part("documents").digest for artifact in artifacts]
    return [one["parts"]["documents"] for one in slices] == wanted


def test_parquet_from_the_hub_is_what_the_same_files_on_disk_are(
    world: World, directory: Path, tmp_path: Path
) -> None:
    slices = world.slices("store")
    beside = tmp_path / "beside"
    shutil.copytree(directory / "data", beside / "data")
    assert len(slices) > 4
    assert same_documents(slices, local(("**/*.parquet",), beside, tmp_path / "local"))
    given = texts(slices)
    assert len(given) == len(set(given)) == 600
    assert len({text.split()[0] for text in texts(slices[:1])}) > 1, "a first slice is no single book"
    cursor = json.loads((Path(slices[-1]["path"]) / "cursor.json").read_text())
    assert cursor["exhausted"] and cursor["rows"] == cursor["documents"] == 600
    asked = [path for _, path, span, _ in world.hub.requests if span]
    assert asked and all("resolve" in path for path in asked)


def test_lines_plain_and_compressed_are_what_the_same_files_on_disk_are(
    world: World, directory: Path, tmp_path: Path
) -> None:
    slices = world.slices("store", {"name": "lines"})
    beside = tmp_path / "beside"
    shutil.copytree(directory / "lines", beside / "lines")
    assert same_documents(slices, local(("**/*.js*",), beside, tmp_path / "local"))
    assert len(set(texts(slices))) == 450


@pytest.mark.parametrize("name", ["books", "lines"])
def test_in_the_order_given_it_is_what_datasets_streams(world: World, name: str) -> None:
    slices = world.slices("store", {"name": name}, source={"order": "as_given"})
    code = (
        "import datasets, json, sys\n"
        f"rows = datasets.load_dataset('me/books', {name!r}, split='train', streaming=True)\n"
        "json.dump([row['text'] for row in rows], sys.stdout)"
    )
    # the reference decides by the first file's kind, so it is told to read lines as JSON
    if name == "lines":
        code = code.replace(
            "'me/books', 'lines'", f"'json', data_files={['hf://datasets/me/books/' + p for p in LINES]}"
        )
    done = subprocess.run(
        [sys.executable, "-c", code], env=world.environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert texts(slices) == json.loads(done.stdout)


def test_slices_are_a_prefix_whatever_comes_later_and_wherever_the_branch_goes(
    world: World, directory: Path, tmp_path: Path
) -> None:
    all_at_once = world.slices("whole")
    first = world.slices("grown", slices=2)
    newer = tmp_path / "newer"
    shutil.copytree(directory, newer)
    table = pa.Table.from_pylist([{"text": "a new row " * 50, "row": 0, "of": "new"}] * 300)
    pq.write_table(table, newer / "data/train-00000.parquet")
    commit = world.hub.repositories["datasets", "me/books"].main
    moved = world.hub.publish("datasets", "me/books", newer)
    assert moved != commit
    grown = world.slices("grown")
    assert [one["state"] for one in grown[:2]] == ["cached", "cached"]
    assert parts(first) == parts(grown)[:2] and parts(grown) == parts(all_at_once)
    assert [one["key"] for one in grown] == [one["key"] for one in all_at_once]
    by_commit = world.slices("named", {"revision": commit}, slices=1)
    assert by_commit[0]["key"] == grown[0]["key"], "the branch's name is not in the key"
    after = world.slices("after", slices=1)
    assert after[0]["key"] != grown[0]["key"] and parts(after) != parts(grown[:1])
    manifest = json.loads((Path(grown[0]["path"]) / "manifest.json").read_text())
    assert manifest["inputs"]["hub"] == {
        "dataset": "me/books", "name": "books", "split": "train", "commit": commit
    }  # fmt: skip


def test_only_what_a_slice_reads_is_fetched_and_a_finished_one_needs_no_hub(
    world: World, directory: Path
) -> None:
    world.slices("store", slices=1)
    size = sum((directory / f"data/train-{n:05d}.parquet").stat().st_size for n in range(3))
    assert world.hub.bytes_asked(".parquet") < size / 2
    world.slices("store")
    assert world.hub.bytes_asked(".parquet") < 2 * size
    world.hub.stop()
    assert {one["state"] for one in world.slices("store")} == {"cached"}


def test_a_source_of_many_files_is_looked_into_shelf_by_shelf(world: World, tmp_path: Path) -> None:
    many = tmp_path / "many"
    many.mkdir()
    for number in range(40):
        rows = [{"text": f"file{number:02d} {row} " + "word " * 40} for row in range(20)]
        pq.write_table(pa.Table.from_pylist(rows), many / f"{number:02d}.parquet", row_group_size=5)
    world.hub.publish("datasets", "me/many", many)
    first = world.slices("store", {"dataset": "me/many", "name": None}, slice_bytes=8_000, slices=1)
    touched = {path.rsplit("/", 1)[1] for _, path, span, _ in world.hub.requests if span}
    assert len(touched) == 16
    assert len({text.split()[0] for text in texts(first)}) > 4
    grown = world.slices("store", {"dataset": "me/many", "name": None}, slice_bytes=8_000)
    assert parts(grown)[:1] == parts(first)
    assert len(texts(grown)) == len(set(texts(grown))) == 800
    exact = world.slices("other", {"dataset": "me/many", "name": None}, slice_bytes=10**6)
    assert len(exact) == 1 and sorted(texts(exact)) == sorted(texts(grown))


# ── What goes wrong on the way ───────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def undisturbed(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, str]]]:
    """Parts of all slices, read over a way on which nothing happens."""
    with LoopbackHub().running() as hub:
        hub.publish("datasets", "me/books", directory)
        world = World(hub, tmp_path_factory.mktemp("undisturbed"))
        return {name: parts(world.slices(name, {"name": name})) for name in ("books", "lines")}


@pytest.mark.parametrize("name", ["books", "lines"])
def test_connections_that_break_and_servers_that_fail_change_no_byte(
    world: World, undisturbed: dict[str, Any], name: str
) -> None:
    files = [f"data/train-{n:05d}.parquet" for n in range(3)] if name == "books" else LINES
    world.hub.breaks = dict.fromkeys(files, 4)
    world.hub.refusals = {files[0]: [503, 500, 502], files[1]: [429]}
    assert parts(world.slices("store", {"name": name}, retries=9)) == undisturbed[name]
    assert not any(world.hub.breaks.values()) and not any(world.hub.refusals.values())


def test_a_server_that_is_started_again_in_mid_slice_changes_no_byte(
    world: World, undisturbed: dict[str, Any]
) -> None:
    world.hub.delay = 0.05
    process = subprocess.Popen(
        world.command("store"), env=world.environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()  # one slice is there, the next is under way
    wait_for_ranges(world.hub, after=3)
    world.hub.stop()
    time.sleep(2.5)
    world.hub.start()
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    assert parts(world.slices("store")) == undisturbed["books"]


def test_a_process_that_is_killed_in_mid_slice_goes_on_with_the_same_bytes(
    world: World, undisturbed: dict[str, Any]
) -> None:
    world.hub.delay = 0.05
    for _ in range(2):
        process = subprocess.Popen(world.command("store"), env=world.environment, stdout=subprocess.PIPE)
        wait_for_ranges(world.hub, after=9)
        process.send_signal(signal.SIGKILL)
        process.wait()
    world.hub.delay = 0.0
    assert parts(world.slices("store", workers=2)) == undisturbed["books"]


def wait_for_ranges(hub: LoopbackHub, after: int) -> None:
    begun = sum(bool(span) for _, _, span, _ in hub.requests)
    deadline = time.monotonic() + 60
    while sum(bool(span) for _, _, span, _ in hub.requests) < begun + after:
        assert time.monotonic() < deadline, "nothing was read"
        time.sleep(0.01)


def test_where_the_hub_does_not_come_back_the_error_says_so_and_the_same_command_goes_on(
    world: World, undisturbed: dict[str, Any]
) -> None:
    world.hub.breaks = {"data/train-00001.parquet": -1}
    kind, text = world.error("store", retries=2)
    assert kind == "HubUnreachable"
    assert "me/books" in text and "train-00001.parquet" in text and HubUnreachable.passing
    world.hub.breaks = {}
    assert parts(world.slices("store")) == undisturbed["books"]


def test_a_hub_that_says_nothing_is_given_up(world: World, undisturbed: dict[str, Any]) -> None:
    world.slices("store", slices=1)
    world.hub.delay = 30.0
    begun = time.monotonic()
    kind, text = world.error("store", retries=1, SILENCE_SECONDS=0.5)
    assert kind == "HubUnreachable" and "Timeout" in text and time.monotonic() - begun < 25
    world.hub.delay = 0.0
    assert parts(world.slices("store")) == undisturbed["books"]


def test_no_hub_at_all_is_no_wrong_configuration(world: World) -> None:
    world.hub.stop()
    kind, text = world.error("store")
    assert kind == "HubUnreachable" and "books: hub.dataset" in text and "cannot be reached" in text


# ── What is wrong with what is asked for ─────────────────────────────────────────────────────────────────────────────


def test_what_is_not_there_is_a_wrong_configuration_that_names_the_field(
    world: World, tmp_path: Path
) -> None:
    def refused(hub: dict[str, Any], *words: str) -> None:
        kind, text = world.error("store", hub)
        assert kind == "ConfigError", text
        assert all(word in text for word in ("corpus.sources: books: hub.", *words)), text

    refused({"dataset": "me/nothing"}, "hub.dataset", "'me/nothing'", "HF_TOKEN")
    refused({"revision": "v2"}, "hub.revision", "'v2'")
    refused({"revision": "0" * 40}, "hub.revision", "0000")
    refused({"name": "boks"}, "hub.name", "'boks'", "'lines'")
    refused({"split": "validation"}, "hub.split", "'validation'", "'train'")
    refused({"name": "tables"}, "hub.dataset", "table.csv")
    script = tmp_path / "script"
    script.mkdir()
    (script / "made.py").write_text("raise SystemExit('code of a dataset was run')")
    world.hub.publish("datasets", "me/made", script)
    refused({"dataset": "me/made", "name": None}, "hub.dataset", "never run")


def test_a_gated_dataset_asks_for_a_token_which_stands_nowhere_afterwards(world: World) -> None:
    repository = world.hub.repositories["datasets", "me/books"]
    repository.gated = True
    kind, text = world.error("store")
    assert kind == "ConfigError" and "gated" in text and "hf auth login" in text
    secret = "hf_" + "abcdefghijklmnopqrstuvwxyz012345678"
    repository.gated, repository.token = False, secret
    kind, text = world.error("store")
    assert kind == "ConfigError" and "private" in text
    world.environment["HF_TOKEN"] = secret
    world.hub.breaks = {"data/train-00001.parquet": -1}
    assert world.error("store", retries=1)[0] == "HubUnreachable"
    assert secret not in world.said
    world.hub.breaks = {}
    world.slices("store", workers=2)
    assert secret not in world.said
    assert any(given == f"Bearer {secret}" for *_, given in world.hub.requests)
    written = [path for path in world.root.rglob("*") if path.is_file()]
    assert len(written) > 20 and not any(secret.encode() in path.read_bytes() for path in written)


@pytest.mark.parametrize("bad", ["../up", "a/b/c", "http://x", "a b", ""])
def test_a_name_that_is_none_is_refused_at_once(bad: str) -> None:
    with pytest.raises(ValidationError, match="dataset"):
        SourceConfig(**SOURCE, hub={"dataset": bad})


def test_bad_rows_and_damaged_files_are_set_aside_as_local_ones_are(
    world: World, directory: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(directory / "data", damaged / "data")
    whole = (damaged / "data/train-00001.parquet").read_bytes()
    (damaged / "data/train-00001.parquet").write_bytes(whole[: len(whole) // 2])
    flipped = bytearray((damaged / "data/train-00002.parquet").read_bytes())
    flipped[len(flipped) // 3 : len(flipped) // 2] = bytes(len(flipped) // 2 - len(flipped) // 3)
    (damaged / "data/train-00002.parquet").write_bytes(flipped)
    rows = [
        b'{"text": "fine"}',
        b'{"text": ',
        b'{"other": 1}',
        b"\xff\xfe",
        b'{"text": "fine again"}',
        b'{"text": ""}',
    ]
    (damaged / "lines.jsonl").write_bytes(b"\n".join(rows))
    (damaged / "empty.jsonl").write_bytes(b"")
    world.hub.publish("datasets", "me/bad", with_card(damaged, "**/*.[jp]*"))
    slices = world.slices("store", {"dataset": "me/bad", "name": None}, bad=0.9)
    artifacts = local(("**/*.[jp]*",), damaged, tmp_path / "local", bad=0.9)
    assert same_documents(slices, artifacts)
    wanted = [pq.read_table(artifact.part("dropped").only()).to_pylist() for artifact in artifacts]
    found = [pq.read_table(Path(one["path"]) / "dropped.parquet").to_pylist() for one in slices]
    assert found == wanted
    reasons = {row["reason"] for rows in found for row in rows}
    assert {"truncated_file", "unreadable_file", "malformed_json", "missing_text", "empty_file"} <= reasons
    kind, text = world.error("strict", {"dataset": "me/bad", "name": None})
    assert kind == "StageFailed" and "max_bad_fraction" in text


def with_card(directory: Path, pattern: str) -> Path:
    (directory / "README.md").write_text(
        f"---\nconfigs:\n- config_name: default\n  data_files: '{pattern}'\n---\n"
    )
    return directory


def test_a_file_that_the_hub_lost_is_set_aside(world: World, directory: Path, tmp_path: Path) -> None:
    lost = tmp_path / "lost"
    shutil.copytree(directory, lost)
    world.hub.publish("datasets", "me/books", lost)
    world.hub.refusals = {"data/train-00001.parquet": [404] * 1000}
    slices = world.slices("store", bad=0.5)
    rows = [row for one in slices for row in pq.read_table(Path(one["path"]) / "dropped.parquet").to_pylist()]
    assert [(row["reason"], row["id"]) for row in rows] == [("unreadable_file", None)]
    assert "train-00001.parquet" in rows[0]["detail"]
    assert {text.split()[0] for text in texts(slices)} == {"book0", "book2"}


@pytest.mark.slow
def test_memory_is_flat_however_large_the_source(world: World, tmp_path: Path) -> None:
    """Twelve times the source, and row groups twelve times as large: no more memory than noise."""
    rng = np.random.default_rng(1)

    def publish(name: str, rows: int) -> None:
        root = tmp_path / name
        root.mkdir()
        words = rng.integers(0, 10**9, (rows, 500))
        table = pa.table({"text": [" ".join(map(str, row)) for row in words.tolist()]})
        pq.write_table(table, root / "all.parquet", row_group_size=rows, compression="none")
        with gzip.open(root / "all.jsonl.gz", "wb", 1) as lines:
            for text in table["text"].to_pylist():
                lines.write(orjson.dumps({"text": text}) + b"\n")
        world.hub.publish("datasets", f"me/{name}", with_card(root, "all.*"))

    peaks = {}
    for name, rows in (("small", 4_000), ("large", 48_000)):
        publish(name, rows)
        world.slices(
            name, {"dataset": f"me/{name}", "name": None}, slice_bytes=10**9, slices=0
        )  # what it costs to plan at all
        told = world.run(name, {"dataset": f"me/{name}", "name": None}, slice_bytes=50_000_000, slices=3)
        assert "peak" in told[-1], told[-1]
        peaks[name] = told[-1]["peak"]
    size = (tmp_path / "large" / "all.parquet").stat().st_size
    assert size > 200e6
    assert peaks["large"] - peaks["small"] < 80e6, peaks
