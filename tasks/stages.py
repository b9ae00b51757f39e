"""The one table of stages. All lists, choices in forms and options, the lock and the pages derive from it.

A stage's name is the name of its module. The order is that of a run. This module imports nothing of the project, so
every other module may use it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Group = Literal["corpus", "models", "training", "measures", "pages"]


@dataclass(frozen=True)
class Stage:
    """One kind of stage. `module` is its dotted module name, which holds STAGE, VERSION and `run`."""

    module: str
    group: Group
    on_device: bool = False
    """Whether it computes on the GPU if there is one."""
    per_slice: bool = False
    """Whether it runs once for each slice of the corpus."""
    can_end: bool = False
    """Whether a run can end after it (`--until`)."""

    @property
    def name(self) -> str:
        """The stage's name: the last part of its module's name."""
        return self.module.rpartition(".")[2]


TABLE = (
    Stage("tasks.documents.extract", "corpus", per_slice=True, can_end=True),  # of sources of documents alone
    Stage("tasks.corpus.ingest", "corpus", per_slice=True, can_end=True),
    Stage("tasks.corpus.dedup", "corpus", per_slice=True, can_end=True),
    Stage("tasks.corpus.likeness", "corpus"),
    Stage("tasks.corpus.filter", "corpus", per_slice=True, can_end=True),
    Stage("tasks.corpus.decontaminate", "corpus", per_slice=True, can_end=True),
    Stage("tasks.corpus.tokenizer", "models"),
    Stage("tasks.models.base", "models"),
    Stage("tasks.corpus.tokenize", "corpus", per_slice=True, can_end=True),
    Stage("tasks.corpus.pack", "corpus", can_end=True),
    Stage("tasks.pages.data.data", "pages", can_end=True),  # needs no training: --until data ends before it
    Stage("tasks.models.train", "training", on_device=True, can_end=True),
    Stage("tasks.models.decay", "training", on_device=True, can_end=True),
    Stage("tasks.models.checkpoint", "models"),
    Stage("tasks.models.merge", "models"),
    Stage("tasks.evaluation.questions", "measures"),
    Stage("tasks.evaluation.perplexity", "measures", on_device=True),
    Stage("tasks.evaluation.evaluate", "measures", on_device=True, can_end=True),
    Stage("tasks.evaluation.samples", "measures", on_device=True),
    Stage("tasks.corpus.contamination", "measures"),
    Stage("tasks.pages.report.report", "pages", can_end=True),
)
"""Every stage."""

NAMES = tuple(stage.name for stage in TABLE)
CORPUS = tuple(stage.name for stage in TABLE if stage.per_slice)
"""Stages that each slice goes through, in order."""
TRAINING = tuple(stage.name for stage in TABLE if stage.group == "training")
ON_DEVICE = frozenset(stage.name for stage in TABLE if stage.on_device)
ENDS = tuple(stage.name for stage in TABLE if stage.can_end)
"""Stages that a run can end after, in order."""
