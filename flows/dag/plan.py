"""What a run would do, without doing it: the same DAG with a builder that only looks.

If all inputs of a stage exist, the stage has a real key. It is cached or to build; if it is to build, the plan names
the fields and inputs in which its key differs from the nearest one in the store. A stage is open if it waits for bytes
that do not exist yet. Everything after an unread slice is an estimate and is marked so.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows.config import RunConfig
from flows.dag.call import named
from flows.dag.file_keys import told
from flows.dag.pretrain import adapt
from flows.dag.requests import Requests
from flows.dag.state import Slice
from storage.artifact import Artifact, Input
from storage.errors import DamagedArtifact, OnwardError
from storage.keys import MISSING, Difference, difference, key_inputs
from storage.manifest import Manifest, bare
from storage.runs import read_records
from storage.settings import completed, identity_values
from storage.store import Request, Store
from tasks.documents.shelves import Shelves

_PENDING = "pending:"
_BYTES_PER_TOKEN = 4
_UNKNOWN = 10**15
"""Stands for a count of which nothing is known: enough for everything."""
NEVER = "never made in this store"
_SEE = ", and is made again: see docs/upgrades.md"
"""Ends the line that a newer version of the stage is a cause."""


@dataclass(frozen=True)
class PlanRow:
    """One stage of the plan. `why` holds the fields that made the difference, or what the stage waits for."""

    stage: str
    slice: int | None
    round: int | None
    item: str | None
    state: str
    key: str | None
    why: tuple[str, ...] = ()
    training: dict[str, Any] | None = None
    """For a training stage that is to be made: what it would need from the device (flows/quote/training.py)."""


class _Estimates(dict[str, Any]):
    """Statistics of an artifact that does not exist yet. A value without an estimate counts as 0."""

    def __missing__(self, name: str) -> int:
        return 0


class Pending(Artifact):
    """Stands for an artifact that does not exist yet. Its statistics are estimates."""

    estimated = True

    @property
    def stats(self) -> dict[str, Any]:
        """Estimates of the statistics that the DAG reads."""
        return self.manifest.stats

    def has(self, part: str) -> bool:
        """Whether the artifact will have the part. True except for a holdout, which only a source's first slice has."""
        return part != "holdout" or bool(self.manifest.stats.get("holdout"))

    def part(self, name: str) -> Input:
        """A part whose digest is not known yet."""
        return Input(
            self.stage, self.key, name, f"{_PENDING}{self.stage}", self.path, (), self.manifest.stats
        )


@dataclass
class Planner:
    """A builder that finds artifacts and never makes one."""

    store: Store
    holdout: bool
    rows: list[PlanRow] = field(default_factory=list)
    found: list[Artifact | None] = field(default_factory=list)
    """For each row, the artifact in the store."""
    reasons: Reasons = field(init=False)
    _slice_tokens: int = _UNKNOWN
    """Estimate of the tokens of the slice that is being planned."""

    def __post_init__(self) -> None:
        self.reasons = Reasons(self.store)

    def __call__(
        self, request: Request, *, slice: int | None = None, round: int | None = None, item: str | None = None
    ) -> Artifact:
        """The artifact, or a stand-in. Also records a row of the plan."""
        waits = _pending_stages(key_inputs(request.inputs))
        state, why, found = "open", tuple(f"waits for {stage}" for stage in sorted(waits)), None
        if not waits:
            try:
                found = self.store.look(request.stage, request.key)
                state, why = ("cached", ()) if found else ("to build", self._why(request))
            except DamagedArtifact as error:
                state, why = "to build", (f"damaged: {error}",)
        self.rows.append(
            PlanRow(request.stage, slice, round, item, state, None if waits else request.key, why)
        )
        self.found.append(found)
        if (reading := getattr(request.inputs, "reading", None)) is not None:
            self._slice_tokens = _tokens_in(reading)
        return found or self._pending(request)

    def _why(self, request: Request) -> tuple[str, ...]:
        aside = self.store.aside(request.stage, request.key)
        if aside:
            return (f"it was damaged, and is set aside as {aside[-1].name}",)
        return self.reasons(request)

    def _pending(self, request: Request) -> Pending:
        first = bool(getattr(request.inputs, "first_of_source", False))
        stats = _Estimates(
            {
                "tokens": self._slice_tokens,
                "documents_out": _UNKNOWN,
                "exhausted": True,
                "holdout": first and self.holdout,
                "documents_held_out": _UNKNOWN if first and self.holdout else 0,
                "metrics": {},
                "perplexity": 0.0,
                "sources": {},
            }
        )
        manifest = Manifest(request.stage, request.module.VERSION, "f" * 64, {}, {}, {}, stats=stats)
        return Pending(Path("/nonexistent") / request.stage / "pending", manifest)


