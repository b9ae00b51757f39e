"""Which of several models is the champion: the best in the domain among those not clearly worse in general than the base.

In the domain: the mean of the main metric over the domain's benchmarks, each counted alike; where there is none, bits per
byte of the domain's held-out text. Clearly worse in general: the 95 % interval of the difference to the base, paired by
question and averaged over the general benchmarks (where there is none: by held-out document of replay, in bits per byte),
lies wholly on the worse side. Of two that are equally good, the one that has seen fewer tokens. Only models that were
measured on the same questions and documents in the same way, and where each counts as the same (domain or general), are
compared.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage.artifact import Artifact
from storage.errors import OnwardError
from tasks.evaluation.catalog import questions_of

TAG = "standing"
Kind = Literal["benchmarks", "texts"]
"""Of what the level in the domain is the mean."""
_WIDTH = 1.959963984540054
"""Standard errors to either side in a 95 % interval of a normal mean."""


@dataclass(frozen=True)
class Measured:
    """A model's evaluations by benchmark, and perplexities by source."""

    scores: Mapping[str, Artifact]
    perplexity: Mapping[str, Artifact]


@dataclass(frozen=True)
class Standing:
    """`domain`: more is better; `general`: the change to the base with its interval, more is better; None: not measured."""

    tokens: int
    domain: float
    general: float | None
    low: float | None
    high: float | None
    measure: str
    """Digest of what was measured, how, and as what (domain or general): equal for models that can be compared."""

    @property
    def clearly_worse(self) -> bool:
        """Whether something was lost in general, beyond doubt."""
        return self.high is not None and self.high < 0

    def tags(self) -> dict[str, str]:
        """As a model version's tag, from which `standing_of` reads it again."""
        return {TAG: json.dumps(asdict(self))}


def standing_of(tags: Mapping[str, str]) -> Standing | None:
    """From a version's tags; None where it was not measured."""
    try:
        return Standing(**json.loads(tags[TAG]))
    except (KeyError, ValueError, TypeError):
        return None


def choose(standings: Mapping[str, Standing], measure: str) -> str | None:
    """The champion's name among those measured so; None where there are none."""
    able = {name: one for name, one in standings.items() if one.measure == measure and not one.clearly_worse}
    if not able:
        return None
    return min(able, key=lambda name: (-able[name].domain, able[name].tokens, _numbered(name)))


