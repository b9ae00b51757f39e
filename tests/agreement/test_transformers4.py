"""Exports of every family that can be trained are the same models in transformers 4.57: logits and ids."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.models.files import import_model
from tasks.models.readers import write_readers
from tasks.training.state.readers import add_readers
from tests.support import ROOT
from tests.support.old_reader import read
from tests.support.training.families import of_every_family
from tests.support.training.world import make_tokenizer, save_model

pytestmark = pytest.mark.slow
OLD = Path(sys.prefix) / "transformers4"
PROMPT = "w5 w6 w90 w7"
FAMILIES = of_every_family()
LATER = ("nanochat", "qwen3_5")
"""What version 4 does not know."""


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each family as a run exports it: imported, with what other readers need."""
    root, made = tmp_path_factory.mktemp("families"), {}
    torch.set_num_threads(1)
    make_tokenizer(root / "tokenizer")
    for family, config in FAMILIES.items():
        base, export, readers = (root / family / part for part in ("base", "export", "readers"))
        for directory in (base, export, readers):
            directory.mkdir(parents=True)
        for path in (root / "tokenizer").iterdir():
            (base / path.name).write_bytes(path.read_bytes())
        save_model(config(), base, spread=3.0)
        import_model(base, export)
        write_readers(export, readers, base)
        add_readers(export, readers)
        made[family] = export
    return made


@pytest.fixture(scope="module")
def theirs(exports: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """One process of version 4 reads all."""
    if not (OLD / "transformers").is_dir():
        pytest.skip(f"there is no transformers 4.57 in {OLD}: make install-agreement")
    answer = subprocess.run(
        [sys.executable, "-m", "tests.support.old_reader", PROMPT, *map(str, exports.values())],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(OLD), str(ROOT)]), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr[-2000:]
    return dict(zip(exports, map(json.loads, answer.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_version_4_reads_the_model_that_was_trained(
    family: str, exports: dict[str, Path], theirs: dict[str, dict[str, Any]]
) -> None:
    found, ours = theirs[family], read(str(exports[family]), PROMPT)
    assert found["version"].startswith("4.57") and "error" not in ours
    if family.startswith(LATER):
        assert "does not recognize this architecture" in found["error"] or "Unrecognized" in found["error"]
        return
    assert "error" not in found, found
    assert found["ids"] == ours["ids"] == [5, 6, 90, 7]
    largest = max(map(abs, ours["logits"]))
    assert found["logits"] == pytest.approx(ours["logits"], abs=1e-4 * largest)
