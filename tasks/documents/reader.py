"""Read files in a process of their own: what crashes it, hangs it or takes its memory costs one entry, and nothing else.

A process reads many files. It is ended after `Limits.silence_seconds` without a sign of life, and has `Limits.memory_bytes`
of address space. What it was at is set aside, and a new process goes on behind it, in the same archive.
"""

from __future__ import annotations

import contextlib
import os
import queue
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from tasks.documents.document import ANY, Columns, Document, Lost, Page, written
from tasks.documents.limits import Limits
from tasks.documents.worker import put

_WAITING = 16
Answers = queue.Queue[Document | Lost | Exception | None]
ROOT = Path(__file__).resolve().parents[2]


class Reader:
    """A process that reads files, one at a time. It is started when it is needed, and ended with the context."""

    def __init__(self, limits: Limits | None = None, tries: int = 1, columns: Columns = ANY) -> None:
        """`tries`: how often an entry that hangs or ends the process is read before it is set aside."""
        self.limits = limits or Limits()
        self._tries, self._columns = tries, columns
        self._process: subprocess.Popen[bytes] | None = None
        self._waiting = bytearray()
        self._stopped = False

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """Of the process that reads now, if there is one."""
        return self._process.pid if self._process is not None else None

    def stop(self) -> None:
        """End what is read, from another thread, which sees its answers end. Of a stream closed under it, it would not."""
        self._stopped = True
        if (process := self._process) is not None:
            process.kill()

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(OSError):
                    if stream is not None:
                        stream.close()
            self._process = None
        self._waiting.clear()

    def read(self, path: Path, place: str | None = None) -> Iterator[Document | Lost]:
        """Documents of a file, and what is lost of it, in the order of its bytes. `place` is how the file is called."""
        called = written(place if place is not None else str(path))
        skip, broken, tried = 0, "", Counter[int]()
        again = 0  # answers of the entry after `skip` that were given by an earlier try
        while True:
            at, given = (skip, called), 0
            try:
                for answer in self._asked(path, called, skip):
                    if "at" in answer:
                        entry = (int(answer["at"][0]), str(answer["at"][1]))
                        at, given = entry, given if entry[0] == at[0] else 0
                        continue
                    given += 1
                    if at[0] == skip + 1 and given <= again:
                        continue
                    if "document" in answer:
                        yield _document(answer["document"])
                    elif "lost" in answer:
                        yield Lost(**answer["lost"])
                    elif "unopened" in answer:
                        yield Lost(
                            called, "other", "unreadable", f"the file cannot be read ({answer['unopened']})"
                        )
                return
            except TimeoutError:
                reason, message = (
                    "timed_out",
                    f"nothing came of it for {self.limits.silence_seconds:g} seconds",
                )
            except EOFError:
                code = self._process.wait() if self._process is not None else 0
                how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
                reason, message = "crashed", f"the process that read it ended {how}"
            except GeneratorExit:
                self.close()  # the rest of the answers would be taken for those of the next file
                raise
            self.close()
            if self._stopped:
                return
            tried[at[0]] += 1
            if tried[at[0]] < self._tries:
                if at[0] > skip:
                    again = max(given, again) if at[0] == skip + 1 else given
                    skip = at[0] - 1
                continue
            if at[1] != broken:
                yield Lost(at[1], "other", reason, message)
            if at[0] <= skip:
                return
            broken = at[1]
            skip, again = at[0], 0

    def _asked(self, path: Path, place: str, skip: int) -> Iterator[dict[str, Any]]:
        """Answers to a request. Raises TimeoutError after silence, EOFError where the process has ended."""
        process = self._started()
        assert process.stdin is not None and process.stdout is not None
        request = {
            "path": os.fsencode(path).hex(),
            "place": place,
            "skip": skip,
            "limits": asdict(self.limits),
        }
        request["columns"] = asdict(self._columns)
        try:
            put(_writer(process), request)
        except BrokenPipeError as error:
            raise EOFError from error
        while True:
            answer = self._next(process)
            yield answer
            if "end" in answer or "unopened" in answer:
                return

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tasks.documents.worker", str(self.limits.memory_bytes)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=ROOT,
                env={
                    **os.environ,
                    "OMP_NUM_THREADS": "1",
                    "RAYON_NUM_THREADS": "1",
                    "POLARS_MAX_THREADS": "1",
                },
            )
            if self._stopped:  # meanwhile: who stopped has seen no process
                self._process.kill()
        return self._process

    def _next(self, process: subprocess.Popen[bytes]) -> dict[str, Any]:
        import orjson

        assert process.stdout is not None
        deadline = time.monotonic() + self.limits.silence_seconds
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while True:
                if len(self._waiting) >= 4:
                    size = 4 + int.from_bytes(self._waiting[:4], "little")
                    if len(self._waiting) >= size:
                        found: dict[str, Any] = orjson.loads(bytes(self._waiting[4:size]))
                        del self._waiting[:size]
                        return found
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError
                data = os.read(process.stdout.fileno(), 1 << 20)
                if not data:
                    raise EOFError
                self._waiting += data


def _writer(process: subprocess.Popen[bytes]) -> BinaryIO:
    assert process.stdin is not None
    return process.stdin  # type: ignore[return-value]


def _document(answer: dict[str, Any]) -> Document:
    pages = tuple(Page(**page) for page in answer.pop("pages"))
    return Document(**answer, pages=pages)


def read_files(
    paths: Iterable[tuple[Path, str]], processes: int, limits: Limits | None = None
) -> Iterator[tuple[str, Document | Lost | None]]:
    """What is in each of many files, `(path, place)` each, in their order, by so many processes at a time.

    Yields the place of the file with each of its answers, and with None after the last. Few answers of each file wait,
    so that memory does not grow with a dump.
    """
    readers = [Reader(limits) for _ in range(max(1, processes))]
    free = list(readers)
    stopped = threading.Event()

    def give(answers: Answers, answer: Document | Lost | Exception | None) -> bool:
        while not stopped.is_set():
            try:
                answers.put(answer, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def one(path: Path, place: str, answers: Answers) -> None:
        reader = free.pop()
        try:
            for answer in reader.read(path, place):
                if not give(answers, answer):
                    return
        except Exception as error:  # raised again by who waits for the answers
            give(answers, error)
        finally:
            free.append(reader)
            give(answers, None)

    def finished(place: str, answers: Answers) -> Iterator[tuple[str, Document | Lost | None]]:
        while (answer := answers.get()) is not None:
            if isinstance(answer, Exception):
                raise answer
            yield place, answer
        yield place, None

    pool = ThreadPoolExecutor(len(readers))
    begun: list[tuple[str, Answers]] = []
    try:
        for path, place in paths:
            answers: Answers = queue.Queue(_WAITING)
            begun.append((place, answers))
            pool.submit(one, path, place, answers)
            if len(begun) >= 4 * len(readers):
                yield from finished(*begun.pop(0))
        for place, answers in begun:
            yield from finished(place, answers)
    finally:
        stopped.set()
        for reader in readers:
            reader.stop()
        pool.shutdown(cancel_futures=True)
        for reader in readers:
            reader.close()
