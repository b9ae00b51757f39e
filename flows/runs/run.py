"""A run with its surroundings, as the flow executes it. It connects the DAG to the store, Prefect, MLflow and the terminal.

A run is named by its configuration's name and a digest of its identity. Every attempt at it is one Prefect flow run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows.config import RunConfig
from flows.dag.pretrain import adapt
from flows.dag.requests import Requests
from flows.dag.rounds import Round
from flows.dag.state import Model
from flows.machine.gpu import Gpu
from flows.quote.happened import Beside
from flows.quote.planned import quoted
from flows.quote.promised import beside_text, keep_first, kept_beside
from flows.quote.quote import Quote
from flows.quote.table import PAGE_WIDTH
from flows.runs.attempt import Attempt
from flows.runs.checks import advice, check, check_hub
from flows.runs.differs import current_name, differing, file_of, full_name, head_of, words_of
from flows.runs.names import id_before, run_id, run_name
from flows.runs.session import current_flow_run, ending_kept, failure_explained, in_flow_run, shown
from flows.runs.stage_task import Builder
from flows.runs.tracked import experiment, open_tracker
from flows.runs.trainable import check_base
from flows.tracking.tracker import Tracked, Tracker, describe_run, flat, head_text
from flows.tracking.view import View
from flows.ui import publish
from flows.ui.console import Console
from storage.artifact import Artifact
from storage.counts import count_text
from storage.errors import ConfigError, OnwardError, StageFailed
from storage.paths import from_home, state_directory
from storage.runs import RunRecord, rename_record, shared_lock
from storage.settings import identity_values
from storage.store import Store
from storage.workers import Workers
from tasks import stages
from tasks.pages.report.cost import page_of, published
from tasks.pages.report.outlook import Segment, outlooks, sentences
from tasks.pages.report.report import chosen_of

_TRUNK = "trunk/"
"""Prefix of score names for checkpoints that training kept along the way."""
_MERGE = "merge/"
"""Prefix of score names for merged models, each by its own name."""


@dataclass(frozen=True)
class Options:
    """The options of one invocation, besides the configuration."""

    force: tuple[str, ...] = ()
    until: str = "report"
    slices: int | None = None
    dry_run: bool = False
    """Only show what would be done."""

    @property
    def forced(self) -> frozenset[str]:
        """Names of the stages that are made again. `all` in `force` stands for every stage."""
        return frozenset(stages.NAMES if "all" in self.force else self.force)


def execute(run: RunConfig, options: Options, console: Console) -> Any:
    """One attempt at a run, inside a flow run. Returns what `onward run --json` prints, or the final state of the flow.

    Outside a flow run, a failure raises RunFailed. Inside, the state holds the error, and its text is the state's message.
    The error's `summary` is what `--json` prints. If asked to stop (by a BaseException that is no Exception), the run ends
    in seconds: the trainer writes a checkpoint, workers end in mid-shard, and waits for servers are limited too.
    """
    return in_flow_run(console, lambda: _execute(run, options, console))


def _execute(run: RunConfig, options: Options, console: Console) -> Any:
    flow_run = current_flow_run()
    store = Store(run.store_path)
    attempt: RunAttempt | None = None
    with failure_explained(store, lambda: attempt, console.warn):
        check(run, elsewhere=options.until in stages.CORPUS)
        if options.slices is not None and options.until not in stages.CORPUS:
            raise ConfigError(
                f"slices: goes with a corpus stage as the last one ({', '.join(stages.CORPUS)})"
            )
        check_hub(run)
        notes = check_base(run)
        if options.dry_run:
            return _planned(run)
        for line in (*notes, *advice(run)):
            console.warn(line)
        store.root.mkdir(parents=True, exist_ok=True)
        with (
            shared_lock(store),
            Workers(run.corpus.execution.count, run.corpus.execution.executor) as workers,
            _tracked(run, store, flow_run, console) as tracker,
        ):
            asked = run.training.execution
            gpu = Gpu(state_directory(), asked.device, run_name(run), asked.processes)
            facts = {"flow_run": flow_run}
            builder = Builder(store, workers, console, options.forced, facts, gpu=gpu)
            attempt = RunAttempt.of(run, builder, tracker, flow_run)
            with ending_kept(attempt), attempt.account():
                _adapt(run, options, attempt)
        assert attempt.summary is not None
        return attempt.summary.as_json()


def _adapt(run: RunConfig, options: Options, attempt: RunAttempt) -> None:
    builder = attempt.builder
    whole = options.until == "report" and not options.force

    def quote() -> Quote:
        found = quoted(run).quote
        keep_first(builder.store.root, attempt.record, found)
        return found

    def beside() -> str:
        return beside_text(attempt.beside())

    with shown(
        builder, attempt.tracker, run.name, attempt.known, quote if whole else None, beside if whole else None
    ) as pages:
        outcome = attempt.outcome
        try:
            adapt(
                Requests(run, builder.store, warn=builder.console.warn),
                builder,
                until=options.until,
                slices=options.slices,
                overlap=_overlap(run),
                stop=builder.stop,
                halt=builder.halt,
                foretell=attempt.foretell,
                outcome=outcome,
            )
        finally:  # where nothing is left of a source too, the page says where it went
            publish.data_page(pages, outcome.data.part("page") if outcome.data else None)
        page = _page(builder.store, outcome.report, builder.console) if outcome.report else None
        publish.report_page(pages, page, "\n\n".join(part for part in (_head(run), beside()) if part))
        if "all" in options.force:
            _same_bytes(builder)


@dataclass
class RunAttempt(Attempt):
    """An attempt at a whole run. Its models become versions of the registered model."""

    run: RunConfig = field(kw_only=True)

    @classmethod
    def of(cls, run: RunConfig, builder: Builder, tracker: Tracker, flow_run: str | None) -> RunAttempt:
        """Create the attempt at a configuration."""
        record, config = f"{run.name}-{run_id(run)}", run.model_dump(mode="json")
        rename_record(builder.store, f"{run.name}-{id_before(run)}", record, same_benchmarks(run))
        return cls(builder.store, builder, tracker, flow_run, record, run.name, config, run=run)

    def publish_measured(self) -> None:
        """Publish the results so far.

        Kept checkpoints are measured after the budget that follows them. Their scores get a separate series, in which steps
        never go back.
        """
        self.tracker.measured(self.outcome.models, self._registered)
        self.tracker.measured(self.outcome.between, prefix=_TRUNK)
        for merged in self.outcome.merged:
            self.tracker.measured([merged], prefix=f"{_MERGE}{merged.name}/")

    def publish_scores(self, complete: bool) -> None:
        """Publish all results; for a complete run, also the champion. Then publish the data page and the report."""
        models, report = self.outcome.models, self.outcome.report
        self.publish_measured()
        if complete and report is not None:
            groups = self.run.evaluation.groups()
            roles = {source.name: source.role for source in self.run.corpus.sources}
            chosen, chat = chosen_of(report)
            for merged in self.outcome.merged:
                self.tracker.measured([merged], (chosen, chat), prefix=f"{_MERGE}{merged.name}/")
            beside = [merged for merged in self.outcome.merged if merged.name == chosen]
            self.tracker.champion([*models, *beside], (*self._registered, chosen), groups, roles)
        for made in (self.outcome.data, report):
            if made is not None:
                self.tracker.files(made)

    def foretell(self, model: Model, later: Sequence[Round]) -> None:
        """Say what the budgets to come will bring, by what was measured on held-out text until now."""
        trained = [*(one for one in self.outcome.models if one.journals and one is not model), model]
        segments = {
            made.key: Segment.of(one.name, made)
            for one in trained
            for made in one.journals
            if not made.estimated
        }
        found = outlooks(list(segments.values()), {one.name: one.budget for one in later})
        for line in sentences(found, model.name):
            self.builder.console.line(line)

    def beside(self) -> list[Beside]:
        """What was promised of each stage beside what its artifacts took."""
        return kept_beside(self.store.root, self.record, list(self.builder.artifacts.values()))

    @property
    def _registered(self) -> tuple[str, ...]:
        """Names of the models that become versions of the registered model."""
        return ("base", *(count_text(budget) for budget in self.run.training.token_budgets))


def same_benchmarks(run: RunConfig) -> Callable[[RunRecord], bool]:
    """Whether a record is of a configuration with the same directory of benchmarks."""
    return lambda record: (
        from_home(record.config.get("benchmark_files") or "") == from_home(run.benchmark_files or "")
    )


def _head(run: RunConfig) -> str:
    """The head of the report's page: the artifact is the same for every run that made it, and names none."""
    of_file = file_of()
    rows = head_of(run, differing(run, of_file))
    return head_text(current_name() or full_name(run, of_file), rows)


