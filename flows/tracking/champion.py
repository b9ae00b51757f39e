"""The champion among several models: the best in the domain among those not clearly worse in general than the base.

"In the domain": the mean of the main metric over the domain benchmarks with equal weights; without any, bits per byte on
the domain's held-out text. "Clearly worse in general": the report of the same models says so about the mean of the
general benchmarks against the base; without any, about perplexity on any replay text. The same functions compute it from
the same tables, draws, tests and families of tests. If two models are equally good, the one with fewer tokens wins. Only
models measured on the same questions and documents, in the same way and in the same roles (domain or general), are
compared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from storage.artifact import Artifact
from storage.errors import OnwardError
from tasks.pages.report.facts import (
    GROUPS,
    GroupRow,
    ModelChange,
    PerplexityRow,
    R,
    ResultRow,
    Verdict,
    change_of,
)

if TYPE_CHECKING:
    from tasks.pages.report.scores import Measure

TAG = "standing"
Kind = Literal["benchmarks", "texts"]
"""What the level in the domain is the mean of."""


@dataclass(frozen=True)
class Candidate:
    """A model of a run: its name, tokens seen, evaluations by benchmark, and perplexities by source."""

    name: str
    tokens: int
    scores: Mapping[str, Artifact]
    perplexity: Mapping[str, Artifact]


@dataclass(frozen=True)
class ChangeToBase:
    """A general change against the base; more is better. [low, high] is the 95 % interval, None if there is none."""

    value: float
    low: float | None
    high: float | None
    verdict: Verdict


@dataclass(frozen=True)
class Standing:
    """Level in the `domain` (more is better), and the general change against the base with its interval and verdict.

    None means not measured. The change is in the mean of the general benchmarks. Without any, it is the relative change of
    perplexity on the replay text that lost most, with the sign turned so that more is better.
    """

    tokens: int
    domain: float
    general: float | None
    low: float | None
    high: float | None
    measure: str
    """Digest of what was measured, how, and in which role (domain or general). Equal for models that can be compared."""
    verdict: Verdict | None = None

    @property
    def clearly_worse(self) -> bool:
        """Whether the model lost something in general, by the report's verdict."""
        return self.verdict == "worse"

    def tags(self) -> dict[str, str]:
        """The tag of a model version. `standing_of` reads it."""
        return {TAG: json.dumps(asdict(self))}


def standing_of(tags: Mapping[str, str]) -> Standing | None:
    """Read a version's tags; None if it was not measured. A missing verdict is derived from the interval."""
    try:
        known = json.loads(tags[TAG])
        if "verdict" not in known and known["high"] is not None:
            known["verdict"] = "worse" if known["high"] < 0 else "no clear change"
        return Standing(**known)
    except (KeyError, ValueError, TypeError):
        return None


def choose(standings: Mapping[str, Standing], measure: str) -> str | None:
    """The champion's name among the models with this `measure`; None if there is none."""
    able = {name: one for name, one in standings.items() if one.measure == measure and not one.clearly_worse}
    if not able:
        return None
    return min(able, key=lambda name: (-able[name].domain, able[name].tokens, _numbered(name)))


