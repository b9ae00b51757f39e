"""Shards on a Dask cluster: other machines run the calls of `workers.py` over a store that all of them can access.

Invariant: a worker computes what this process would compute. Each worker must have the same sources of `tasks/` and
`storage/`, the same Python and the same libraries; a worker that differs is refused by name before it runs anything.
A shard may run twice at once (after a worker was wrongly believed dead), and a task may outlive its run; `draft.py`
says why neither does harm. Dask sends everything pickled, calls included, so a cluster needs a trusted network.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import pickle
import platform
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from importlib import metadata
from typing import Any, TypeVar, TypeVarTuple

from storage.code import project_digest
from storage.errors import ConfigError, StageFailed

Ts = TypeVarTuple("Ts")
R = TypeVar("R")
Call = tuple[str, Callable[[*Ts], R], tuple[*Ts]]
"""A shard's name, the module-level function that makes it, and that function's arguments."""

PROCESSES = "processes"
EXECUTOR = r"processes|dask(\+tls)?://(\[[0-9a-fA-F:.]+\]|[^\s/:\[\]]+):[0-9]{1,5}"
"""The values that `corpus.execution.executor` may have."""

CONNECT_SECONDS = 20.0
PATIENCE_SECONDS = 60.0
"""How long a run waits while the cluster has no worker at all."""
ONE_THREAD = {
    "POLARS_MAX_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Environment of a worker. Each core has one worker, or one thread of a worker."""

_POLL_SECONDS = 1.0
_LIBRARIES = ("numpy", "pyarrow", "polars", "tokenizers", "rensa", "orjson", "zstandard")


def check_executor(value: str) -> str:
    """Returns `value` if it names an executor. Raises ValueError otherwise."""
    if not re.fullmatch(EXECUTOR, value):
        raise ValueError("must be processes, or a Dask scheduler as dask://host:port (dask+tls://host:port)")
    return value


