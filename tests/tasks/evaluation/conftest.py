from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.tasks.evaluation.cases import Case


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Iterator[Case]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # beside other tests, waiting threads cost more than they give
    yield Case(tmp_path_factory.mktemp("case"), shared_data)
    torch.set_num_threads(threads)
