"""What all tests share: where the real data lies, and an environment in which no service phones home."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
os.environ.update(
    DO_NOT_TRACK="true",
    PREFECT_SERVER_ANALYTICS_ENABLED="false",
    HF_HUB_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real corpora, benchmarks and a small model; skips where they are absent."""
    path = Path(os.environ.get("ONWARD_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"the test data is not at {path}; set ONWARD_TEST_DATA")
    return path.resolve()