class Cluster:
    """A Dask cluster. The connection is made at the first call. Several threads may use it."""

    def __init__(
        self,
        executor: str,
        *,
        connect_seconds: float = CONNECT_SECONDS,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        """Raises ConfigError if `distributed` is not installed."""
        if importlib.util.find_spec("distributed") is None:
            raise ConfigError(
                f"corpus.execution.executor is {executor}, but Dask is not installed here: "
                "pip install 'onward[dask]'"
            )
        self.address = executor.replace("dask+tls://", "tls://").replace("dask://", "tcp://")
        self._connect_seconds = connect_seconds
        self._patience_seconds = patience_seconds
        self._expected = description()
        self._client: Any = None
        self._guard = threading.Lock()

    def run(self, calls: Iterable[Call[*Ts, R]]) -> Iterator[tuple[str, R]]:
        """Run named calls; yields (name, result) in the order in which they end. The first failure cancels the rest.

        Raises StageFailed if the scheduler or all workers are gone, and ConfigError if a worker differs.
        """
        waiting = list(calls)
        if not waiting:
            return
        client = self._connected()
        executor = client.get_executor(pure=False)
        futures: dict[Future[Any], str] = {}
        pending: set[Future[Any]] = set()
        try:
            for name, function, arguments in waiting:
                call = pickle.dumps((function, arguments))
                futures[executor.submit(run_there, self._expected, call)] = name
            pending = set(futures)
            alone_since = None
            while pending:
                done, pending = wait(pending, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
                for future in done:
                    yield futures[future], self._result(future, futures[future])
                if done or self._has_workers(client):
                    alone_since = None
                    continue
                alone_since = alone_since or time.monotonic()
                if time.monotonic() - alone_since > self._patience_seconds:
                    raise self._nobody_works()
        finally:
            for future in pending:
                future.cancel()

    def close(self) -> None:
        """Disconnect from the cluster. Calls that have not begun there are cancelled."""
        with self._guard:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _connected(self) -> Any:
        with self._guard:
            if self._client is None:
                self._client = self._connect()
            return self._client

    def _connect(self) -> Any:
        import distributed

        open_client: Any = distributed.Client
        security: Any = distributed.Security
        if self.address.startswith("tls:") and not security().get_connection_args("client").get(
            "ssl_context"
        ):
            raise ConfigError(
                "corpus.execution.executor is dask+tls://…, but Dask has no certificate here: set "
                "distributed.comm.tls.ca-file, .client.cert and .client.key in Dask's own configuration"
            )
        try:
            client: Any = open_client(
                self.address, timeout=self._connect_seconds, set_as_default=False, name="onward"
            )
        except (OSError, TimeoutError, ValueError) as error:
            raise StageFailed(
                f"the Dask scheduler {self.address} did not answer within {self._connect_seconds:g} s ({error}). "
                "Start it, or set corpus.execution.executor: processes",
                passing=True,
            ) from error
        try:
            _refuse_others(client.run(description, on_error="return"), self._expected)
            client.run(_one_thread_each, on_error="ignore")
        except BaseException:
            client.close()
            raise
        return client

    def _result(self, future: Future[Any], name: str) -> Any:
        from distributed.scheduler import KilledWorker

        try:
            return future.result()
        except KilledWorker as error:
            raise StageFailed(
                f"shard {name}: {error.allowed_failures + 1} workers of the Dask cluster died one after another while "
                "they had it (killed, or out of memory); with more memory for each worker "
                "they may live",
                passing=True,
            ) from error
        except CancelledError as error:
            self.close()
            raise StageFailed(
                f"the connection to the Dask scheduler {self.address} was lost",
                passing=True,
            ) from error

    def _has_workers(self, client: Any) -> bool:
        try:
            return bool(client.nthreads(callback_timeout=self._connect_seconds))
        except (OSError, TimeoutError, RuntimeError):
            return False

    def _nobody_works(self) -> StageFailed:
        return StageFailed(
            f"the Dask cluster at {self.address} has had no worker for {self._patience_seconds:g} s. Start workers "
            "(dask worker ADDRESS), or set corpus.execution.executor: processes",
            passing=True,
        )


# ── In a worker of the cluster ───────────────────────────────────────────────────────────────────────────────────────


def run_there(expected: dict[str, str], call: bytes) -> Any:
    """Run a pickled (function, arguments) in a worker, if the worker would compute what the run's own process computes.

    Unpickling imports the stage's code, so the comparison comes first.
    """
    from distributed import get_worker

    _one_thread_each()
    worker = get_worker()
    _refuse_others({worker.address: description()}, expected)
    function, arguments = pickle.loads(call)
    return function(*arguments)


@functools.cache
def description() -> dict[str, str]:
    """The facts that must be the same everywhere, as this process found them at the first call.

    Caching them exposes a worker that still runs old code after the files on disk changed.
    """
    found = {"code": project_digest(), "Python": platform.python_version(), "machine": platform.machine()}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _one_thread_each() -> None:
    os.environ.update(ONE_THREAD)


def _refuse_others(workers: dict[str, Any], expected: dict[str, str]) -> None:
    """Raises ConfigError with the name of the first worker that could not be asked or that differs from this process."""
    for address, found in workers.items():
        if isinstance(found, BaseException):
            raise ConfigError(
                f"the Dask worker {address} cannot run this project ({type(found).__name__}: {found}). Install the "
                "same version of it there, with the same packages, and start the worker again"
            )
        odd = [name for name in expected if found.get(name) != expected[name]]
        if odd:
            shown = ", ".join(_difference(name, found.get(name), expected[name]) for name in odd)
            raise ConfigError(
                f"the Dask worker {address} would not compute the same: {shown}. Install the same there, and start "
                "the worker again"
            )


def _difference(name: str, there: str | None, here: str) -> str:
    if name == "code":
        return "the sources of tasks/ and storage/ differ, or were changed after it started"
    return f"{name} is {there}, here {here}"


def cluster_of(executor: str) -> Cluster | None:
    """The cluster that an executor names; None for processes of this machine. Raises ConfigError."""
    return None if executor == PROCESSES else Cluster(executor)