def _page(store: Store, report: Artifact, console: Console) -> Path:
    """The directory of the report with its cost, which no stage may know. If that cannot be written, the plain report."""
    try:
        return published(report, store.lookup, page_of(store.root, report))
    except (OSError, OnwardError) as error:
        console.warn(f"the report is shown without what it cost: {error}")
        return report.path


def _same_bytes(builder: Builder) -> None:
    """Raises StageFailed if a stage that was made again gave other bytes than before."""
    differing = [
        f"{call.label} ({call.request.stage}/{call.request.key[:16]})"
        for call in builder.calls
        if call.differs
    ]
    if differing:
        raise StageFailed(
            f"{len(differing)} of {len(builder.calls)} stages gave other bytes than when they were first made: "
            f"{', '.join(differing)}. The old artifacts are set aside beside the new ones (.damaged-…), to compare. "
            "The same code, data and machine must give the same bytes: look at memory, disk and what was installed"
        )


def _planned(run: RunConfig) -> State[Any]:
    """The final state of a dry run: the plan is on its page, and nothing was made."""
    warnings = advice(run)
    found = quoted(run, warnings.append)
    rows = found.rows
    flow_run = current_flow_run()
    text = "\n".join([*(f"! {line}" for line in dict.fromkeys(warnings)), found.text(PAGE_WIDTH)])
    if flow_run is not None:
        publish.plan_page(publish.PrefectPages(flow_run), rows, text)
    summary = {
        "flow_run": flow_run,
        "state": "planned",
        "stages": [],
        "models": [],
        "report": None,
        "mlflow_run": None,
        "plan": [vars(row) for row in rows],
    }
    waits = sum(row.state != "cached" for row in rows)
    message = (
        f"planned: {len(rows) - waits} stages are in the store, {waits} are to be made; nothing was built"
    )
    return Completed(name="Planned", message=message, data=summary)


