"""The flows that deployments start, and the command line too: what the form in the Prefect UI shows is these signatures.

Nothing is done here: a flow turns its parameters into what `flows.run` takes. A value that a type does not
allow is refused before the flow starts, by the server where the schema can say it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from prefect import flow
from pydantic import Field

from flows.config import RunConfig, parse_config
from flows.run import Options, execute, run_name
from flows.story import Story

Stage = Literal[
    "ingest",
    "dedup",
    "filter",
    "decontaminate",
    "tokenizer",
    "base",
    "tokenize",
    "pack",
    "train",
    "decay",
    "questions",
    "perplexity",
    "evaluate",
    "report",
]
Until = Literal[
    "ingest", "dedup", "filter", "decontaminate", "tokenize", "pack", "train", "decay", "evaluate", "report"
]


def _flow_run_name() -> str:
    from prefect.runtime import flow_run

    parameters = flow_run.parameters or {}
    config = parameters.get("config")
    return run_name(config if isinstance(config, RunConfig) else parse_config(config or {}))


@flow(name="pretrain", flow_run_name=_flow_run_name, persist_result=False, log_prints=False)
def pretrain(
    config: RunConfig,
    force: tuple[Stage, ...] = (),
    until: Until = "report",
    slices: Annotated[int, Field(ge=1)] | None = None,
) -> dict[str, Any]:
    """Adapt a small language model to a domain: read, clean and pack text, train for each token budget, and measure.

    Args:
        config: the whole run, as in its YAML file.
        force: stages that are made again and compared with what is there.
        until: the last stage.
        slices: with a corpus stage as the last one, the number of slices.
    """
    return execute(config, Options(tuple(force), until, slices), Story())
