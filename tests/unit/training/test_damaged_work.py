"""Damage in a segment's work directory: found when the trainer starts again, and never in what it ends with."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from storage.draft import Draft
from storage.errors import DamagedArtifact
from tasks.models.train import _distrust_what_rotted
from tasks.training.loop import DONE, RESUMABLE
from tasks.training.state.sealed import (
    RESULT,
    WRITTEN,
    not_as_written,
    note_written,
    read_sealed,
    write_sealed,
)
from tests.support.training.world import (
    SEQUENCE,
    World,
    journal_steps,
    outputs,
    poisoned_world,
    run_here,
)

KEPT = {"identity__keep_every_tokens": 2 * 4 * SEQUENCE, "identity__last_step": 10}
BAD = {
    "identity__last_step": 14,
    "execution__micro_batch": 2,
    "identity__keep_every_tokens": 2 * 4 * SEQUENCE,
}


def flip(path: Path, chance: random.Random) -> None:
    raw = bytearray(path.read_bytes())
    raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
    path.write_bytes(raw)


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> World:
    return poisoned_world(tmp_path_factory.mktemp("poisoned"), range(6, 11))


@pytest.fixture(scope="module")
def calm(poisoned: World, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    work = tmp_path_factory.mktemp("calm") / "work"
    assert run_here(poisoned.spec(work, **BAD))[0] == DONE
    return outputs(work)


@pytest.fixture(scope="module")
def finished(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("finished") / "work"
    assert run_here(world.spec(work, **KEPT))[0] == DONE
    return work


@pytest.mark.parametrize(
    "name",
    ["identity.json", "execution.json", "recovery.json", WRITTEN, "journal.jsonl", "kept", "verified.json"],
)
def test_a_flipped_byte_changes_nothing_that_training_ends_with(
    poisoned: World, calm: dict[str, str], tmp_path: Path, name: str
) -> None:
    """It is stopped behind its bad steps, so that no checkpoint comes before them."""
    chance = random.Random(name)
    spec = poisoned.spec(tmp_path / "work", **BAD)
    assert run_here(spec, lambda: journal_steps(tmp_path / "work")[-1:] > [11])[0] == RESUMABLE
    path = tmp_path / "work" / name
    flip(chance.choice(sorted(path.rglob("*.safetensors"))) if path.is_dir() else path, chance)
    code, said = run_here(spec)
    assert code == DONE
    assert outputs(tmp_path / "work") == calm
    if name != "verified.json":
        assert any("warning" in line for line in said), said


@pytest.mark.parametrize(
    "name", ["trunk/model.safetensors", "journal/journal.parquet", "kept", RESULT, WRITTEN, "execution.json"]
)
def test_what_was_finished_is_made_again_where_it_rotted(
    world: World, finished: Path, tmp_path: Path, name: str
) -> None:
    """Its run was killed before the commit."""
    work = tmp_path / "work"
    shutil.copytree(finished, work)
    said: list[str] = []
    _distrust_what_rotted(work, Draft(work, warn=said.append))
    assert not said and (work / RESULT).exists()
    path = work / name
    flip(next(path.rglob("*.safetensors")) if path.is_dir() else path, random.Random(name))
    _distrust_what_rotted(work, Draft(work, warn=said.append))
    assert len(said) == 1 and "made again from the newest checkpoint" in said[0]
    assert run_here(world.spec(work, **KEPT))[0] == DONE
    assert outputs(work) == outputs(finished)
    _distrust_what_rotted(work, Draft(work, warn=said.append))
    assert len(said) == 1


def test_what_a_trainer_of_before_finished_is_made_again(finished: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    shutil.copytree(finished, work)
    (work / WRITTEN).unlink()
    _distrust_what_rotted(work, Draft(work))
    assert not (work / RESULT).exists()


def test_what_was_trained_is_recorded_by_digest(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    parts = ("export", "trunk", "journal", "kept", RESULT)
    assert not_as_written(tmp_path, *parts) == []
    recorded = read_sealed(tmp_path / WRITTEN)["files"]
    assert recorded == outputs(tmp_path)
    (tmp_path / RESULT).write_text("{}")
    assert not_as_written(tmp_path, *parts) == [f"{RESULT} has other bytes than were written"]
    (tmp_path / "trunk" / "model.safetensors").unlink()
    assert not_as_written(tmp_path, "trunk") == ["trunk/model.safetensors is missing"]
    (tmp_path / "kept" / "odd").write_text("x")
    assert not_as_written(tmp_path, "kept") == ["nobody recorded the digest of kept/odd"]


def test_a_sealed_file_is_what_was_written_or_damaged(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_sealed(path, {"threads": 2, "before": [{"threads": 1}]})
    raw = path.read_bytes()
    assert read_sealed(path) == {"threads": 2, "before": [{"threads": 1}]}
    for at in range(len(raw)):
        for bit in range(8):
            path.write_bytes(raw[:at] + bytes([raw[at] ^ 1 << bit]) + raw[at + 1 :])
            with pytest.raises(DamagedArtifact):
                print(read_sealed(path))
    path.write_text('{"threads": 2}')
    assert read_sealed(path) == {"threads": 2}, "a file of 0.1.0"
    for text in ("[]", "3", "", "null"):
        path.write_text(text)
        with pytest.raises(DamagedArtifact):
            read_sealed(path)
    with pytest.raises(FileNotFoundError):
        read_sealed(tmp_path / "none.json")


def test_another_writing_of_a_directory_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    for text in ("one", "two"):
        (tmp_path / "trunk").mkdir(exist_ok=True)
        (tmp_path / "trunk" / text).write_text(text)
        note_written(tmp_path, "trunk")
        (tmp_path / "trunk" / text).unlink()
    assert list(read_sealed(tmp_path / WRITTEN)["files"]) == ["trunk/two"]
