"""What there is to do of a run, in amounts: artifacts of each kind that are in the store, those to be made, and their work.

A plan names one slice after those that were read. How many more there will be follows from the tokens that training
takes, the tokens that a byte of text gives, and the size of the sources. So does how often a text would be read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.config import RunConfig
from flows.dag.plan import Plan, PlanRow
from flows.dag.rounds import round_zero, rounds_of
from flows.dag.state import Slice
from flows.quote.rates import Made, Rates, kind_of, text_of
from flows.quote.training import batch_tokens_of
from storage.artifact import Artifact
from storage.paths import home
from tasks import stages
from tasks.corpus.holdout import MAX_RAISED, MIN_BYTES
from tasks.corpus.packing.budgets import needed_tokens
from tasks.corpus.reading.hub import remembered_in
from tasks.corpus.reading.size import size_of_source
from tasks.corpus.reading.sources import IngestConfig, SourceConfig
from tasks.evaluation.catalog import BENCHMARKS, benchmark_files_of
from tasks.evaluation.question_files import questions_in
from tasks.evaluation.samples import PROMPTS
from tasks.models.base import InitConfig

TOKENS_PER_BYTE = 0.25
"""Of text that nothing is known of: four bytes a token, and all of it kept."""
_ALIKE = (0.8, 1.25)
"""First slices of sizes so near have the same share held out; of others, the rule of `tasks/corpus/holdout.py` is asked."""
_DECODINGS = 2
"""Continuations of each prompt: greedy and sampled."""
UNITS = {
    **dict.fromkeys(("tokenizer", *stages.CORPUS, "contamination", "data"), "bytes"),
    **dict.fromkeys(("pack", *stages.TRAINING, "perplexity", "samples"), "tokens"),
    "evaluate": "questions",
}
"""What the work of a stage is counted in; of the others nothing is counted but artifacts."""


@dataclass(frozen=True)
class Item:
    """The artifacts of one kind: how many there are, how many are to be made, and how much work these are together."""

    kind: str
    done: int
    to_do: int
    amount: float

    @property
    def stage(self) -> str:
        """The stage of the kind."""
        return self.kind.partition("/")[0]

    @property
    def unit(self) -> str:
        """`bytes`, `tokens` or `questions`; empty where only artifacts are counted."""
        return UNITS.get(self.stage, "")


@dataclass(frozen=True)
class SourceWork:
    """What training takes of a source. `tokens` it takes, of `there` that the whole source gives; `bytes` of text in all.

    `estimated`: the source was not read to its end, so that `there` is an estimate.
    """

    name: str
    tokens: int
    there: int
    bytes: int
    estimated: bool

    @property
    def epochs(self) -> float:
        """How often its text is read; below 1 where not all of it is."""
        return self.tokens / self.there if self.there else math.inf


@dataclass(frozen=True)
class Work:
    """All that is left of a run."""

    items: tuple[Item, ...]
    sources: tuple[SourceWork, ...]


def made_of(plan: Plan) -> list[Made]:
    """What is in the store of a plan's artifacts."""
    return [
        Made(row.stage, row.slice, row.round, row.item, artifact)
        for row, artifact in zip(plan.rows, plan.found, strict=True)
        if artifact is not None
    ]


def work_of(run: RunConfig, plan: Plan, rates: Rates) -> Work:
    """The work of a planned run; amounts that are not known yet are estimated with the rates of its sources."""
    made = made_of(plan)
    text = text_of(made)
    readings = {one.name: _Reading.of(run, one, plan, text, rates) for one in run.corpus.sources}
    amounts = _Amounts(run, rates, made, text, readings)
    items: dict[str, list[tuple[bool, float]]] = {}
    waiting = _shelf_estimates(plan)
    for row, artifact in zip(plan.rows, plan.found, strict=True):
        kind = kind_of(row.stage, row.item)
        own = items.setdefault(kind, [])
        if row.stage == "extract":
            own.append((artifact is not None, _text_of(artifact, next(waiting))))
            continue
        if row.stage in stages.CORPUS and row.slice not in text:
            continue  # a slice that is not read yet: counted below
        if (
            row.stage == "questions"
            and artifact is None
            and any(one.item == row.item for one in _before(plan, row))
        ):
            continue  # the same for each model
        own.append((artifact is not None, amounts.of(row)))
    for reading in readings.values():
        for stage in stages.CORPUS[1:]:  # each shelf has its row already
            items.setdefault(stage, []).extend((False, size) for size in reading.slices)
    found = tuple(
        Item(
            kind,
            sum(done for done, _ in own),
            sum(not done for done, _ in own),
            sum(a for done, a in own if not done),
        )
        for kind, own in items.items()
    )
    return Work(found, tuple(reading.work for reading in readings.values()))


