"""The executors of shards: processes of this machine, or a Dask cluster (`executors.py`).

A worker process exits when the process that started it is gone.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError, Executor, Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnContext, SpawnProcess
from types import ModuleType, TracebackType
from typing import Any

from storage.errors import Interrupted, StageFailed
from storage.executors import ONE_THREAD, PROCESSES, Call, R, Ts, cluster_of


def usable_cores() -> int:
    """Number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """A pool of processes, or a Dask cluster. The pool starts at the first use, and again after a process died."""

    def __init__(self, count: int | None = None, executor: str = PROCESSES) -> None:
        """Use `count` processes, or the cluster that `executor` names. Raises ConfigError if Dask is not installed."""
        self.count = count or usable_cores()
        self._cluster = cluster_of(executor)
        self._pool: Executor | None = None
        self._guard = threading.Lock()
        self._abandoned = threading.Event()

    def run(self, calls: Iterable[Call[*Ts, R]]) -> Iterator[tuple[str, R]]:
        """Run named calls; yields (name, result) in the order in which they end. The first failure cancels the rest."""
        try:
            for named in self._run(calls):
                self._check()
                yield named
        except (StageFailed, CancelledError):
            self._check()
            raise

    def _run(self, calls: Iterable[Call[*Ts, R]]) -> Iterator[tuple[str, R]]:
        self._check()
        if self._cluster is not None:
            yield from self._cluster.run(calls)
            return
        if self.count == 1:
            for name, function, arguments in calls:
                yield name, function(*arguments)
            return
        futures: dict[Future[R], str] = {}
        try:
            pool = self._started()
            for name, function, arguments in calls:
                futures[pool.submit(function, *arguments)] = name
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            self._discard()
            raise StageFailed(
                "a worker process died (killed, or out of memory); with fewer workers (corpus.execution.workers), less "
                "memory is needed",
                passing=True,
            ) from error
        finally:
            for future in futures:
                future.cancel()

    def close(self) -> None:
        """Shut the workers down. Calls that have not begun are cancelled."""
        if self._cluster is not None:
            self._cluster.close()
        with self._guard:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)

    def abandon(self) -> None:
        """Stop the workers in mid-shard, for a run that must end in seconds. From now on, `run` raises Interrupted.

        Committed shards stay, so a later run loses at most one shard per worker.
        """
        self._abandoned.set()
        if self._cluster is not None:
            self._cluster.close()
        with self._guard:
            pool, self._pool = self._pool, None
        if isinstance(pool, ProcessPoolExecutor):
            for process in list((pool._processes or {}).values()):
                process.terminate()
            pool.shutdown(wait=False, cancel_futures=True)

    def _check(self) -> None:
        if self._abandoned.is_set():
            raise Interrupted("asked to stop; finished shards are kept")

    def _started(self) -> Executor:
        with self._guard:
            if self._pool is None:
                self._pool = _pool_of(self.count)
            return self._pool

    def _discard(self) -> None:
        with self._guard:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _pool_of(count: int) -> ProcessPoolExecutor:
    """A pool of processes. Raises StageFailed where the system gives it no semaphores, which lie in /dev/shm."""
    try:
        _start_tracker()
        return ProcessPoolExecutor(count, mp_context=_Spawn(), initializer=_begin_worker)
    except (OSError, NotImplementedError) as error:
        raise StageFailed(
            f"worker processes need semaphores, and this system gives none ({error}): make /dev/shm writable, or set "
            "corpus.execution.workers: 1"
        ) from error


def _start_tracker() -> None:
    """Start the process in which multiprocessing keeps account of semaphores, so that a closed terminal does not end it."""
    before = signal.pthread_sigmask(
        signal.SIG_BLOCK, {signal.SIGHUP}
    )  # a child starts with its parent's mask
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Worker(SpawnProcess):
    """A process that starts empty. A fork of a threaded process may deadlock, and "spawn" imports the main program again.

    In a deployed run, the main program is Prefect's engine. Importing it costs each worker a second of processor time.
    """

    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        program = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")  # names no file, so the worker has nothing to import
        try:
            return SpawnProcess._Popen(process_obj)  # type: ignore[attr-defined]
        finally:
            sys.modules["__main__"] = program


class _Spawn(SpawnContext):
    """Starts workers of this kind."""

    Process = _Worker


def _begin_worker() -> None:
    """Set up a new worker: one thread for each library (each core has a worker), and an exit when the parent is gone.

    Ctrl-C and a closed terminal reach the whole process group. What follows is the parent's to decide.
    """
    os.environ.update(ONE_THREAD)
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="leave-with-parent", daemon=True).start()
