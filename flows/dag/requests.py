"""Builds the request for each stage from the run's configuration and the artifacts so far. No stage runs here.

These few lines decide what enters a stage's key: the identity that it gets, and the digests of the parts that it uses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from flows.config import RunConfig
from flows.dag.call import Build
from flows.dag.rounds import Round, averaging, decay_schedule, has_branches, trunk_schedule
from flows.dag.state import Outcome, Slice, TrainingState
from storage.artifact import Artifact, Chain, Input
from storage.errors import ConfigError, StageFailed
from storage.paths import home
from storage.store import Request, Store
from tasks.corpus import (
    contamination,
    decontaminate,
    dedup,
    filter,
    ingest,
    likeness,
    pack,
    tokenize,
    tokenizer,
)
from tasks.corpus.benchmarks.questions import benchmark_inputs
from tasks.corpus.packing.budgets import needed_tokens, sequences_per_step
from tasks.corpus.reading.digests import FileDigests
from tasks.corpus.reading.extracted import Shelf
from tasks.corpus.reading.hub import Remembered, remembered_in
from tasks.corpus.reading.slice_plan import plan_slice
from tasks.corpus.reading.sources import IngestConfig, SourceConfig
from tasks.corpus.tokens.begin import BOS, EOS, Begin, ends_of, refused, told
from tasks.documents import extract
from tasks.documents.shelves import Shelves, shelves_in, shelves_of
from tasks.evaluation import evaluate, hub_questions, perplexity, questions, samples
from tasks.evaluation.catalog import EvaluationConfig, OwnBenchmark, supported
from tasks.models import base, checkpoint, decay, merge, train
from tasks.models.config import SegmentConfig, resolve_precision
from tasks.models.train import TrainInputs
from tasks.pages.data import data
from tasks.pages.report import report
from tasks.training.spec import Kind, Precision, Schedule


@dataclass(kw_only=True, eq=False)
class Measures:
    """Requests for measuring a model: on benchmarks, and on held-out documents."""

    evaluation: EvaluationConfig
    benchmark_directory: Path | None
    """Local copies of the benchmarks; None means the hub."""
    cache: Path
    """The store's cache: the hub's answers and the questions from the hub."""
    seed: int
    max_length: int
    """The most tokens that a model gets at once: the sequence length of training."""
    device: str
    warn: Callable[[str], None]
    begin: Begin = EOS
    """The token before a document and a question."""

    def perplexity(self, model: Input, holdout: Input) -> Request:
        """A model on the held-out documents of one source."""
        config = perplexity.PerplexityConfig(
            max_length=self.max_length,
            begin=self.begin,
            precision=self.evaluation.precision,
            overlap=self.evaluation.overlap,
            device=self.device,
        )
        return Request(perplexity, config, perplexity.PerplexityInputs(model, holdout))

    def evaluations(
        self, model: Input, holdouts: Mapping[str, Input], build: Build
    ) -> Iterator[tuple[str, Callable[[], Request]]]:
        """One request for each benchmark of the configuration. Each is a function, so that one can fail alone.

        Calling it fetches questions from the hub, or makes questions from held-out text.
        """
        for name in (*self.evaluation.domain, *self.evaluation.general):
            yield name, partial(self._evaluate_known, name, model)
        for mine in self.evaluation.own:
            if mine.held_out and mine.held_out not in holdouts:
                self.warn(
                    f"benchmark {mine.name} is left out: source {mine.held_out} has no held-out documents"
                )
                continue
            yield mine.name, partial(self._evaluate_own, mine, model, holdouts, build)

    def samples(self, model: Input) -> Request | None:
        """Continuations of the standard prompts and the user's prompts; None if no samples are configured."""
        if not self.evaluation.sample_tokens:
            return None
        config = samples.SamplesConfig(
            prompts=(*samples.PROMPTS, *self.evaluation.prompts),
            tokens=self.evaluation.sample_tokens,
            seed=self.seed,
            max_length=self.max_length,
            device=self.device,
            begin=self.begin,
        )
        return Request(samples, config, samples.SamplesInputs(model))

    def questions_directory(self, names: Sequence[str], where: str) -> Path:
        """The directory with the files of these harness benchmarks. Files of the hub are fetched first, once."""
        if self.benchmark_directory is not None:
            return self.benchmark_directory
        return hub_questions.fetch(names, self.cache / "benchmarks", self.remembered, where)

    @cached_property
    def remembered(self) -> Remembered:
        """The hub's answers that this store keeps."""
        return remembered_in(self.cache.parent)

    def _questions_of(self, mine: OwnBenchmark, holdout: Input) -> Request:
        config = questions.QuestionsConfig(questions=mine.questions, seed=self.seed)
        return Request(questions, config, questions.QuestionsInputs(holdout))

    def _evaluate_known(self, name: str, model: Input) -> Request:
        directory = self.questions_directory([name], "evaluation")
        return self._evaluate(name, evaluate.harness_inputs(model, name, directory))

    def _evaluate_own(
        self, mine: OwnBenchmark, model: Input, holdouts: Mapping[str, Input], build: Build
    ) -> Request:
        if mine.file:
            return self._evaluate(mine.name, evaluate.own_file_inputs(model, home() / mine.file))
        if mine.tasks:
            return self._evaluate(mine.name, evaluate.own_directory_inputs(model, home() / mine.tasks))
        questions = self._questions_of(mine, holdouts[str(mine.held_out)])
        made = build(questions, item=mine.name).part("questions")
        return self._evaluate(mine.name, evaluate.own_held_out_inputs(model, made))

    def _evaluate(self, name: str, inputs: evaluate.EvaluateInputs) -> Request:
        config = evaluate.evaluate_config(
            name,
            self.evaluation.limit,
            self.seed,
            self.max_length,
            self.device,
            self.begin,
            self.evaluation.precision,
        )
        return Request(evaluate, config, inputs)


