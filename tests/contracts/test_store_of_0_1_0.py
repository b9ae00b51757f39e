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
from flows.dag.pretrain import adapt
from flows.dag.requests import Requests
from storage.artifact import Artifact
from storage.store import Request, Store

ROOT = Path(__file__).resolve().parents[2]
DEAR = {"base", "pack", "train", "decay"}
"""Never made again by an upgrade."""
NEWER = {"ingest", "dedup", "filter", "decontaminate"}
"""Made again by this release: CHANGELOG.md says why."""


@pytest.fixture(scope="module")
def shared() -> Path:
    data = Path(os.environ.get("ONWARD_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not (data.parent / "compat" / "store-0.1.0.tar.zst").is_file():
        pytest.skip(f"there is no store of 0.1.0 at {data.parent / 'compat'}; set ONWARD_TEST_DATA")
    return data.parent.resolve()


def test_all_that_is_dear_is_found_in_a_store_of_0_1_0(shared, tmp_path, monkeypatch):
    """Stages of the corpus may be made again where their version says so; what they make has the bytes it had."""
    packed = (shared / "compat" / "store-0.1.0.tar.zst").read_bytes()
    content = zstandard.ZstdDecompressor().stream_reader(packed).read()
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        archive.extractall(tmp_path / "store", filter="data")
    (tmp_path / "home").mkdir()
    (tmp_path / "shared").symlink_to(shared)
    monkeypatch.setenv("ONWARD_HOME", str(tmp_path / "home"))
    run = load_config(shared / "compat" / "config.yaml", [f"store={tmp_path}/store"])
    store = Store(run.store_path)
    found: Counter[str] = Counter()
    again: set[str] = set()

    def build(request: Request, **named: object) -> Artifact:
        known = store.lookup(request.stage, request.key)
        if known is None:
            assert request.stage not in DEAR, f"{request.stage} {named} would be made again"
            again.add(request.stage)
            return store.ensure(request).artifact
        found[request.stage] += 1
        return known

    adapt(Requests(run, store, warn=lambda message: None), build, until="decay")

    assert {stage: found[stage] for stage in DEAR} == {"base": 1, "pack": 2, "train": 2, "decay": 2}
    assert again == NEWER
