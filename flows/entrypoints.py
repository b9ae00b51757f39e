"""The flows that deployments and the command line start. Their signatures define the form in the Prefect UI.

A flow only turns its parameters into the arguments of `flows.runs.run`. A value that its type does not allow is
refused before the flow starts; the server refuses it if the schema can express the rule.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from prefect import flow
from pydantic import Field

from flows.config import RunConfig, parse_config, parse_section
from flows.runs import heartbeats
from flows.runs.differs import current_name, file_of, full_name
from flows.runs.run import Options, execute
from flows.ui.changed_most import Changes, changed
from flows.ui.console import Console
from tasks.evaluation.catalog import EvaluationConfig
from tasks.stages import ENDS, NAMES

heartbeats.do_not_wait()

if TYPE_CHECKING:
    Force = str
    Until = str
else:
    Force = Literal[("all", *NAMES)]
    Until = Literal[ENDS]


def _run_name() -> str:
    from prefect.runtime import flow_run

    if (given := current_name()) is not None:
        return given
    config = (flow_run.parameters or {}).get("config")
    run = config if isinstance(config, RunConfig) else parse_config(config or {})
    change = (flow_run.parameters or {}).get("change") or {}
    return full_name(changed(run, Changes.model_validate(change)), file_of())


def _evaluation_name() -> str:
    from prefect.runtime import flow_run

    return current_name() or _evaluation(**(flow_run.parameters or {})).title


@flow(name="pretrain", flow_run_name=_run_name, persist_result=False, log_prints=False)
def pretrain(
    config: RunConfig,
    change: Changes = Changes(),
    until: Until = "report",
    slices: Annotated[int, Field(ge=1)] | None = None,
    force: tuple[Force, ...] = (),
    dry_run: bool = False,
) -> Any:
    """Adapt a small language model to a domain: read, clean and pack text, train for each token budget, and measure.

    Args:
        config: The whole run, as in its YAML file. Numbers may be written 400M, 64K or 1B, durations 30s or 5min.
        change: The keys that are changed most. What is empty is as in the configuration below.
        until: The last stage. Report is the whole run; a stage of the corpus (ingest to tokenize) reads all text up to it.
        slices: With a stage of the corpus as the last one, read only so many slices. Empty: all.
        force: Stages that are made again and compared with what is there. All: every stage, and the run fails where a
            byte differs.
        dry_run: Only say what would be done, on the run's page; nothing is made.
    """
    return execute(changed(config, change), Options(tuple(force), until, slices, dry_run), Console())


@flow(name="evaluate", flow_run_name=_evaluation_name, persist_result=False, log_prints=False)
def evaluate(
    model: str,
    benchmarks: EvaluationConfig = EvaluationConfig(),
    run: str | None = None,
    sequence_length: Annotated[int, Field(ge=2, le=1_048_576)] = 1024,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    seed: Annotated[int, Field(ge=0)] = 0,
    benchmark_files: str | None = None,
    store: str = "store",
    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$", max_length=60)] = "evaluation",
    mlflow_uri: str | None = None,
    begin: Literal["eos", "bos"] | None = None,
) -> Any:
    """Measure a given model on benchmarks and on held-out text; what was measured before is found.

    Args:
        model: A model of the store (the beginning of its key, or stage/key), name@alias of the registry, a directory, or a
            name on the hub.
        benchmarks: What it is measured on.
        run: The name of a run in the store: the model is measured on that run's held-out text too. Empty: it is not.
        sequence_length: Tokens that the model is given at most. Compare only scores of the same length.
        device: Where it is computed. Auto: on a GPU if there is one.
        seed: Of the questions drawn, where benchmarks has a limit.
        benchmark_files: Directory of local benchmark files, <benchmark>/<split>.jsonl[.gz]. Empty: from the hub.
        store: Directory of the artifact store.
        name: The experiment's name in MLflow.
        mlflow_uri: MLflow's address. Empty: MLFLOW_TRACKING_URI, else a local database.
        begin: Token before a document and a question, as packing.begin. Empty: as in the run; without one, eos.
    """
    wanted = _evaluation(
        model=model,
        benchmarks=benchmarks,
        run=run,
        sequence_length=sequence_length,
        device=device,
        seed=seed,
        benchmark_files=benchmark_files,
        store=store,
        name=name,
        mlflow_uri=mlflow_uri,
        begin=begin,
    )
    from flows.runs.evaluate import execute as measure

    return measure(wanted, Console())


def _evaluation(mlflow_uri: str | None = None, **given: Any) -> Any:
    from flows.runs.evaluate import Evaluation

    raw = {**given, "tracking": {"mlflow_uri": mlflow_uri}}
    return parse_section(Evaluation, raw, "the parameters")
