"""A rehearsal: the whole DAG of a configuration, small, in a store of its own; measured, and quoted for the real run.

1. The whole way with a few steps of training and a few questions. Every stage is the real one: what would fail fails here.
2. One slice of each source at its real size, if the first ones were smaller.
3. More questions and held-out text for the base, so that what is fixed is told from what grows.

Nothing of the real store is read or written but the file of the result. Neither Prefect nor MLflow is told.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flows.config import RunConfig, parse_config
from flows.dag.call import Call
from flows.dag.plan import planned
from flows.dag.pretrain import adapt, measure
from flows.dag.requests import Requests
from flows.dag.state import Model, Outcome
from flows.machine.gpu import Gpu
from flows.machine.memory import watched
from flows.quote import small
from flows.quote.planned import Quoted, quoted
from flows.quote.rates import Made, clock_of, rates_of, with_tokens
from flows.quote.rehearsed import DIRECTORY, Rehearsed, basis_of, file_of, save
from flows.quote.training import compiled_by_rule, with_estimates
from flows.runs.names import run_id, run_name
from flows.runs.stage_task import Builder
from flows.ui.console import Console
from storage.artifact import Artifact, Input
from storage.atomic import make_writable
from storage.errors import OnwardError
from storage.lock import Lock
from storage.paths import state_directory
from storage.store import Request, Store
from storage.workers import Workers
from tasks import stages
from tasks.corpus.holdout import texts_held_out
from tasks.evaluation.evaluate import EvaluateConfig, EvaluateInputs
from tasks.evaluation.perplexity import PerplexityConfig
from tasks.models.config import SegmentConfig

_SERVERS = 15.0
"""Seconds that Prefect's and MLflow's processes take at the start of a run: they are not in a rehearsal."""
_WRITTEN = re.compile(r"checkpoint at step \d+: copied in ([0-9.]+) s, written in ([0-9.]+) s")
_BYTES_PER_TOKEN, _MOST_TEXTS = 4, 200
_MOST_COUNTED = 2000
"""Questions of a benchmark whose tokens are counted."""
_BESIDE = {"cpu": 0.5, "cuda": 0.0}
"""Share of the time of writing a checkpoint that the steps beside it lose: on a CPU it is hashed on a core of theirs."""


@dataclass(frozen=True)
class Rehearsal:
    """What a rehearsal found, the file that keeps it, and the quote of the real run."""

    rehearsed: Rehearsed
    path: Path
    quoted: Quoted


def rehearse(run: RunConfig, console: Console, keep: Path | None = None) -> Rehearsal:
    """Rehearse a run and quote it. The store of the rehearsal is removed at its end, unless `keep` names its place.

    Raises the error of the stage that failed.
    """
    began = time.monotonic()
    with _own_store(run, keep) as store:
        measured = _Rehearsing(run.model_copy(update={"store": str(store.root)}), store, console).all()
    measured = replace(measured, seconds=round(time.monotonic() - began, 1))
    path = file_of(run, f"{run.name}-{run_id(run)}")
    save(path, measured)
    found = quoted(run, console.warn)
    measured = replace(measured, quote=found.quote.to_json())
    save(path, measured)
    return Rehearsal(measured, path, found)


@contextmanager
def _own_store(run: RunConfig, keep: Path | None) -> Iterator[Store]:
    """An empty store on the disk of the real one. Raises OnwardError if another rehearsal is at work there."""
    place = keep or small.store_beside(run)
    if keep is not None and place.exists() and any(place.iterdir()):
        raise OnwardError(f"{place} is not empty; name a new directory with --keep, or remove it")
    with Lock(run.store_path / DIRECTORY / ".lock", waiting=_refuse):
        if keep is None:
            _remove(place)
        place.mkdir(parents=True, exist_ok=True)
        try:
            yield Store(place)
        finally:
            if keep is None:
                _remove(place)


def _refuse(lock: Path) -> None:
    raise OnwardError(f"another rehearsal for this store is at work ({lock} is taken); wait for its end")


def _remove(place: Path) -> None:
    if place.exists():
        make_writable(place)
        shutil.rmtree(place)


@dataclass
class _Rehearsing:
    """One rehearsal at work."""

    run: RunConfig
    """The run, with the rehearsal's store as its own."""
    store: Store
    console: Console
    memory: dict[str, float] = field(default_factory=dict)
    _at_work: str = "ingest"
    _compiled: dict[str, bool] = field(default_factory=dict)

    def all(self) -> Rehearsed:
        """Everything, in order."""
        start = _imports()
        asked = self.run.training.execution
        gpu = Gpu(state_directory(), asked.device, f"rehearsal of {run_name(self.run)}", asked.processes)
        with Workers(self.run.corpus.execution.count, self.run.corpus.execution.executor) as workers:
            builder = _Builder(self.store, workers, self.console, gpu=gpu)
            builder.listeners.append(self._listen)
            with watched(self._remember):
                sizes = self._sizes(builder)
                outcome = adapt(self._requests(sizes.run), builder)
                whole = builder.made()
                slices = self._slices(builder, sizes.slices)
                more = self._more(builder, outcome, sizes.run, whole)
                counted = self._counted(outcome)
        rates = rates_of(whole, more, slices) if slices else rates_of(whole, more)
        rates = with_tokens(rates, [*whole, *more], counted)
        checkpoint, size = self._checkpoint(whole)
        peaks = [clock_of(one.artifact.path / "clock.parquet", "peak_memory") for one in whole]
        device = max((max(one) for one in peaks if one), default=None) if gpu.names() else None
        return Rehearsed(
            run=run_name(self.run),
            when=datetime.now(UTC).isoformat(timespec="seconds"),
            budgets=self.run.training.token_budgets,
            basis=basis_of(self.run),
            rates=rates,
            start_seconds=start + _SERVERS,
            checkpoint_seconds=checkpoint,
            checkpoint_bytes=size,
            memory={stage: float(peak) for stage, peak in self.memory.items()},
            device_memory=device,
        )

    def _sizes(self, builder: _Builder) -> small.Small:
        """Decide what is small, by what is known of the model's speed. An imported base is there first."""
        ask = Requests(self.run, self.store, warn=lambda line: None)
        if not ask.new_base:
            builder(ask.imported(), round=0)
        rows = with_estimates(self.run, planned(self.run).rows)
        self._compiled = compiled_by_rule(self.run, rows)
        return small.small_of(self.run, self.store.root, rows)

    def _slices(self, builder: _Builder, large: RunConfig | None) -> list[Made]:
        if large is None:
            return []
        ask = self._requests(large)
        adapt(ask, builder, until="tokenize", slices=len(large.corpus.sources) + ask.new_base)
        return builder.made()

    def _more(self, builder: _Builder, outcome: Outcome, before: RunConfig, whole: list[Made]) -> list[Made]:
        base = outcome.models[0]
        asked = [one for one in whole if one.stage == "evaluate" and one.round == base.round]
        seconds = sum((one.seconds or 0.0) / one.artifact.stats["questions"] for one in asked)
        read = [one for one in whole if one.stage == "perplexity"]
        speed = max((one.artifact.stats["tokens"] / (one.seconds or 1.0) for one in read), default=0.0)
        ask = self._requests(small.with_more_questions(self.run, before, seconds), small.more_held_out(speed))
        found = Outcome()
        again = Model(base.name, base.tokens, base.export, base.round)
        measure(ask, builder, found, again, _holdouts(outcome))
        found.settle()
        return builder.made()

    def _counted(self, outcome: Outcome) -> dict[str, float]:
        """Tokens that the real run computes for each question of a benchmark, by its own plan of work."""
        from tasks.evaluation.amount import tokens_of

        limit = min(self.run.evaluation.limit or _MOST_COUNTED, _MOST_COUNTED)
        raw = self.run.model_dump(mode="json")
        raw["evaluation"] |= {"limit": limit}
        ask, found = self._requests(parse_config(raw)), dict[str, float]()
        of_harness = (*self.run.evaluation.domain, *self.run.evaluation.general)
        for name, make in ask.evaluations(outcome.models[0].export.part("export"), {}, _never):
            if name not in of_harness:
                continue
            request = make()
            assert isinstance(request.config, EvaluateConfig) and isinstance(request.inputs, EvaluateInputs)
            with tempfile.TemporaryDirectory() as scratch:
                tokens, questions = tokens_of(request.config, request.inputs, Path(scratch))
            found[name] = tokens / questions
        return found

    def _requests(self, run: RunConfig, tokens: int = small.HELD_OUT_TOKENS) -> _Requests:
        # what is odd about small slices is no news; the plan warns of the real ones
        ask = _Requests(run, self.store, warn=lambda line: None)
        ask.compiled, ask.tokens = self._compiled, tokens
        return ask

    def _listen(self, event: str, call: Call, artifact: Artifact | None) -> None:
        if event == "begin":
            self._at_work = call.request.stage

    def _remember(self, size: int) -> None:
        self.memory[self._at_work] = max(size, self.memory.get(self._at_work, 0.0))

    def _checkpoint(self, made: list[Made]) -> tuple[float, float]:
        """(seconds that a checkpoint takes from the steps, its bytes)."""
        found = []
        for one in made:
            log = one.artifact.path / "trainer.log"
            if one.stage in stages.TRAINING and log.is_file():
                device = str(one.artifact.manifest.provenance.get("execution", {}).get("device", "cpu"))
                found += checkpoints_in(
                    log.read_text(encoding="utf-8", errors="replace"), device.partition(":")[0]
                )
        trunks = [
            sum(file.bytes for file in one.artifact.manifest.parts["trunk"].files)
            for one in made
            if one.stage == "train" and one.artifact.has("trunk")
        ]
        return max(found, default=0.0), float(max(trunks, default=0))


