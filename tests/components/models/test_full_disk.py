"""A base imported onto a disk that takes no more: said as by every other stage, and the same import goes on."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage.errors import StageFailed
from tests.support.base_model import import_base, small_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """230 KB of weights."""
    small_model(tmp_path / "model", hidden_size=64)
    return tmp_path / "model"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 140 KiB."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=140k", "tmpfs", str(path)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this user may mount no file system")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def test_a_disk_that_is_full_is_said_and_the_import_goes_on(model: Path, tmp_path: Path, disk: Path) -> None:
    with pytest.raises(StageFailed, match=r"base: no space left under .* bytes free.*make room first"):
        import_base(model, disk)
    subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
    made, other = import_base(model, disk), import_base(model, tmp_path / "elsewhere")
    assert made.part("export").digest == other.part("export").digest


def test_a_limit_of_file_sizes_is_said(model: Path, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(StageFailed, match=r"a file grew larger than is allowed \(ulimit -f"):
            import_base(model, tmp_path / "store")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    import_base(model, tmp_path / "store")