def _shelf_estimates(plan: Plan) -> Iterator[int]:
    """About how many bytes of text each shelf has, in the order of the plan's rows of `extract`."""
    begun: dict[str, Iterator[int]] = {
        name: (shelves.estimate(n) for n in range(len(shelves.names)) if shelves.documents(n))
        for name, shelves in plan.shelves.items()
    }
    for one in plan.slices:
        if "extract" in one.artifacts:
            yield next(begun[one.source])


def _text_of(artifact: Artifact | None, estimate: int) -> float:
    return float(estimate if artifact is None else artifact.stats["bytes_out"])


def _before(plan: Plan, row: PlanRow) -> list[PlanRow]:
    """Rows of the same stage before a row."""
    rows = [one for one in plan.rows if one.stage == row.stage]
    return rows[: next(at for at, one in enumerate(rows) if one is row)]


@dataclass(frozen=True)
class _Reading:
    """How a source is read on: bytes of each slice to come."""

    work: SourceWork
    slices: tuple[float, ...]
    first: float
    """Bytes of its first slice."""
    rate: float
    """Tokens that a byte of its text gives."""

    @classmethod
    def of(
        cls, run: RunConfig, source: SourceConfig, plan: Plan, text: Mapping[int, float], rates: Rates
    ) -> _Reading:
        config = IngestConfig.of(source, slice_bytes=run.corpus.slice_bytes, seed=run.seed)
        known = rates.sources.get(source.name)
        own = [one for one in plan.slices if one.source == source.name and one.number in text]
        read = sum(text[one.number] for one in own)
        tokens, waiting = _tokens(own, text)
        given = tokens / (read - waiting) if tokens else None
        rate = given or (known.tokens_per_byte if known else TOKENS_PER_BYTE)
        tokens += round(waiting * rate)
        needed = taken_of(run, source)
        exhausted = bool(own and own[-1].artifacts["ingest"].stats["exhausted"])
        shelves = plan.shelves.get(source.name)
        if shelves is not None:
            there = sum(bool(shelves.documents(number)) for number in range(len(shelves.names)))
            exhausted = exhausted and sum("extract" in one.artifacts for one in own) >= there
        if exhausted:
            left = 0.0
        elif shelves is not None:
            left = max(0.0, shelves.listing.size - read)
        else:
            size = size_of_source(config, source, home(), remembered_in(run.store_path)).bytes
            left = max(0.0, size - read)
        missing = (
            needed - tokens if source.reading_weight else float(not own)
        )  # of what is only measured, one slice is read
        slices = _slices(missing, left, run.corpus.slice_bytes, rate)
        there = tokens + round(left * rate)
        work = SourceWork(source.name, needed, there, round(read + left), not exhausted)
        first = text[own[0].number] if own else (slices[0] if slices else 0.0)
        return cls(work, slices, first, rate)


def _tokens(own: Sequence[Slice], text: Mapping[int, float]) -> tuple[int, float]:
    """Tokens of the slices that were tokenized, and bytes of those that were not."""
    tokens, waiting = 0, 0.0
    for one in own:
        made = one.artifacts.get("tokenize")
        if made is None or made.estimated:
            waiting += text[one.number]
        else:
            tokens += int(made.stats["tokens"])
    return tokens, waiting


def _slices(missing: float, left: float, size: float, rate: float) -> tuple[float, ...]:
    """Bytes of the slices that give the missing tokens, as far as there is text."""
    if missing <= 0 or left <= 0:
        return ()
    count = min(math.ceil(missing / (size * rate)), math.ceil(left / size))
    return tuple(min(size, left - at * size) for at in range(count))


