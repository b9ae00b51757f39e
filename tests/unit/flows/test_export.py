"""An export is whole or not there, however it ends, and no collection takes the model away meanwhile."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import pytest

from flows.inspect import export
from storage.catalog import Catalog
from storage.errors import OnwardError
from storage.runs import collect_garbage


def test_an_export_is_whole_or_not_there(
    foreign: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, artifact = foreign
    target = tmp_path / "models" / "mine"

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def stopped(*_: Any) -> str:
        raise KeyboardInterrupt

    def beside_a_collection(*_: Any) -> str:
        with pytest.raises(OnwardError, match="a run is using"):
            collect_garbage(store)
        return "a card"

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfile", full)
        with pytest.raises(OnwardError, match=r"mine: no space left; the model takes 1 bytes\. Nothing was"):
            export.export_model(Catalog(store), artifact, target)
    with monkeypatch.context() as patched:
        patched.setattr(export, "model_card", stopped)
        with pytest.raises(KeyboardInterrupt):
            export.export_model(Catalog(store), artifact, target)
    assert list(target.parent.iterdir()) == []
    monkeypatch.setattr(export, "model_card", beside_a_collection)
    export.export_model(Catalog(store), artifact, target)
    assert {path.name: path.read_text() for path in target.iterdir()} == {
        "letters.txt": "a",
        "README.md": "a card",
    }
    assert [path.name for path in target.parent.iterdir()] == ["mine"]
    with pytest.raises(OnwardError, match="exists already"):
        export.export_model(Catalog(store), artifact, target)
