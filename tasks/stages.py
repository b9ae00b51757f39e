"""The one table of stages. All lists, choices of forms and options, the lock and the pages derive from it.

A stage's name is its module's name. The order is that of a run; imports nothing, so that everything may ask here.
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
    """Whether it computes on the GPU where there is one."""
    per_slice: bool = False
    """Whether each slice of the corpus has one."""
    can_end: bool = False
    """Whether a run can be ended after it (`--until`)."""

    @property
    def name(self) -> str:
        """The stage's name: the last part of its module's."""
        return self.module.rpartition(".")[2]


TABLE = (
    Stage("tasks.corpus.ingest", "corpus", per_slice=True, can_end=True),
    Stage("tasks.corpus.dedup", "corpus", per_slice=True, can_end=True),
    Stage("tasks.corpus.filter", "corpus", per_slice=True, can_end=True),
    Stage("tasks.corpus.decontaminate", "corpus", per_slice=True, can_end=True),
    Stage("tasks.corpus.tokenizer", "models"),
    Stage("tasks.models.base", "models"),
    Stage("tasks.corpus.tokenize", "corpus", per_slice=True, can_end=True),
    Stage("tasks.corpus.pack", "corpus", can_end=True),
    Stage("tasks.models.train", "training", on_device=True, can_end=True),
    Stage("tasks.models.decay", "training", on_device=True, can_end=True),
    Stage("tasks.models.checkpoint", "models"),
    Stage("tasks.evaluation.questions", "measures"),
    Stage("tasks.evaluation.perplexity", "measures", on_device=True),
    Stage("tasks.evaluation.evaluate", "measures", on_device=True, can_end=True),
    Stage("tasks.evaluation.samples", "measures", on_device=True),
    Stage("tasks.corpus.contamination", "measures"),
    Stage("tasks.pages.data.data", "pages", can_end=True),
    Stage("tasks.pages.report.report", "pages", can_end=True),
)
"""Every stage."""

NAMES = tuple(stage.name for stage in TABLE)
CORPUS = tuple(stage.name for stage in TABLE if stage.per_slice)
"""Those that each slice goes through, in order."""
TRAINING = tuple(stage.name for stage in TABLE if stage.group == "training")
ON_DEVICE = frozenset(stage.name for stage in TABLE if stage.on_device)
ENDS = tuple(stage.name for stage in TABLE if stage.can_end)
"""What a run can be ended after, in order."""
