"""A branch with a mixture of its own: of text that the trunk has not seen, beside a trunk that stays as it was."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from storage.artifact import Artifact
from storage.packing import PackingManifest
from storage.store import Store
from tests.support.small import environment, write_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def annealed(tmp_path_factory: pytest.TempPathFactory, reference_run: Path) -> tuple[Path, set[str]]:
    """The home of a run whose branches read general text alone, begun in the store of one without, and the keys of that."""
    home = tmp_path_factory.mktemp("annealed")
    shutil.copytree(reference_run, home, symlinks=True, dirs_exist_ok=True)
    before = {one.key for one in Store(home / "store").artifacts()}
    config = write_config(home)
    raw = json.loads(config.read_text())
    for source in raw["corpus"]["sources"]:
        source["decay_weight"] = 1 if source["role"] == "replay" else 0
    config.write_text(json.dumps(raw))
    command = [sys.executable, "-m", "tests.support.driver", str(config)]
    done = subprocess.run(
        command, env=environment(home), cwd=home, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return home, before


def new(home: Path, before: set[str], stage: str) -> list[Artifact]:
    found = [one for one in Store(home / "store").artifacts(stage) if one.key not in before]
    return sorted(
        found, key=lambda one: int(one.manifest.config.get("first_step", one.stats.get("first_sequence", 0)))
    )


def test_trunks_are_found_and_branches_read_another_mixture(annealed: tuple[Path, set[str]]) -> None:
    home, before = annealed
    assert not new(home, before, "train")
    packs, branches = new(home, before, "pack"), new(home, before, "decay")
    assert len(packs) == len(branches) == 2
    for packed, branch in zip(packs, branches, strict=True):
        assert packed.stats["sources"]["domain"]["tokens"] == 0 < packed.stats["sources"]["general"]["tokens"]
        per_step = branch.manifest.config["sequences_per_step"]
        assert packed.stats["first_sequence"] == branch.manifest.config["first_step"] * per_step
        [edge] = branch.manifest.inputs["manifests"]
        assert edge["key"] == packed.key
        losses = pq.read_table(branch.part("journal").only())
        assert "loss/domain" not in losses.column_names or losses["loss/domain"].null_count == len(losses)


def test_a_branch_reads_what_its_trunk_has_not(annealed: tuple[Path, set[str]]) -> None:
    """Of a source that is not used up: no place of a shard stands in the branch and in the rounds up to it."""
    home, before = annealed
    rounds = [
        one
        for one in Store(home / "store").artifacts("pack")
        if one.key in before and one.manifest.inputs.get("state") is not None
    ]
    first = min(rounds, key=lambda one: int(one.stats["first_sequence"]))
    branch = new(home, before, "pack")[0]
    assert branch.stats["sources"]["general"]["tokens_repeated"] == 0
    places = [
        {
            (manifest.shards[shard].digest, offset)
            for shard, offset in zip(rows.shard.tolist(), rows.offset.tolist(), strict=True)
        }
        for one in (first, branch)
        if (manifest := PackingManifest.open(one.part("manifest").only()))
        and (rows := manifest.rows(manifest.first_sequence, manifest.end_sequence))
    ]
    assert places[1] and not places[0] & places[1]