@contextmanager
def _tracked(run: RunConfig, store: Store, flow_run: str | None, console: Console) -> Iterator[Tracker]:
    uri, artifacts = experiment(run.tracking.mlflow_uri, run.name)
    params = dict(flat(identity_values(run)))
    url = publish.flow_run_url(flow_run)
    tags = {"onward.run": run_id(run), "prefect.flow_run": flow_run or "", "store": str(store.root)}
    tags |= {"prefect.url": url} if url else {}
    of_file = file_of()
    changed = differing(run, of_file)
    name = current_name() or full_name(run, of_file)
    if words := words_of(changed):
        tags["onward.differs"] = " · ".join(words)
        publish.tag_run(flow_run, words)
    rows = head_of(run, changed)
    note = describe_run(name, url, run.store_path, rows)
    registered = run.tracking.registered(run.name)
    view = View.of({one.name: one.role for one in run.corpus.sources}, run.evaluation.groups())
    tracked = Tracked(run.name, run_id(run), name, uri, artifacts, params, tags, note, registered, view, rows)
    with open_tracker(Tracker(tracked, store, console.warn)) as tracker:
        yield tracker


def _overlap(run: RunConfig) -> bool:
    wanted = run.training.execution.overlap
    if wanted != "auto":
        return bool(wanted)
    if run.training.execution.device == "cpu":
        return False
    import torch

    return bool(torch.cuda.is_available())