class Reasons:
    """Says why a stage is made: how its key differs from the nearest one in the store. Each stage is read once.

    Artifacts for which `own` is true do not count. A run that asks while it runs would otherwise compare with its own
    results.
    """

    def __init__(self, store: Store, own: Callable[[Manifest], bool] = lambda manifest: False) -> None:
        self._store = store
        self._own = own
        self._known: dict[str, list[Manifest]] = {}
        self._runs: dict[str, list[str]] | None = None

    def __call__(self, request: Request) -> tuple[str, ...]:
        """The keys and inputs that made the difference; first, in one line, the versions of the stage that did; last, the
        run whose artifact it was compared with."""
        nearest = self._nearest(request)
        if nearest is None:
            return (NEVER,)
        others = [told(request.stage, one) for one in nearest.found if not _is_version(one)]
        return (*_version_line(request.stage, nearest.found), *others[:8], *self._compared(request, nearest))

    def brief(self, request: Request) -> str:
        """The same in one line: changed settings by name and value, changed inputs by name."""
        nearest = self._nearest(request)
        if nearest is None:
            return NEVER
        found = nearest.found
        settings = [
            *_version_line(request.stage, found),
            *(
                told(request.stage, one)
                for one in found
                if not one.path.startswith("inputs") and not _is_version(one)
            ),
        ]
        inputs = sorted(
            {one.path.removeprefix("inputs.").split(".")[0].split("[")[0] for one in _inputs(found)}
        )
        return "; ".join([*settings[:3], *([f"input changed: {', '.join(inputs)}"] if inputs else [])])

    def _nearest(self, request: Request) -> _Nearest | None:
        if request.stage not in self._known:
            found = self._store.artifacts(request.stage)
            self._known[request.stage] = [one.manifest for one in found if not self._own(one.manifest)]
        wanted = {**request.identity, "config": identity_values(request.config)}
        candidates = [
            _Nearest(manifest.key, differences)
            for manifest in self._known[request.stage]
            if (differences := difference(_identity(manifest, request), wanted))
        ]
        return min(candidates, key=lambda one: (len(one.found), len(_inputs(one.found))), default=None)

    def _compared(self, request: Request, nearest: _Nearest) -> tuple[str, ...]:
        """The artifact that it was compared with, by the runs that have it."""
        if self._runs is None:
            self._runs = {}
            with contextlib.suppress(OnwardError):
                for record in read_records(self._store):
                    for _, key in record.artifacts:
                        self._runs.setdefault(key, []).append(record.run)
        runs = self._runs.get(nearest.key, [])
        if not runs:
            return ()
        others = f" and {len(runs) - 1} more" if len(runs) > 1 else ""
        return (f"compared with {request.stage} {nearest.key[:6]} of the run {runs[-1]}{others}",)


@dataclass(frozen=True)
class _Nearest:
    """The artifact of the store that differs least from a request, and in what."""

    key: str
    found: list[Difference]


@dataclass(frozen=True)
class Plan:
    """The rows of a run's plan, in execution order, what is in the store of each, and the slices that it would read."""

    rows: list[PlanRow]
    found: list[Artifact | None]
    slices: list[Slice]
    shelves: Mapping[str, Shelves] = field(default_factory=dict)
    """Of each source of documents, its files."""


def planned(run: RunConfig, warn: Callable[[str], None] = lambda message: None) -> Plan:
    """The plan of a run. `warn` is told what the run would be warned of."""
    store = Store(run.store_path)
    planner = Planner(store, run.corpus.holdout_fraction > 0)
    requests = Requests(run, store, warn=warn, looks=True)
    outcome = adapt(requests, planner)
    names = [source.name for source in run.corpus.sources]
    shelves = {name: found for name in names if (found := requests.shelves(name)) is not None}
    return Plan(planner.rows, planner.found, outcome.slices, shelves)


