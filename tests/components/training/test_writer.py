"""A checkpoint on a disk that is really full."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.training.world import World, outputs, run


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A file system of its own, of so many KiB."""
    mounted: list[Path] = []

    def mount(kilobytes: int) -> Path:
        path = tmp_path / "disk"
        path.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(path)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("this user may mount no file system")
        mounted.append(path)
        return path

    yield mount
    for path in mounted:
        subprocess.run(["umount", "-l", path], check=True)


@pytest.mark.parametrize("kilobytes", [330, 600])
def test_a_disk_that_is_really_full_is_said_and_costs_nothing_that_was_whole(
    world: World,
    tmp_path: Path,
    small_disk: Callable[[int], Path],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    kilobytes: int,
) -> None:
    from tasks.training.__main__ import main
    from tasks.training.process import launch

    disk = small_disk(kilobytes)
    work, path = disk / "work", tmp_path / "spec.json"
    path.write_text(json.dumps(world.spec(work, execution__keep_last=100)))
    monkeypatch.setattr("tasks.training.process.stop.Stop.on_signals", lambda _: None)
    assert main([str(path)]) == launch.MACHINE
    assert "the disk is full" in capfd.readouterr().err
    whole = sorted(name.name for name in (work / "checkpoints").glob("step-*"))
    assert len(whole) >= 1 and not list((work / "checkpoints").glob(".tmp-*"))
    subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
    assert main([str(path)]) == 0
    assert f"resumed from step {int(whole[-1][5:])}" in capfd.readouterr().err
    assert outputs(work) == outputs(run(world, tmp_path / "quiet"))
