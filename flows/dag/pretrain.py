"""THE DAG: one flow, a loop over rounds and slices.

    base model (imported, or initialised and pre-trained: round 0) → evaluate
    for each token budget, a round:
        read on until the budget is covered, slice by slice:  ingest → dedup → filter → decontaminate → tokenize
        (before it, where files are no rows of text: extract, a shelf of files at a time)
        continue from the previous round:                     pack → train → decay → evaluate
    data (what was done to the text) → report

`adapt` implements this picture. It only requests artifacts; its caller decides how to find or make them (`build`). The
flow makes them as Prefect tasks, and `onward plan` only looks. Each request depends only on what came before it, so a
run for one budget and its extension to two budgets share everything that the first run made.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from flows.dag.call import Build
from flows.dag.merges import merges_of
from flows.dag.read_ahead import reading_ahead
from flows.dag.requests import Measures, Requests
from flows.dag.rounds import Round, round_zero, rounds_of, stopped_round
from flows.dag.slices import LIKE_OF_A_NEW_MODEL, NothingLeft, SliceReader
from flows.dag.state import Model, Outcome, Slice, TrainingState
from storage.artifact import Artifact, Input
from storage.counts import count_text
from storage.errors import ConfigError, Interrupted, OnwardError, said
from storage.store import Request
from tasks import stages
from tasks.models.base import InitConfig, readers_of
from tasks.models.checkpoint import kept_of
from tasks.training.state.stopping import stopped_of

Foretell = Callable[[Model, Sequence[Round]], None]
"""Is given the model of a budget, and the rounds after it."""


def adapt(
    ask: Requests,
    build: Build,
    *,
    until: str = "report",
    slices: int | None = None,
    overlap: bool = False,
    stop: threading.Event | None = None,
    halt: Callable[[], None] = lambda: None,
    foretell: Foretell = lambda model, later: None,
    outcome: Outcome | None = None,
) -> Outcome:
    """Make or find all artifacts of a run, in order. `until` names the last stage; `slices` bounds a corpus-only run.

    Where nothing of a source is left, the page about the data is made of what was read, and NothingLeft is raised.
    `stop` and `halt` end the reading ahead, see `reading_ahead`. `foretell` is given each budget's model before the later
    rounds are paid for. `outcome` is filled along the way, so a caller that passes
    one sees the results so far even if the run fails.
    """
    tokenizer = _Tokenizer(ask, build)
    reading = SliceReader(ask, build, tokenizer)
    outcome = outcome or Outcome()
    outcome.slices = reading.slices
    if until in stages.CORPUS:
        reading.all(until, slices)
        return outcome

    try:
        _adapt(
            ask, build, reading, tokenizer, outcome, until, overlap, stop or threading.Event(), halt, foretell
        )
    except NothingLeft:
        try:
            outcome.data = outcome.data or build(ask.data(reading.slices, outcome))
        except OnwardError as error:
            ask.warn(f"the page about the data could not be made: {said(error)}")
        raise
    return outcome


def _adapt(
    ask: Requests,
    build: Build,
    reading: SliceReader,
    tokenizer: _Tokenizer,
    outcome: Outcome,
    until: str,
    overlap: bool,
    stop: threading.Event,
    halt: Callable[[], None],
    foretell: Foretell,
) -> None:
    rounds = rounds_of(ask.run)
    holdouts: Mapping[str, Input] = {}
    line, base = _base(ask, build, reading, tokenizer, outcome)
    for round, following in zip(rounds, [*rounds[1:], None], strict=True):
        read = reading.until(ask.needed(round, line.taken))
        reading.check_repeats(
            ask.needed(rounds[-1], line.taken, branch=True)
        )  # of all budgets, before the first is trained
        line = _pack(ask, build, outcome, line, round, read)
        behind = reading.until(ask.needed(round, line.taken, branch=True)) if ask.anneals(round) else read
        if until in ("pack", "data"):
            continue
        if round.number == 1 and until in ("evaluate", "report"):
            holdouts = reading.holdouts(read)
            measure(ask, build, outcome, base, holdouts)
        ahead = ask.needed(following, line.taken) if following and overlap else None
        read_on = partial(reading.until, ahead) if ahead else None
        with reading_ahead(read_on, stop, halt):
            line, model = _train(ask, build, line, round, read, behind, until)
        if model is not None and until in ("evaluate", "report"):
            measure(ask, build, outcome, model, holdouts)
            _measure_kept(ask, build, outcome, line.trunks[-1], round, holdouts)
            last = following is None or stopped_at(line.trunks) is not None
            for merged in merges_of(ask, build, outcome, line, model) if last else ():
                measure(ask, build, outcome, merged, holdouts, sampled=False)
        if following is not None and stopped_at(line.trunks) is not None:
            ask.warn(f"training.stop: the budgets after {round.name} are not trained")
            break
        if model is not None and following is not None:
            foretell(model, rounds[round.number :])
    if until in ("data", "report"):
        _account(ask, build, outcome, reading)
    outcome.settle()
    if until == "report":
        outcome.report = build(ask.report(outcome))


class _Tokenizer:
    """The run's tokenizer: the base model's, or, for a new base, one made from the first slice of replay text.

    Raises ConfigError if text is to be tokenized before any replay text was read.
    """

    def __init__(self, ask: Requests, build: Build) -> None:
        self._ask = ask
        self._build = build
        self.base: Artifact | None = None

    def __call__(self, read: list[Slice]) -> Input:
        base = self._ask.run.model.base
        if self.base is None and isinstance(base, InitConfig):
            replay = {one.name for one in self._ask.run.corpus.sources if one.role == "replay"}
            first = next((one for one in read if one.source in replay), None)
            if first is None:
                raise ConfigError(LIKE_OF_A_NEW_MODEL)
            documents = first.artifacts["decontaminate"].part("documents")
            made = self._build(self._ask.tokenizer(documents), round=0)
            self.base = self._build(self._ask.initial(made.part("tokenizer")), round=0)
        elif self.base is None:
            self.base = self._build(self._ask.imported(), round=0)
            self._ask.tell_beginning(self.base)
        return self.base.part("tokenizer")


def _base(
    ask: Requests, build: Build, reading: SliceReader, tokenizer: _Tokenizer, outcome: Outcome
) -> tuple[TrainingState, Model]:
    """The base model. A newly initialised one is pre-trained on replay text; later rounds read on behind that text."""
    config = ask.run.model.base
    if not isinstance(config, InitConfig):
        tokens = tokenizer([])
        assert tokenizer.base is not None
        model = Model("base", 0, tokenizer.base, 0)
        outcome.models.append(model)
        export = tokenizer.base.part("export")
        return TrainingState(export, tokens, base=export, readers=readers_of(tokenizer.base)), model
    zero = round_zero(ask.run, config.pretrain_tokens)
    read = reading.until(ask.needed(zero, {}))
    reading.check_repeats(ask.needed(zero, {}))
    packed = build(ask.pack(zero, read, None, tokenizer(read)), round=0)
    outcome.packed.append(packed)
    assert tokenizer.base is not None
    initial, readers = tokenizer.base.part("export"), readers_of(tokenizer.base)
    start = TrainingState(initial, tokenizer(read), (packed.part("manifest"),), readers=readers)
    trained = build(ask.train(zero, start, read), round=0)
    model = Model("base", 0, trained, 0)
    outcome.models.append(model)
    export = trained.part("export")
    state, taken = packed.part("state"), ask.taken(packed)
    line = TrainingState(export, start.tokenizer, (), state, (), taken, export, readers)
    return line, model


def _pack(
    ask: Requests,
    build: Build,
    outcome: Outcome,
    line: TrainingState,
    round: Round,
    read: list[Slice],
) -> TrainingState:
    packed = build(ask.pack(round, read, line.state, line.tokenizer), round=round.number)
    outcome.packed.append(packed)
    manifests = (*line.manifests, packed.part("manifest"))
    return replace(line, manifests=manifests, state=packed.part("state"))


def _train(
    ask: Requests,
    build: Build,
    line: TrainingState,
    round: Round,
    read: list[Slice],
    behind: list[Slice],
    until: str,
) -> tuple[TrainingState, Model | None]:
    """The trunk of a round, and the branch to its budget (`rewarm` rounds have no branch).

    `behind`: the slices that a branch with a mixture of its own takes its text of.
    """
    trunk = build(ask.train(round, line, read), round=round.number, item=round.name)
    trunks = (*line.trunks, trunk)
    after = replace(line, start=trunk.part("trunk"), trunks=trunks)
    if until == "train":
        return after, None
    trained = trunk
    step = stopped_at(trunks)
    if step is not None:
        round = stopped_round(ask.run, round, step)
    if ask.branches:
        branch = after
        if ask.anneals(round) and line.state is not None:
            request = ask.pack_branch(round, behind, line.state, line.tokenizer)
            packed = build(request, round=round.number, item=f"branch to {round.name}")
            branch, read = replace(after, manifests=(packed.part("manifest"),)), behind
        trained = build(ask.decay(round, branch, read), round=round.number, item=round.name)
    journals = [*trunks, trained] if ask.branches else list(trunks)
    tokens = round.budget if step is None else _seen(ask, round, trained)
    return after, Model(round.name, tokens, trained, round.number, journals=journals)


def _seen(ask: Requests, round: Round, trained: Artifact) -> int:
    """The tokens that the model of a stopped round has seen; as many as its steps have at most, if it is not made yet."""
    seen = trained.stats.get("tokens_seen")
    return round.last_step * ask.run.training.batch_tokens if seen is None else int(seen)


def stopped_at(trunks: Sequence[Artifact]) -> int | None:
    """The step at which the newest trunk ends, if training.stop ended it before its budget."""
    found = stopped_of(trunks[-1].stats.get("result") or {}) if trunks else None
    return None if found is None else int(found["step"])


def _account(ask: Requests, build: Build, outcome: Outcome, reading: SliceReader) -> None:
    """Count benchmark questions that were not removed from the corpus, and make the page about the data.

    This comes last, so that no training waits for it. Failed counts are kept in `outcome.failed`.
    """
    for name, request in ask.counted(reading.slices):
        try:
            outcome.counted[name] = build(request(), item=name)
        except Interrupted:
            raise
        except Exception as error:
            outcome.failed[f"contamination by {name}"] = error
    outcome.data = build(ask.data(reading.slices, outcome))


def measure(
    ask: Measures,
    build: Build,
    outcome: Outcome,
    model: Model,
    holdouts: Mapping[str, Input],
    *,
    sampled: bool = True,
) -> None:
    """Measure a model on every benchmark and on each source's held-out documents, and sample its text if that is shown.

    A failure affects only its own measure and is kept in `outcome.failed`. Other measures and training continue.
    """
    if not any(one is model for one in (*outcome.models, *outcome.between, *outcome.merged)):
        outcome.models.append(model)
    export = model.export.part("export")

    def make(name: str, request: Callable[[], Request], item: str | None) -> Artifact | None:
        try:
            return build(request(), round=model.round, item=item)
        except Interrupted:
            raise
        except Exception as error:
            outcome.failed[f"{name} of {model.name}"] = error
            return None

    for source, holdout in holdouts.items():
        if made := make(f"perplexity on {source}", partial(ask.perplexity, export, holdout), source):
            model.perplexity[source] = made
    for benchmark, request in ask.evaluations(export, holdouts, build):
        if made := make(benchmark, request, benchmark):
            model.scores[benchmark] = made
    if sampled and (samples := ask.samples(export)) is not None:
        model.samples = make("samples", lambda: samples, None)


def _measure_kept(
    ask: Requests,
    build: Build,
    outcome: Outcome,
    trunk: Artifact,
    round: Round,
    holdouts: Mapping[str, Input],
) -> None:
    """Measure the checkpoints that the round's trunk kept, if the configuration asks for it, each as its own model.

    A failed export is kept in `outcome.failed`, like a failed measure.
    """
    for tokens in kept_of(trunk) if ask.run.evaluation.checkpoints else ():
        name = f"{count_text(tokens)} trunk"
        try:
            made = build(ask.checkpoint(trunk, tokens), round=round.number, item=name)
        except Interrupted:
            raise
        except Exception as error:
            outcome.failed[f"export of {name}"] = error
            continue
        outcome.between.append(Model(name, tokens, made, round.number))
        measure(ask, build, outcome, outcome.between[-1], holdouts)


def describe(outcome: Outcome) -> list[dict[str, Any]]:
    """The models with their scores, as `onward run --json` prints them. Paths are relative to the store.

    Checkpoints that were measured are sorted among them by tokens; merged models come last.
    """
    described = []
    trained = sorted((*outcome.models, *outcome.between), key=lambda model: model.tokens)
    for model in (*trained, *outcome.merged):
        scores = {name: artifact.stats["metrics"] for name, artifact in model.scores.items()}
        perplexity = {name: artifact.stats["perplexity"] for name, artifact in model.perplexity.items()}
        path = f"{model.export.path.parent.name}/{model.export.path.name}/export"
        described.append(
            {
                "name": model.name,
                "tokens": model.tokens,
                "path": path,
                "scores": scores,
                "perplexity": perplexity,
            }
        )
    return described


def scores_of(model: Model) -> dict[str, float]:
    """Every perplexity and score of a model, by the names that MLflow shows."""
    found = {f"perplexity/{name}": made.stats["perplexity"] for name, made in model.perplexity.items()}
    for name, made in model.scores.items():
        found |= {f"eval/{name}/{metric}": value for metric, value in made.stats["metrics"].items()}
    return found