class Requests(Measures):
    """Requests of one run."""

    def __init__(
        self, run: RunConfig, store: Store, warn: Callable[[str], None], *, looks: bool = False
    ) -> None:
        """`looks`: nothing is made, so nothing is fixed in the store that a later run would keep to."""
        super().__init__(
            evaluation=run.evaluation,
            benchmark_directory=run.benchmark_directory,
            cache=store.root / ".cache",
            seed=run.seed,
            max_length=run.packing.sequence_length,
            device=run.training.execution.device,
            warn=warn,
            begin=run.packing.begin,
        )
        self.run = run
        self._digests = FileDigests(self.cache / "digests.sqlite")
        self._looks, self._store = looks, store
        self._shelves: dict[str, Shelves | None] = {}

    # ---- corpus -----------------------------------------------------------------------------------------------

    def shelves(self, name: str) -> Shelves | None:
        """The shelves of a source of documents; None of one that is read as it is."""
        if name not in self._shelves:
            source = next(one for one in self.run.corpus.sources if one.name == name)
            remembered = shelves_in(self.cache.parent)
            found = shelves_of(self._reading(source), source, home(), remembered, fix=not self._looks)
            self._shelves[name] = found
            if found is not None and self._was_plain(name, found):
                self.warn(
                    f"source {name} was read as plain text before, and now holds documents: all of it is made again; make "
                    "the new files a source of their own to keep what was made"
                )
            if found is not None and found.gone:
                self.warn(
                    f"source {name}: {len(found.gone):,} files that were read before are gone ({found.gone[0]}, …): what "
                    "was made of them is made again without them"
                )
        return self._shelves[name]

    def _was_plain(self, name: str, shelves: Shelves) -> bool:
        """Whether files of a source were read as they are, and none of them as documents."""
        if any(one.manifest.config.get("name") == name for one in self._store.artifacts("extract")):
            return False
        return any(
            one.manifest.config.get("name") == name
            and any(
                file.get("name") in shelves.listing.paths for file in one.manifest.inputs.get("files") or ()
            )
            for one in self._store.artifacts("ingest")
        )

    def extract(self, source: SourceConfig, number: int) -> Request:
        """The documents of a source's shelf (`number` counts from 0)."""
        shelves = self.shelves(source.name)
        assert shelves is not None
        try:
            inputs = extract.extract_inputs(shelves, number, self._digests)
        except OSError as error:
            raise ConfigError(
                f"source {source.name!r}: {error.filename} cannot be read ({error.strerror or error}); make it "
                "readable, or leave it out of files"
            ) from error
        config = extract.ExtractConfig(
            name=source.name, text_field=source.text_field, template=source.template
        )
        return Request(extract, config, inputs)

    def shelf(self, source: SourceConfig, number: int, made: Artifact | None) -> Shelf:
        """What ingest reads of a shelf, of which `made` holds the documents."""
        shelves = self.shelves(source.name)
        assert shelves is not None
        waits = shelves.estimate(number) if made is not None and made.estimated else None
        return Shelf(
            None if made is None else made.part("documents"), shelves.rows(number), source.text_field, waits
        )

    def _reading(self, source: SourceConfig) -> IngestConfig:
        corpus = self.run.corpus
        return IngestConfig.of(
            source,
            slice_bytes=corpus.slice_bytes,
            seed=self.run.seed,
            max_bad_fraction=corpus.max_bad_fraction,
        )

    def ingest(self, source: SourceConfig, before: Artifact | None, shelf: Shelf | None = None) -> Request:
        """The next slice of a source, after the one that `before` read. `shelf`: where it lies, if there are any."""
        config = self._reading(source)
        cursor = before.part("cursor") if before else None
        waits = before is not None and before.estimated  # a plan: what the cursor says is not known yet
        plan = plan_slice(
            config, source, None if waits else cursor, home(), self._digests, self.remembered, shelf
        )
        if plan is None:
            raise StageFailed(f"source {source.name} is used up")
        return Request(ingest, plan.config, replace(plan.inputs, cursor=cursor))

    def dedup(self, documents: Input, earlier: Chain | None) -> Request:
        """Deduplicate a slice against itself and all slices before it."""
        return Request(dedup, self.run.corpus.dedup, dedup.DedupInputs(documents, earlier))

    def likeness(self, names: tuple[str, str], documents: Input, others: Input) -> Request:
        """What the documents of one source have that those of another have not."""
        config = likeness.LikenessConfig(names=names)
        return Request(likeness, config, likeness.LikenessInputs(documents, others))

    def filter(self, documents: Input, like: Input | None = None, least: float | None = None) -> Request:
        """Apply quality rules. `like`: the model of `likeness`, and the least score that is kept."""
        classifier, directory = filter.classifier_inputs(self.run.corpus.filter, home())
        inputs = filter.FilterInputs(documents, classifier, directory, like, least)
        return Request(filter, self.run.corpus.filter, inputs)

    def decontaminate(
        self, documents: Input, first_of_source: bool, earlier: Chain | None, trained: tuple[Input, ...]
    ) -> Request:
        """Remove benchmark questions from the corpus, and separate the holdout from a source's first slice.

        `earlier`: what the slices before this one know. `trained`: their documents; a slice with a holdout reads them.
        """
        section = self.run.corpus.decontaminate
        known, paths = self._questions
        config = decontaminate.DecontaminateConfig(
            ngram=section.ngram,
            benchmarks=section.benchmarks,
            holdout_fraction=self.run.corpus.holdout_fraction,
            holdout_piece=self.run.corpus.holdout_piece,
            seed=self.run.seed,
            copies=self.run.corpus.dedup.exact,
        )
        read_again = trained if first_of_source and config.holdout_fraction > 0 else ()
        inputs = decontaminate.DecontaminateInputs(
            documents, known, first_of_source, paths, earlier, read_again
        )
        return Request(decontaminate, config, inputs)

    def tokenize(self, documents: Input, tokenizer: Input) -> Request:
        """Turn documents into token shards."""
        return Request(tokenize, tokenize.TokenizeConfig(), tokenize.TokenizeInputs(documents, tokenizer))

    @cached_property
    def _questions(self) -> Any:
        return self._question_files(
            self.run.corpus.decontaminate.benchmarks, "corpus.decontaminate.benchmarks"
        )

    def _question_files(self, wanted: Sequence[str], where: str) -> Any:
        own_files = {entry.name: home() / entry.file for entry in self.run.evaluation.own if entry.file}
        of_harness = [name for name in wanted if name not in own_files]
        return benchmark_inputs(self.questions_directory(of_harness, where), wanted, own_files)

    # ---- base model -------------------------------------------------------------------------------------------

    def imported(self) -> Request:
        """The base model from a directory or the hub."""
        inputs = base.resolve_base(self.run.model, home(), remembered=self.remembered)
        return Request(base, base.BaseConfig(), inputs)

    def tell_beginning(self, imported: Artifact) -> None:
        """Tell what documents begin with, once the base is there. Raises ConfigError if its tokenizer lacks the token."""
        ends = ends_of(imported.path / "export")
        if self.begin == BOS and ends is not None and ends.bos is None:
            raise ConfigError(refused(ends))
        if line := told(ends, self.begin):
            self.warn(line)

    def tokenizer(self, documents: Input) -> Request:
        """A new model's tokenizer."""
        config = self.run.model.base
        assert isinstance(config, base.InitConfig)
        return Request(tokenizer, config.tokenizer, tokenizer.TokenizerInputs((documents,)))

    def initial(self, tokens: Input) -> Request:
        """The initial weights of a new model."""
        inputs = base.resolve_base(self.run.model, home(), seed=self.training_seed, tokenizer=tokens)
        return Request(base, base.BaseConfig(), inputs)

    @property
    def new_base(self) -> bool:
        """Whether the base model is made here rather than imported."""
        return isinstance(self.run.model.base, base.InitConfig)

    @property
    def training_seed(self) -> int:
        """Seed of all random choices in training: `training.seed`, or the run's own seed."""
        return self.run.seed if self.run.training.seed is None else self.run.training.seed

    # ---- rounds -----------------------------------------------------------------------------------------------

    def needed(self, round: Round, taken: Mapping[str, int], branch: bool = False) -> dict[str, int]:
        """Tokens that each source must have given by the end of a round: its share plus what round 0 took. With `branch`,
        what a branch with a mixture of its own takes behind that, too.
        """
        sources = self._sources(round)
        total = round.first_sequence + round.sequences
        length = self.run.packing.sequence_length
        shares = needed_tokens([s.weight for s in sources], total, length)
        if branch and self.anneals(round):
            begin, end = self._branch_sequences(round)
            more = needed_tokens([s.branch_weight for s in sources], end - begin, length)
            shares = [share + own for share, own in zip(shares, more, strict=True)]
        return {s.name: share + taken.get(s.name, 0) for s, share in zip(sources, shares, strict=True)}

    def pack(self, round: Round, read: Sequence[Slice], state: Input | None, tokenizer: Input) -> Request:
        """The round's training sequences, made from the slices in `read`."""
        weights = [source.weight for source in self._sources(round)]
        return self._pack(round, read, state, tokenizer, weights, round.first_sequence, round.sequences)

    def pack_branch(self, round: Round, read: Sequence[Slice], state: Input, tokenizer: Input) -> Request:
        """The sequences of a round's branch, if it has a mixture of its own: of the text behind the round's, from `state`
        on. The next trunk reads that text too.
        """
        begin, end = self._branch_sequences(round)
        weights = [source.branch_weight for source in self._sources(round)]
        return self._pack(round, read, state, tokenizer, weights, begin, end - begin)

    def anneals(self, round: Round) -> bool:
        """Whether a round has a branch with a mixture of its own."""
        begin, end = self._branch_sequences(round)
        asked = any(source.decay_weight is not None for source in self.run.corpus.sources)
        return bool(round.number) and self.branches and asked and end > begin

    def _branch_sequences(self, round: Round) -> tuple[int, int]:
        per_step = sequences_per_step(self.run.training.batch_tokens, self.run.packing.sequence_length)
        return round.branch_step * per_step, round.last_step * per_step

    def _pack(
        self,
        round: Round,
        read: Sequence[Slice],
        state: Input | None,
        tokenizer: Input,
        weights: Sequence[float],
        first: int,
        sequences: int,
    ) -> Request:
        sources = self._sources(round)
        config = pack.PackConfig(
            packing=self.run.packing,
            seed=self.training_seed,
            sources=tuple(
                pack.SourceWeight(name=s.name, weight=weight)
                for s, weight in zip(sources, weights, strict=True)
            ),
            first_sequence=first,
            sequences=sequences,
        )
        shards = {s.name: tuple(one.tokens for one in read if one.source == s.name) for s in sources}
        named = tokenizer if self.begin == BOS else None
        return Request(pack, config, pack.PackInputs(shards, state, named))

    def taken(self, packed: Artifact) -> dict[str, int]:
        """Tokens that a round took from each source."""
        return {name: int(entry["tokens"]) for name, entry in packed.stats["sources"].items()}

    def train(self, round: Round, line: TrainingState, read: Sequence[Slice]) -> Request:
        """The trunk of a round, up to its branch point, or to its end if there are no branches."""
        kind: Kind = "pretrain" if round.number == 0 else ("trunk" if self.branches else "rewarm")
        config = self._segment(kind, round.first_step, round.branch_step, trunk_schedule(self.run, round))
        inputs = self._training_inputs(config, line, read)
        if kind == "trunk" and (plan := self.run.training.stop) is not None:
            if (text := inputs.heldout.get(plan.source)) is None:
                raise ConfigError(
                    f"training.stop.source: {plan.source} has no held-out documents: name another source, or raise "
                    "corpus.holdout_fraction"
                )
            config = replace(config, stop=plan.rule(*_lowest(line)))
            inputs = replace(inputs, stop_text=text)
        return Request(train, config, inputs)

    def checkpoint(self, trunk: Artifact, tokens: int) -> Request:
        """A checkpoint that a trunk kept during training, as a model."""
        inputs = checkpoint.CheckpointInputs(checkpoint.kept_part(trunk))
        return Request(checkpoint, checkpoint.CheckpointConfig(tokens=tokens), inputs)

    def chat_model(self) -> Request:
        """The chat model of `merge.instruct`, imported as a base is. Errors speak of `model.base`."""
        named = base.ModelConfig(base=str(self.run.merge.instruct), revision=self.run.merge.revision)
        inputs = base.resolve_base(named, home(), remembered=self.remembered)
        return Request(base, base.BaseConfig(), inputs)

    def merge(
        self, config: merge.MergeConfig, models: tuple[merge.Source, ...], readers: Input | None = None
    ) -> Request:
        """A model of weights between models."""
        return Request(merge, config, merge.MergeInputs(models, readers))

    def decay(self, round: Round, line: TrainingState, read: Sequence[Slice]) -> Request:
        """The branch of a round, from its trunk to its budget."""
        config = self._segment("decay", round.branch_step, round.last_step, decay_schedule(self.run, round))
        return Request(decay, config, self._training_inputs(config, line, read))

    @property
    def branches(self) -> bool:
        """Whether each round has a decay branch."""
        return has_branches(self.run)

    def _sources(self, round: Round) -> list[SourceConfig]:
        """The sources of a round. Round 0 reads only replay sources."""
        return [s for s in self.run.corpus.sources if round.number or s.role == "replay"]

    def _segment(self, kind: Kind, first_step: int, last_step: int, schedule: Schedule) -> SegmentConfig:
        training, packing = self.run.training, self.run.packing
        optimizer = training.optimizer
        if kind == "pretrain":  # it makes the base that later rounds are pulled to
            optimizer = replace(optimizer, pull_to_base=0.0)
        return SegmentConfig(
            kind=kind,
            seed=self.training_seed,
            sequence_length=packing.sequence_length,
            sequences_per_step=sequences_per_step(training.batch_tokens, packing.sequence_length),
            first_step=first_step,
            last_step=last_step,
            schedule=schedule,
            optimizer=optimizer,
            precision=self._precision,
            document_masking=training.document_masking,
            dropout=self.run.model.dropout,
            keep_every_tokens=training.keep_every_tokens,
            average=averaging(self.run) if kind in ("decay", "rewarm") else None,
            execution=training.execution,
        )

    @cached_property
    def _precision(self) -> Precision:
        return resolve_precision(self.run.training)

    def _training_inputs(
        self, config: SegmentConfig, line: TrainingState, read: Sequence[Slice]
    ) -> TrainInputs:
        """Training inputs with only the manifests that hold these steps, so that the key names nothing that is not used."""
        per_step = sequences_per_step(self.run.training.batch_tokens, self.run.packing.sequence_length)
        manifests = []
        for manifest in line.manifests:
            begin = int(manifest.stats.get("first_sequence", 0))
            end = begin + int(manifest.stats.get("sequences", 0))
            if not end or (begin < config.last_step * per_step and end > config.first_step * per_step):
                manifests.append(manifest)
        base = line.base if self.run.training.optimizer.pull_to_base else None
        exports = config.kind != "trunk" or config.keep_every_tokens is not None
        return TrainInputs(
            line.start,
            tuple(manifests),
            line.tokenizer,
            tuple(one.tokens for one in read),
            base,
            line.readers if exports else None,
            _held_out(read),
        )

    # ---- results ------------------------------------------------------------------------------------------------

    def counted(self, slices: Sequence[Slice]) -> Iterator[tuple[str, Callable[[], Request]]]:
        """Each evaluated benchmark with a question file whose questions decontamination did not look for."""
        documents = tuple(one.artifacts["decontaminate"].part("documents") for one in slices)
        known = self.run.corpus.decontaminate.benchmarks
        files = [supported(name).files for name in (*self.evaluation.domain, *self.evaluation.general)]
        own = [mine.name for mine in self.evaluation.own if mine.file]
        for name in dict.fromkeys((*files, *own)):
            if name not in known:
                yield name, partial(self._count, name, documents)

    def _count(self, name: str, documents: tuple[Input, ...]) -> Request:
        [entry], [path] = self._question_files([name], "evaluation")
        config = contamination.CountConfig(ngram=self.run.corpus.decontaminate.ngram)
        return Request(contamination, config, contamination.CountInputs(documents, entry, path))

    def data(self, slices: Sequence[Slice], outcome: Outcome) -> Request:
        """The page about the data."""
        config = data.DataConfig(seed=self.run.seed, filter=self.run.corpus.filter)
        first = 0 if self.new_base else 1
        counted = tuple(outcome.counted.values())
        return Request(data, config, data.data_inputs(slices, outcome.packed, first, counted))

    def report(self, outcome: Outcome) -> Request:
        """The report page."""
        roles = {source.name: source.role for source in self.run.corpus.sources}
        return Request(report, *report.report_request(self.run.evaluation, outcome, roles))


def _lowest(line: TrainingState) -> tuple[float | None, int]:
    """The lowest loss that the trunk so far came to by training.stop, and the tokens seen there."""
    before = (line.trunks[-1].stats.get("result") or {}).get("stopping") if line.trunks else None
    return (before["lowest"], int(before["lowest_tokens"])) if before else (None, 0)


def _held_out(read: Sequence[Slice]) -> dict[str, Input]:
    """The held-out documents of each source that has any, in the slices of a round."""
    found: dict[str, Input] = {}
    for one in read:
        cleaned = one.artifacts.get("decontaminate")
        if cleaned is not None and one.source not in found and cleaned.has("holdout"):
            found[one.source] = cleaned.part("holdout")
    return found