def _numbered(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdigit() else (0, name)


def standing(
    tokens: int, model: Measured, base: Measured, groups: Mapping[str, str], roles: Mapping[str, str]
) -> Standing | None:
    """Where a model stands beside its base; `groups`: benchmark → domain or general; `roles`: source → domain or replay.

    None where nothing of the domain was measured. Raises OnwardError where model and base were asked other questions.
    """
    domain = [
        model.scores[name] for name, group in groups.items() if group == "domain" and name in model.scores
    ]
    texts = [
        model.perplexity[name]
        for name, role in roles.items()
        if role == "domain" and name in model.perplexity
    ]
    if domain:
        kind: Kind = "benchmarks"
        level = float(np.mean([one.stats["metrics"][one.stats["main"]] for one in domain]))
    elif texts:
        kind = "texts"
        level = -float(np.mean([one.stats["bits_per_byte"] for one in texts]))
    else:
        return None
    change = _general_change(model, base, groups, roles)
    low, high = (change[0] - _WIDTH * change[1], change[0] + _WIDTH * change[1]) if change else (None, None)
    measure = _measure(model, kind, groups, roles)
    return Standing(tokens, level, change[0] if change else None, low, high, measure)


def _general_change(
    model: Measured, base: Measured, groups: Mapping[str, str], roles: Mapping[str, str]
) -> tuple[float, float] | None:
    """(mean of the paired differences to the base, its standard error), more is better."""
    names = [n for n, g in groups.items() if g == "general" and n in model.scores and n in base.scores]
    if names:
        return _by_question(model, base, names)
    names = [n for n, r in roles.items() if r == "replay" and n in model.perplexity and n in base.perplexity]
    if names:
        return _averaged(_by_document(model.perplexity[name], base.perplexity[name]) for name in names)
    return None


def _averaged(changes: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """Means of independent samples, each counted alike."""
    values, errors = zip(*changes, strict=True)
    return float(np.mean(values)), math.sqrt(sum(error**2 for error in errors)) / len(values)


def _by_question(model: Measured, base: Measured, names: Sequence[str]) -> tuple[float, float]:
    """Mean and standard error of the differences of the benchmarks' main metrics, each counted alike.

    Of benchmarks that ask the same questions in other words, what a question gives to each is summed before it is squared.
    """
    means: list[float] = []
    parts: dict[tuple[str, str | None, int], float] = {}
    for name in names:
        ours, theirs = model.scores[name], base.scores[name]
        metric = str(ours.stats["main"])
        after, before = _alike(ours, theirs, "questions", ["subject", "doc"], [metric])
        differences = after[metric].to_numpy().astype(np.float64) - before[metric].to_numpy()
        means.append(float(differences.mean()))
        count = len(differences)
        scale = 1 / math.sqrt(max(1, count * (count - 1))) / len(names)
        asked = zip(after["subject"].to_pylist(), after["doc"].to_pylist(), strict=True)
        for (subject, doc), away in zip(asked, differences - differences.mean(), strict=True):
            key = (questions_of(name), subject, doc)
            parts[key] = parts.get(key, 0.0) + (float(away) * scale if count > 1 else math.inf)
    return float(np.mean(means)), math.sqrt(sum(part**2 for part in parts.values()))


def _by_document(model: Artifact, base: Artifact) -> tuple[float, float]:
    """Change in bits per byte, turned so that more is better, with the standard error of a ratio (Cochran 1977, 6.13)."""
    ours, theirs = _alike(model, base, "documents", ["id", "bytes"], ["nll"])
    size = ours["bytes"].to_numpy().astype(np.float64)
    gained = (theirs["nll"].to_numpy() - ours["nll"].to_numpy()) / math.log(2)
    ratio = gained.sum() / size.sum()
    if len(size) < 2:
        return float(ratio), math.inf
    spread = ((gained - ratio * size) ** 2).sum() * len(size) / (len(size) - 1)
    return float(ratio), float(math.sqrt(spread) / size.sum())


def _alike(
    model: Artifact, base: Artifact, part: str, same: list[str], measured: list[str]
) -> tuple[pa.Table, pa.Table]:
    """Both tables, row by row of the same question or document. Raises OnwardError where they are not, or are empty."""
    ours, theirs = (pq.read_table(one.part(part).only(), columns=[*same, *measured]) for one in (model, base))
    if not len(ours) or not ours.select(same).equals(theirs.select(same)):
        raise OnwardError(
            f"{model.stage}/{model.key[:16]} and {base.stage}/{base.key[:16]} (the base) hold other {part}: the model's "
            "change to the base cannot be told"
        )
    return ours, theirs


def _measure(model: Measured, kind: Kind, groups: Mapping[str, str], roles: Mapping[str, str]) -> str:
    """What was measured and how, and what of it counts as what, whatever the model."""
    found: list[Any] = [kind]
    for measured, counted_as in ((model.scores, groups), (model.perplexity, roles)):
        for name, one in sorted(measured.items()):
            inputs = {key: value for key, value in one.manifest.inputs.items() if key != "model"}
            found.append([name, counted_as.get(name), one.manifest.config, _digests(inputs)])
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]


def _digests(value: Any) -> Any:
    """Without keys of stages: the same bytes count as the same, however they were made."""
    if isinstance(value, Mapping):
        return (
            value["digest"] if "digest" in value else {name: _digests(item) for name, item in value.items()}
        )
    return [_digests(item) for item in value] if isinstance(value, list | tuple) else value