def taken_of(run: RunConfig, source: SourceConfig) -> int:
    """Tokens that all training takes of a source: its share up to the last budget, and for a new base, round 0."""
    length = run.packing.sequence_length
    sources = run.corpus.sources
    last = rounds_of(run)[-1]
    total = last.first_sequence + last.sequences
    shares = needed_tokens([one.weight for one in sources], total, length)
    taken = shares[sources.index(source)]
    if any(one.decay_weight is not None for one in sources) and last.last_step > last.branch_step:
        per_step = run.training.batch_tokens // length
        branch = (last.last_step - last.branch_step) * per_step
        taken += needed_tokens([one.branch_weight for one in sources], branch, length)[sources.index(source)]
    base = run.model.base
    if isinstance(base, InitConfig) and source.role == "replay":
        replay = [one for one in sources if one.role == "replay"]
        zero = round_zero(run, base.pretrain_tokens)
        taken += needed_tokens([one.weight for one in replay], zero.sequences, length)[replay.index(source)]
    return int(taken)


@dataclass(frozen=True)
class _Amounts:
    """The work of single rows, in the units of their stages."""

    run: RunConfig
    rates: Rates
    made: Sequence[Made]
    text: Mapping[int, float]
    readings: Mapping[str, _Reading]

    def of(self, row: PlanRow) -> float:
        """The work of one row."""
        if row.stage in stages.CORPUS and row.slice is not None:
            return self.text[row.slice]
        if row.stage == "tokenizer":
            replay = next(one.name for one in self.run.corpus.sources if one.role == "replay")
            return self.readings[replay].first
        if row.stage in ("contamination", "data"):
            return sum(self.text.values()) + sum(sum(one.slices) for one in self.readings.values())
        if row.stage == "pack":
            return float(_sequences(self.run, row.round) * self.run.packing.sequence_length)
        if row.stage in stages.TRAINING:
            return float(batch_tokens_of(self.run, row))
        if row.stage == "perplexity":
            return self.held_out(row.item or "")
        if row.stage == "samples":
            asked = self.run.evaluation
            return float(_DECODINGS * asked.sample_tokens * (len(PROMPTS) + len(asked.prompts)))
        if row.stage == "evaluate":
            return float(questions_of(self.run, row.item or "", self.made))
        return 0.0

    def held_out(self, source: str) -> float:
        """Tokens that are held out of a source: counted where a model was measured on them, else estimated."""
        for one in self.made:
            if one.stage == "perplexity" and one.item == source:
                return float(one.artifact.stats["tokens"])
        first, known = self.readings[source].first, self.rates.sources.get(source)
        if known and _ALIKE[0] * known.first_bytes <= first <= _ALIKE[1] * known.first_bytes:
            held = known.held_out * first
        else:
            kept = first * (known.kept if known else 1.0)
            held = max(self.run.corpus.holdout_fraction * kept, min(MIN_BYTES, MAX_RAISED * kept))
        return held / (self.rates.token_bytes or 1 / TOKENS_PER_BYTE)


def _sequences(run: RunConfig, number: int | None) -> int:
    if number == 0:
        assert isinstance(run.model.base, InitConfig)
        return round_zero(run, run.model.base.pretrain_tokens).sequences
    return next(one.sequences for one in rounds_of(run) if one.number == number)


def questions_of(run: RunConfig, benchmark: str, made: Sequence[Made]) -> int:
    """Questions that a model is asked: as were asked before, else as many as its file has or the limit allows."""
    for one in made:
        if one.stage == "evaluate" and one.item == benchmark:
            return int(one.artifact.stats["questions"])
    limit = run.evaluation.limit
    own = next((one for one in run.evaluation.own if one.name == benchmark), None)
    there = _asked(run, benchmark) if own is None else own.questions if own.held_out else _rows(own.file)
    return min(there or limit or 0, limit or there or 0)


def _asked(run: RunConfig, benchmark: str) -> int | None:
    directory = run.benchmark_directory
    if directory is None or benchmark not in BENCHMARKS:
        return None
    return questions_in(benchmark_files_of(benchmark, directory)[0])


def _rows(file: str | None) -> int | None:
    return questions_in(Path(home() / file)) if file else None
