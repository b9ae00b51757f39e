"""A store that version 0.1.0 made keeps all of its training: every key that is asked for today is found there."""

from __future__ import annotations

import io
import os
import tarfile
from collections import Counter
from pathlib import Path

import pytest
import zstandard

from flows.config import load_config
from flows.dag.plan import make_plan

ROOT = Path(__file__).resolve().parents[2]
DEAR = {"base", "pack", "train", "decay"}
"""Never made again by an upgrade."""
CORPUS = {"ingest", "dedup", "filter", "decontaminate", "tokenize"}


@pytest.fixture(scope="module")
def shared() -> Path:
    data = Path(os.environ.get("ONWARD_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not (data.parent / "compat" / "store-0.1.0.tar.zst").is_file():
        pytest.skip(f"there is no store of 0.1.0 at {data.parent / 'compat'}; set ONWARD_TEST_DATA")
    return data.parent.resolve()


def test_all_that_is_dear_is_found_in_a_store_of_0_1_0(shared, tmp_path, monkeypatch):
    packed = (shared / "compat" / "store-0.1.0.tar.zst").read_bytes()
    content = zstandard.ZstdDecompressor().stream_reader(packed).read()
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        archive.extractall(tmp_path / "store", filter="data")
    (tmp_path / "home").mkdir()
    (tmp_path / "shared").symlink_to(shared)
    monkeypatch.setenv("ONWARD_HOME", str(tmp_path / "home"))
    run = load_config(shared / "compat" / "config.yaml", [f"store={tmp_path}/store"])

    rows = make_plan(run)

    again = [(row.stage, row.slice, row.round, row.item, row.why) for row in rows if row.state != "cached"]
    assert not [row for row in again if row[0] in DEAR | CORPUS], again
    assert Counter(row.stage for row in rows if row.stage in DEAR) == {
        "base": 1,
        "pack": 2,
        "train": 2,
        "decay": 2,
    }
