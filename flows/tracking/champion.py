"""The champion among several models: clearly better in the domain than those before it, and not clearly worse in general
than the base.

"In the domain": the mean of the main metric over the domain benchmarks with equal weights; without any, bits per byte on
the domain's held-out text. "Clearly": the report of the same models says so, by the same functions from the same tables,
draws, tests and families of tests: about the mean of the group, without one about perplexity on any text of the role. The
alias stays where it is unless a model is clearly better than the one that has it. It begins with the model of the fewest
tokens, usually the base. Models of other runs are known by their tags alone: they differ clearly if their levels are two
standard errors of two samples apart, which is more than the same questions need. Only models measured on the same
questions and documents, in the same way and in the same roles (domain or general), are compared.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
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
_APART = 1.96
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
    error: float | None = None
    """Standard error of the level in the domain; None in tags of versions before 0.2."""
    run: str = ""
    """Digest of the run's models; `beaten` names models of it."""
    name: str = ""
    beaten: tuple[str, ...] = ()
    """Names of the run's models than which it is clearly better in the domain."""

    def beats(self, other: Standing) -> bool:
        """Whether it is clearly better in the domain."""
        if self.run and self.run == other.run:
            return other.name in self.beaten
        if self.error is None and other.error is None:
            return False
        errors = [
            one.error if one.error is not None else (self.error or other.error or 0.0)
            for one in (self, other)
        ]
        return self.domain - other.domain > _APART * math.hypot(*errors)

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
        known["beaten"] = tuple(known.get("beaten", ()))
        return Standing(**known)
    except (KeyError, ValueError, TypeError):
        return None


def results_text(models: Sequence[Candidate], name: str, place: Standing, differs: str | None = None) -> str:
    """What was measured of a model beside its base (the first of `models`), and the verdict, in Markdown."""
    base, model = models[0], next(one for one in models if one.name == name)
    sides = [model] if model is base else [base, model]
    rows = [["", *(one.name for one in sides)], ["---", *("---:" for _ in sides)]]
    for benchmark in model.scores:
        main = model.scores[benchmark].stats["main"]
        found = [one.scores[benchmark].stats["metrics"] if benchmark in one.scores else {} for one in sides]
        rows.append(
            [f"{benchmark} {main}", *(f"{100 * one[main]:.1f} %" if main in one else "" for one in found)]
        )
    for source in model.perplexity:
        seen = [one.perplexity.get(source) for one in sides]
        rows.append(
            [f"perplexity {source}", *(f"{one.stats['perplexity']:.2f}" if one else "" for one in seen)]
        )
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows) if len(rows) > 2 else ""
    verdict = (
        None if model is base or place.verdict is None else f"In general against its base: {place.verdict}."
    )
    parts = [table, verdict, f"Run with: {differs}." if differs else None]
    return "\n\n".join(part for part in parts if part)


@dataclass(frozen=True)
class Choice:
    """The champion, and for each model that was looked at why it is or is not."""

    champion: str | None
    reasons: Mapping[str, str]


def choose(standings: Mapping[str, Standing], measure: str, holder: str | None = None) -> Choice:
    """The champion among the models with this `measure`, by the numbers of their versions.

    `holder` has the alias now. It keeps it unless another is clearly better, or it cannot be champion itself.
    """
    alike = {name: one for name, one in standings.items() if one.measure == measure}
    able = {name: one for name, one in alike.items() if not one.clearly_worse}
    reasons = {
        name: "no champion: clearly worse in general than its base" for name in alike if name not in able
    }
    if not able:
        return Choice(None, reasons)
    order = sorted(able, key=lambda name: (able[name].tokens, -able[name].domain, _numbered(name)))
    champion = holder if holder in able else order[0]
    first = champion
    for name in order:
        if able[name].beats(able[champion]):
            reasons[champion] = (
                f"no champion: version {name} is clearly better in the domain ({_levels(able, champion, name)})"
            )
            champion = name
    for name in order:
        if name != champion and not reasons.get(name):
            reasons[name] = (
                f"no champion: not clearly better in the domain than version {champion} ({_levels(able, name, champion)})"
            )
    if champion == first:
        beaten = [name for name in order if name != champion and able[champion].beats(able[name])]
        kept = "champion before, and" if champion == holder else "fewest tokens, and"
        reasons[champion] = f"champion: {kept} no other is clearly better in the domain" + (
            f"; itself clearly better than version {', '.join(beaten)}" if beaten else ""
        )
    else:
        reasons[champion] = (
            f"champion: clearly better in the domain than version {first} ({_levels(able, champion, first)}), and not "
            "clearly worse in general than its base"
        )
    return Choice(champion, reasons)