class _Builder(Builder):
    """Makes stages as a run does, outside a flow."""

    def __call__(
        self, request: Request, *, slice: int | None = None, round: int | None = None, item: str | None = None
    ) -> Artifact:
        call = Call(request, slice, round, item)
        call.artifact = self.make(call)
        return call.artifact

    def made(self) -> list[Made]:
        """What was asked for since the last time, with the seconds of what was made."""
        calls, self.calls = self.calls, []
        return [
            Made(one.request.stage, one.slice, one.round, one.item, one.artifact, one.seconds)
            for one in calls
            if one.artifact is not None and one.state == "built"
        ]


class _Requests(Requests):
    """Requests of a rehearsal: less held-out text, and training compiled as the real run's is."""

    compiled: dict[str, bool]
    tokens: int

    def perplexity(self, model: Input, holdout: Input) -> Request:
        """As in a run, but of about `tokens` of the held-out text."""
        request = super().perplexity(model, holdout)
        assert isinstance(request.config, PerplexityConfig)
        stats = holdout.stats
        each = stats["bytes_held_out"] / max(1, texts_held_out(stats)) / _BYTES_PER_TOKEN
        count = max(1, min(_MOST_TEXTS, round(self.tokens / each)))
        return replace(request, config=request.config.model_copy(update={"limit_documents": count}))

    def train(self, *given: Any) -> Request:
        """As in a run, but compiled by the rule for the real segment."""
        return self._as_compiled(super().train(*given))

    def decay(self, *given: Any) -> Request:
        """As in a run, but compiled by the rule for the real segment."""
        return self._as_compiled(super().decay(*given))

    def _as_compiled(self, request: Request) -> Request:
        asked = self.compiled.get(request.stage)
        if asked is None or not isinstance(request.config, SegmentConfig):
            return request
        execution = replace(request.config.execution, compile=asked)
        return replace(request, config=replace(request.config, execution=execution))


def checkpoints_in(log: str, device: str) -> list[float]:
    """Seconds that each checkpoint in a trainer's log took from the steps: the copy, and a share of the writing."""
    share = _BESIDE.get(device, 0.0)
    return [float(copied) + share * float(written) for copied, written in _WRITTEN.findall(log)]


def _never(*given: Any, **named: Any) -> Artifact:
    raise AssertionError("benchmarks of the harness are made of no artifact")


def _holdouts(outcome: Outcome) -> dict[str, Input]:
    """The held-out text of each source."""
    found: dict[str, Input] = {}
    for one in outcome.slices:
        made = one.artifacts["decontaminate"]
        if one.source not in found and made.has("holdout") and texts_held_out(made.stats):
            found[one.source] = made.part("holdout")
    return found


def _imports() -> float:
    """Load what measuring needs, which each run does once. Seconds."""
    began = time.monotonic()
    import torch  # noqa: F401

    from tasks.evaluation import harness, scorer  # noqa: F401

    return time.monotonic() - began
