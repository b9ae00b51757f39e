"""What a plan imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.smollm import config, smollm_home


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return smollm_home(tmp_path, monkeypatch)


def test_torch_is_not_loaded_where_nothing_is_to_be_trained(home: Path) -> None:
    (home / "run.json").write_text(config().model_dump_json())
    program = (
        "import sys; from flows.config import parse_config; from flows.quote.training import with_estimates; "
        "from flows.dag.plan import PlanRow; import json; run = parse_config(json.load(open('run.json'))); "
        "rows = [PlanRow('train', None, 1, None, 'cached', 'k'), PlanRow('pack', None, 1, None, 'to build', 'k')]; "
        "assert with_estimates(run, rows) == rows; print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=home, env={"PYTHONPATH": str(ROOT), "ONWARD_HOME": str(home)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.strip() == "False", done.stderr