def _levels(able: Mapping[str, Standing], one: str, other: str) -> str:
    return f"{able[one].domain:.4g} against {able[other].domain:.4g}"


def _numbered(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdigit() else (0, name)


def standings(
    models: Sequence[Candidate], groups: Mapping[str, str], roles: Mapping[str, str]
) -> dict[str, Standing | None]:
    """Each model's standing by name; the first model is the base. The same inputs give the same result, bit for bit.

    `groups`: benchmark → domain or general; `roles`: source → domain or replay. A standing is None if nothing of the domain
    was measured. Raises OnwardError if a model and the base got different questions, or were measured in different ways.
    """
    changes, better, errors = _compared(models, groups, roles)
    run = hashlib.sha256(json.dumps([_keys(model) for model in models]).encode()).hexdigest()[:16]
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
        found[model.name] = Standing(
            model.tokens,
            domain,
            value,
            low,
            high,
            measure,
            verdict,
            error=errors.get(model.name),
            run=run,
            name=model.name,
            beaten=tuple(other.name for other in models if (other.name, model.name) in better),
        )
    return found


def _keys(model: Candidate) -> Any:
    measured = (model.scores, model.perplexity)
    return [model.name, *(sorted((name, one.key) for name, one in of.items()) for of in measured)]


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


def _compared(
    models: Sequence[Candidate], groups: Mapping[str, str], roles: Mapping[str, str]
) -> tuple[dict[str, ChangeToBase], set[tuple[str, str]], dict[str, float]]:
    """(each model's general change against the base; pairs of which the second is clearly better in the domain; the
    standard error of each level in the domain), as in the report. What was not measured is left out.
    """
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
    texts = [text for name in roles if (text := perplexity_row(name, names, inputs)) is not None]
    if any(mean.row.group == "general" for mean in means):
        changes = _judged(means, lambda row: row.group == "general", names)
    else:
        changes = _judged(texts, lambda row: roles[row.source] == "replay", names)
    domain = [mean for mean in means if mean.row.group == "domain"]
    if any(groups.get(name) == "domain" for model in models for name in model.scores):
        errors = {name: one.stderr for mean in domain for name, one in mean.estimates.items()}
        return changes, _better(means, lambda row: row.group == "domain", names), errors
    read = [text for text in texts if roles[text.row.source] == "domain"]
    errors = {
        name: math.hypot(*(_bits(text.row) * text.ratios[name].stderr for text in read)) / len(read)
        for name in names
        if read and all(name in text.ratios for text in read)
    }
    return changes, _better(texts, lambda row: roles[row.source] == "domain", names), errors


def _bits(row: PerplexityRow) -> float:
    """Bits per byte for each nat per token."""
    return row.tokens / row.bytes / math.log(2)


def _better(
    measures: Sequence[Measure[R]], domain: Callable[[R], bool], names: Sequence[str]
) -> set[tuple[str, str]]:
    """Pairs (worse, better): of the rows of the domain, one at least improved and none is worse."""
    from tasks.pages.report.scores import add_changes

    rows = add_changes(measures, list(itertools.combinations(names, 2)))
    found = set()
    for one, other in itertools.combinations(names, 2):
        changes = [
            change for row in rows if domain(row) if (change := change_of(row, one, other)) is not None
        ]
        verdicts = {change.verdict for change in changes}
        if "improved" in verdicts and "worse" not in verdicts:
            found.add((one, other))
        if "worse" in verdicts and "improved" not in verdicts:
            found.add((other, one))
    return found


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