def _numbered(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdigit() else (0, name)


def standings(
    models: Sequence[Candidate], groups: Mapping[str, str], roles: Mapping[str, str]
) -> dict[str, Standing | None]:
    """Each model's standing by name; the first model is the base. The same inputs give the same result, bit for bit.

    `groups`: benchmark → domain or general; `roles`: source → domain or replay. A standing is None if nothing of the domain
    was measured. Raises OnwardError if a model and the base got different questions, or were measured in different ways.
    """
    changes = _changes(models, groups, roles)
    found: dict[str, Standing | None] = {}
    for model in models:
        level = _level(model, groups, roles)
        if level is None:
            found[model.name] = None
            continue
        kind, domain = level
        change = changes.get(model.name)
        value, low, high = (change.value, change.low, change.high) if change else (None, None, None)
        measure = _measure(model, kind, groups, roles)
        verdict = change.verdict if change else None
        found[model.name] = Standing(model.tokens, domain, value, low, high, measure, verdict)
    return found


def _level(
    model: Candidate, groups: Mapping[str, str], roles: Mapping[str, str]
) -> tuple[Kind, float] | None:
    """A model's level in the domain, and what it is the mean of; None if nothing of the domain was measured."""
    scores = [model.scores[name] for name, one in groups.items() if one == "domain" and name in model.scores]
    if scores:
        return "benchmarks", _mean(float(one.stats["metrics"][one.stats["main"]]) for one in scores)
    texts = [
        model.perplexity[name] for name, one in roles.items() if one == "domain" and name in model.perplexity
    ]
    return ("texts", -_mean(float(one.stats["bits_per_byte"]) for one in texts)) if texts else None


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


def _changes(
    models: Sequence[Candidate], groups: Mapping[str, str], roles: Mapping[str, str]
) -> dict[str, ChangeToBase]:
    """Each model's general change against the base, as in the report; empty if nothing general was measured."""
    from tasks.pages.report.groups import group_row
    from tasks.pages.report.inputs import ReportInputs
    from tasks.pages.report.scores import benchmark_row, perplexity_row

    names = [model.name for model in models]
    inputs = ReportInputs(
        models=(),
        scores={model.name: {n: one.part("scores") for n, one in model.scores.items()} for model in models},
        questions={
            model.name: {n: one.part("questions") for n, one in model.scores.items()} for model in models
        },
        perplexity={
            model.name: {n: one.part("scores") for n, one in model.perplexity.items()} for model in models
        },
        documents={
            model.name: {n: one.part("documents") for n, one in model.perplexity.items()} for model in models
        },
    )
    benchmarks = [
        asked
        for name, group in groups.items()
        if (asked := benchmark_row(name, group, names, inputs)) is not None
    ]
    means = [mean for group in GROUPS if (mean := group_row(group, benchmarks, names)) is not None]
    if any(mean.row.group == "general" for mean in means):
        return _judged(means, lambda row: row.group == "general", names)
    texts = [text for name in roles if (text := perplexity_row(name, names, inputs)) is not None]
    return _judged(texts, lambda row: roles[row.source] == "replay", names)


def _judged(
    measures: Sequence[Measure[R]], general: Callable[[R], bool], names: Sequence[str]
) -> dict[str, ChangeToBase]:
    """For each model, its worst change among the general rows. All rows together form one family of tests."""
    from tasks.pages.report.scores import add_changes

    base, *others = names
    rows = add_changes(measures, [(base, name) for name in others])
    chosen = [row for row in rows if general(row) and base in row.models]
    if not chosen:
        return {}
    found = {base: ChangeToBase(0.0, 0.0, 0.0, "no clear change")}
    for name in others:
        changes = [_change(row, change_of(row, base, name), name) for row in chosen if name in row.models]
        if changes:
            found[name] = min(changes, key=lambda one: (one.verdict != "worse", one.value))
    return found


def _change(row: ResultRow, change: ModelChange | None, name: str) -> ChangeToBase:
    """The change, turned so that more is better. Raises OnwardError if the two models cannot be compared."""
    if change is None:
        what = ", ".join(row.benchmarks) if isinstance(row, GroupRow) else row.label
        raise OnwardError(
            f"{name} and the base were asked other questions or documents, or in another way, of {what}: the model's "
            "change to the base cannot be told"
        )
    value, low, high = change.value, change.low, change.high
    if isinstance(row, PerplexityRow):  # less is better
        low, high = (None if end is None else -end for end in (high, low))
        value = -value
    return ChangeToBase(value, low, high, change.verdict)


def _measure(model: Candidate, kind: Kind, groups: Mapping[str, str], roles: Mapping[str, str]) -> str:
    """Digest of what was measured, how, and in which role. It does not depend on the model."""
    found: list[Any] = [kind]
    for measured, counted_as in ((model.scores, groups), (model.perplexity, roles)):
        for name, one in sorted(measured.items()):
            inputs = {key: value for key, value in one.manifest.inputs.items() if key != "model"}
            found.append([name, counted_as.get(name), one.manifest.config, _digests(inputs)])
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]


def _digests(value: Any) -> Any:
    """Replace references by their digests. The same bytes count as equal, however they were made."""
    if isinstance(value, Mapping):
        return (
            value["digest"] if "digest" in value else {name: _digests(item) for name, item in value.items()}
        )
    return [_digests(item) for item in value] if isinstance(value, list | tuple) else value
