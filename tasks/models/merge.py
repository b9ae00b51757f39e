"""Stage `merge`: a model of weights between models that are there. Nothing is trained.

Three ways, each a sum of models with a weight for each:
    interpolate  (1 − α) · base + α · adapted   (Wortsman et al. 2021, arXiv 2109.01903, WiSE-FT; of continued
                 pre-training: arXiv 2407.08699)
    average      the mean of the last n checkpoints of a trunk, in place of a decay (Tian et al. 2025, arXiv 2507.17634)
    instruct     adapted + γ · (instruct − base): what made a chat model of the base, added to the adapted one
                 (arXiv 2410.10739)

Each number is computed in float64 and rounded once, to the type of the adapted weights; a block of numbers is in memory at
a time. The same inputs give the same bytes.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import model_validator

from storage.artifact import Input
from storage.draft import Draft
from storage.errors import ConfigError
from storage.settings import LineText, PathText, Real, Settings, Whole, execution, identity
from storage.units import Bounds
from tasks.models.checkpoint import OF_TRAINING
from tasks.models.source import CONFIG

STAGE = "merge"
VERSION = 1

Kind = Literal["interpolate", "average", "instruct"]
NAMES: dict[Kind, str] = {"interpolate": "alpha", "average": "average", "instruct": "chat"}
"""What a merged model is called, after the budget that it was made of: `1B-alpha-0.5`, `1B-average-4`, `1B-chat-1`."""
_KEPT = "kept/tokens-"


class MergePlan(Settings):
    """The section `merge`: models between the base and the last budget's, each measured as a model of the run."""

    interpolate: tuple[Annotated[Real, Bounds(gt=0, lt=1)], ...] = identity(
        (), description="shares α of the last budget's model, between it and the base; each gives a model"
    )
    average: Annotated[Whole, Bounds(ge=2, le=1000)] | None = identity(
        None,
        description="how many of the checkpoints that trunks kept last are averaged (training.keep_every_tokens); null: "
        "none",
    )
    instruct: PathText | None = execution(
        None,
        description="hub name or directory of a chat model that was made from this base: what was done to it is added to "
        "the "
        "last budget's model; null: none",
    )
    revision: LineText = execution(
        "main", min_length=1, description="branch, tag or commit of the chat model, if it is on the hub"
    )
    licence: LineText | None = execution(
        None, min_length=1, description="licence of the chat model, such as apache-2.0: model cards name it"
    )
    strength: tuple[Annotated[Real, Bounds(gt=0, le=4)], ...] = identity(
        (1.0,),
        min_length=1,
        description="with instruct: how much of the difference is added (γ); each gives a model",
    )

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        for name in ("interpolate", "strength"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"merge.{name} names a value twice")
        return self

    @property
    def asked(self) -> bool:
        """Whether any model is to be made."""
        return bool(self.interpolate or self.average or self.instruct)


class MergeConfig(Settings):
    """One model: `value` is α, the number of checkpoints, or γ."""

    kind: Kind = identity(description="which sum")
    value: float = identity(description="α, the number of checkpoints, or γ")

    @property
    def name(self) -> str:
        """`alpha-0.5`, `average-4`, `chat-1`."""
        return f"{NAMES[self.kind]}-{self.value:g}"


@dataclass(frozen=True)
class Source:
    """A model in a part: in the part's own directory, or in one below it, of a trunk's kept checkpoints."""

    part: Input
    directory: str = "export"

    @property
    def path(self) -> Path:
        """Where its files are."""
        return self.part.root / self.directory

    @property
    def files(self) -> list[Path]:
        """Its files."""
        return [path for path in self.part.paths if path.is_relative_to(self.path)]

    @property
    def tokens_seen(self) -> int:
        """Tokens that it was trained on; 0 for a base that was imported."""
        if self.directory.startswith(_KEPT):
            return int(self.directory.removeprefix(_KEPT))
        return int(self.part.stats.get("tokens_seen", 0))


@dataclass(frozen=True)
class MergeInputs:
    """`models`, in the order of their weights: base, adapted; or the checkpoints, oldest first; or base, instruct, adapted.

    `readers`: what exports of the chat model say for other readers (tasks/models/readers.py), if it has such a part.
    """

    models: tuple[Source, ...]
    readers: Input | None = None


@dataclass(frozen=True)
class MergeStats:
    """How it was made, the tokens that the model behind it saw, and its numbers."""

    kind: str
    value: float
    tokens_seen: int
    parameters: int


def weights_of(config: MergeConfig, models: int) -> tuple[float, ...]:
    """The weight of each model in the sum."""
    if config.kind == "interpolate":
        return 1 - config.value, config.value
    if config.kind == "average":
        return (1 / models,) * models
    return -config.value, config.value, 1.0


def run(config: MergeConfig, inputs: MergeInputs, draft: Draft) -> MergeStats:
    """Part `export`: weights, configuration and tokenizer.

    The configuration and the tokenizer are those of the adapted model; of kind instruct those of the chat model, with its
    chat template. Raises ConfigError if the models are not alike.
    """
    from tasks.models.summed import check_words, write_sum
    from tasks.training.state.readers import add_readers

    like = inputs.models[1] if config.kind == "instruct" else inputs.models[-1]
    directories = [one.path for one in inputs.models]
    if config.kind == "instruct":
        check_words(directories[0], directories[1])
    export = draft.path / "export"
    shutil.rmtree(export, ignore_errors=True)
    export.mkdir()
    for path in like.files:
        if (
            not path.name.endswith((".safetensors", ".safetensors.index.json"))
            and path.name not in OF_TRAINING
        ):
            shutil.copyfile(path, export / path.name)
    if inputs.readers is not None:
        add_readers(export, inputs.readers.root / inputs.readers.part)
    if not (export / CONFIG).is_file():
        raise ConfigError(f"{like.path} holds no model")
    parameters = write_sum(
        directories,
        weights_of(config, len(inputs.models)),
        export,
        lambda done, total: draft.progress(done, total, "numbers"),
    )
    draft.part("export", "export")
    return MergeStats(config.kind, config.value, max(one.tokens_seen for one in inputs.models), parameters)
