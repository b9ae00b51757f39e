"""A run without Prefect: the DAG, made by the store alone. Prints a line when a stage is found, made, or done.

Usage: python driver.py CONFIG [UNTIL]
"""

from __future__ import annotations

import sys
from pathlib import Path

from flows.config import load_config
from flows.dag.pretrain import adapt
from flows.dag.requests import Requests
from storage.artifact import Artifact
from storage.runs import shared_lock
from storage.store import Making, Request, Store
from storage.workers import Workers


def main() -> None:
    run, until = load_config(Path(sys.argv[1])), sys.argv[2] if len(sys.argv) > 2 else "report"
    store = Store(run.store_path)

    with Workers(run.corpus.execution.count, run.corpus.execution.executor) as workers, shared_lock(store):

        def build(request: Request, **named: object) -> Artifact:
            known = store.lookup(request.stage, request.key) is not None
            print("find" if known else "make", request.stage, request.key, flush=True)
            outcome = store.ensure(request, Making(workers=workers))
            print("end", request.stage, outcome.state, flush=True)
            return outcome.artifact

        adapt(Requests(run, store, warn=lambda message: None), build, until=until)
    print("done", flush=True)


if __name__ == "__main__":
    main()
