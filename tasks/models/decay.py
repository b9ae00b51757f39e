"""Stage `decay`: the branch from a trunk to a budget. It runs like `train`, under its own name in the store."""

from __future__ import annotations

from tasks.models.config import SegmentConfig
from tasks.models.train import CODE_ROOTS, COMPONENTS, VERSION, TrainInputs, TrainStats, components, run

__all__ = [
    "CODE_ROOTS",
    "COMPONENTS",
    "STAGE",
    "VERSION",
    "SegmentConfig",
    "TrainInputs",
    "TrainStats",
    "components",
    "run",
]

STAGE = "decay"