def make_plan(run: RunConfig, warn: Callable[[str], None] = lambda message: None) -> list[PlanRow]:
    """The rows of a run's plan alone."""
    return planned(run, warn).rows


def _tokens_in(reading: Mapping[str, Any]) -> int:
    """About how many tokens a source has left, if this slice ends it; `_UNKNOWN` if more slices follow."""
    last = reading["begin"]["unit"] + len(reading["units"]) == reading["total"]
    size = sum(unit["estimate"] for unit in reading["units"])
    return max(1, size // _BYTES_PER_TOKEN) if last else _UNKNOWN


def render(rows: list[PlanRow]) -> str:
    """Every row of the plan as text: stages that are cached in one line a stage, the others each with its reason.

    That a stage is of a newer version than the store's artifacts is said once, before the others.
    """
    lines: list[str] = []
    cached: dict[str, int] = {}
    for row in rows:
        if row.state == "cached":
            cached[row.stage] = cached.get(row.stage, 0) + 1
            continue
        label = " · ".join([row.stage, *named(row.slice, row.round, row.item)])
        lines.append(f"{row.state:<9} {label}")
        foreseen = [row.training["line"]] if row.training else []
        lines += [f"            {reason}" for reason in (*foreseen, *row.why) if not of_newer_version(reason)]
    head = [f"cached    {stage} × {count}" for stage, count in cached.items()]
    head += [f"newer     {line}" for line in newer_versions(rows)]
    last = (
        "nothing to do"
        if not lines
        else f"{len(lines)} lines of work; slices after an unread one are estimates"
    )
    return "\n".join([*head, *lines, last]) + "\n"


def of_newer_version(reason: str) -> bool:
    """Whether a reason of a row says that the stage is of another version than the store's artifacts."""
    return reason.endswith(_SEE)


def newer_versions(rows: Sequence[PlanRow]) -> list[str]:
    """Each such reason once, with the number of rows that it holds for."""
    counts: dict[str, int] = {}
    for row in rows:
        for reason in row.why if row.state != "cached" else ():
            if of_newer_version(reason):
                counts[reason] = counts.get(reason, 0) + 1
    return [f"{reason.removesuffix(_SEE)} × {count}{_SEE}" for reason, count in counts.items()]


def _identity(manifest: Manifest, request: Request) -> dict[str, Any]:
    """As the request's own: options that came later stand at the defaults that they had without being written."""
    return {
        "stage": manifest.stage,
        "version": manifest.version,
        "config": completed(manifest.config, request.config),
        "inputs": bare(manifest.inputs),
        **({"components": manifest.components} if manifest.components else {}),
    }


def _is_version(one: Difference) -> bool:
    return one.path in ("version", "components") or one.path.startswith("components.")


def _version_line(stage: str, found: list[Difference]) -> tuple[str, ...]:
    """That the store's artifact is of another version of the stage, or of a component of it; nothing where it is not."""
    versions: list[tuple[str, int, int]] = []
    for one in found:
        if one.path == "version":
            versions.append(("", one.before, one.after))
        elif one.path == "components":  # one side names none
            before, after = ({} if side == MISSING else side for side in (one.before, one.after))
            versions += [
                (name, before.get(name, 1), after.get(name, 1)) for name in sorted({*before, *after})
            ]
        elif one.path.startswith("components."):
            before, after = (1 if side == MISSING else side for side in (one.before, one.after))
            versions.append((one.path.removeprefix("components."), before, after))
    if not versions:
        return ()
    newer = "a newer" if all(after > before for _, before, after in versions) else "another"
    told = ", ".join(f"{name} {before} → {after}".strip() for name, before, after in versions)
    return (f"{stage} is of {newer} version than in the store ({told}){_SEE}",)


def _inputs(found: list[Difference]) -> list[Difference]:
    return [one for one in found if one.path.startswith("inputs")]


def _pending_stages(value: Any) -> set[str]:
    text = json.dumps(value)
    return {piece.split('"', 1)[0] for piece in text.split(_PENDING)[1:]}
