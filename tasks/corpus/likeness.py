"""Stage `likeness`: learn what the documents of one source have that those of another have not.

Both are in the run: a user's own documents, and the replay text. A source that asks for it (`like`) is filtered by the
score. Four fifths of the documents are counted; each fifth by its id sets the scale, and says how well the two are told
apart.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from storage.artifact import Input
from storage.draft import Draft
from storage.errors import StageFailed
from storage.settings import Settings, identity
from tasks.corpus.documents import read_documents
from tasks.corpus.rules.likeness import counts, fitted, means, weights_of

STAGE = "likeness"
VERSION = 1
_MOST_BYTES = 64_000_000
"""Of each source, so much text is looked at."""
_CHARACTERS = 20_000
"""Of each document, its beginning."""
_LEAST_DOCUMENTS = 10
_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)
_EXAMPLES = 3
_SHOWN = 300


class LikenessConfig(Settings):
    """Nothing but the documents decides."""

    names: tuple[str, str] = identity(
        description="The source that is learned, and the one that it is told from."
    )


@dataclass(frozen=True)
class LikenessInputs:
    """Documents of a first slice each, from `dedup`."""

    documents: Input
    others: Input


@dataclass(frozen=True)
class LikenessStats:
    """`auc`: the chance that a document of the first source has a higher score than one of the second, of those that were
    not counted. `kept`: for each score, the shares of both that have at least that."""

    source: str
    unlike: str
    documents: int
    others: int
    auc: float
    kept: dict[str, tuple[float, float]]


def run(config: LikenessConfig, inputs: LikenessInputs, draft: Draft) -> LikenessStats:
    """Parts: model (weights), examples (documents near 0.5 on both sides). Raises StageFailed if there are too few."""
    sides = []
    for name, part in zip(config.names, (inputs.documents, inputs.others), strict=True):
        side = _read(part)
        if len(side.texts) < _LEAST_DOCUMENTS:
            raise StageFailed(
                f"likeness: source {name!r} has {len(side.texts)} documents, and {_LEAST_DOCUMENTS} are needed to tell it "
                "from another: give it more, or leave out like"
            )
        sides.append(side)
    mine, others = sides
    weights = weights_of(*(counts(side.texts.filter(pl.Series(~side.aside))) for side in sides))
    measured = [means(side.texts.filter(pl.Series(side.aside)), weights) for side in sides]
    model = fitted(weights, *measured)
    model.save(draft.path / "model.bin")
    draft.part("model", "model.bin")
    scores = [1 / (1 + np.exp(-(model.slope * each + model.offset))) for each in measured]
    examples = {
        name: _examples(side, each) for name, side, each in zip(config.names, sides, scores, strict=True)
    }
    (draft.path / "examples.json").write_text(
        json.dumps(examples, ensure_ascii=False, indent=0), encoding="utf-8"
    )
    draft.part("examples", "examples.json")
    stats = LikenessStats(
        *config.names,
        len(mine.texts),
        len(others.texts),
        _auc(*scores),
        {f"{level:g}": (_share(scores[0], level), _share(scores[1], level)) for level in _LEVELS},
    )
    if stats.auc < 0.8:
        draft.warn(
            f"likeness: documents of {config.names[0]!r} are hardly told from those of {config.names[1]!r} (of each one, "
            f"the right one has the higher score in {stats.auc:.0%}); a filter by it drops what should stay"
        )
    return stats


@dataclass(frozen=True)
class _Side:
    ids: np.ndarray
    texts: pl.Series
    aside: np.ndarray
    """Which are not counted: bool."""


def _read(part: Input) -> _Side:
    ids: list[np.ndarray] = []
    texts: list[pl.Series] = []
    size = 0
    for path in part.paths:
        table = read_documents([path], ["id", "text"])
        some = pl.Series(pl.from_arrow(table["text"])).str.slice(0, _CHARACTERS)
        ids.append(table["id"].to_numpy())
        texts.append(some)
        size += int(some.str.len_bytes().sum())
        if size >= _MOST_BYTES:
            break
    own = np.concatenate(ids) if ids else np.empty(0, np.uint64)
    aside = np.zeros(len(own), bool)
    aside[np.argsort(own)[::5]] = True
    return _Side(own, pl.concat(texts) if texts else pl.Series([], dtype=pl.String), aside)


def _share(scores: np.ndarray, level: float) -> float:
    return round(float((scores >= level).mean()), 4)


def _auc(mine: np.ndarray, others: np.ndarray) -> float:
    """Mann and Whitney's statistic; ties count a half."""
    order = np.sort(others)
    below, upto = np.searchsorted(order, mine, "left"), np.searchsorted(order, mine, "right")
    return round(float((below + upto).sum() / (2 * len(mine) * len(others))), 4)


def _examples(side: _Side, scores: np.ndarray) -> list[dict[str, Any]]:
    """The documents nearest to 0.5 on both sides of it, the highest score first."""
    texts, ids = side.texts.filter(pl.Series(side.aside)), side.ids[side.aside]
    order = np.argsort(-scores, kind="stable")
    above = [place for place in order if scores[place] >= 0.5][-_EXAMPLES:]
    below = [place for place in order if scores[place] < 0.5][:_EXAMPLES]
    return [
        {"id": str(ids[place]), "score": round(float(scores[place]), 4), "text": texts[int(place)][:_SHOWN]}
        for place in (*above, *below)
    ]
