"""A run without Prefect: the DAG, made by the store alone. Prints a line when a stage is found, made, or done.

Usage: python driver.py CONFIG [UNTIL]
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from flows.config import load_config
from flows.dag.call import Build, Call
from flows.dag.healing import handed_out, healed
from flows.dag.pretrain import adapt
from flows.dag.requests import Requests
from storage.artifact import Artifact
from storage.errors import DamagedArtifact
from storage.runs import shared_lock
from storage.store import Ensured, Making, Request, Store
from storage.workers import Workers


def main() -> None:
    run, until = load_config(Path(sys.argv[1])), sys.argv[2] if len(sys.argv) > 2 else "report"
    store = Store(run.store_path)
    with Workers(run.corpus.execution.count, run.corpus.execution.executor) as workers, shared_lock(store):
        build = builder(store, workers, lambda *words: print(*words, flush=True))
        adapt(Requests(run, store, warn=lambda message: None), build, until=until)
    print("done", flush=True)


def builder(store: Store, workers: Workers, say: Callable[..., None]) -> Build:
    """Finds, makes and heals as a run does."""
    calls: list[Call] = []

    def ask(call: Call) -> Ensured:
        request = call.request
        fully = handed_out(request)
        try:
            known = store.look(request.stage, request.key, fully=fully) is not None
        except DamagedArtifact:
            known = False
        say("find" if known else "make", request.stage, request.key)
        outcome = store.ensure(
            request, Making(workers=workers, warn=lambda line: say("warn", line)), fully=fully
        )
        say("end", request.stage, outcome.state)
        return outcome

    def build(request: Request, **named: object) -> Artifact:
        calls.append(Call(request, None, None, None))
        return healed(calls[-1], ask, lambda: calls, store, lambda line: say("warn", line)).artifact

    return build


if __name__ == "__main__":
    main()
