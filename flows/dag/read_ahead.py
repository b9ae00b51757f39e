"""Reads on for the next round while this one trains: one thread, the same tasks of the same flow.

The flow checks a stop event before each task. A failure in the thread surfaces when the block ends, after the results
of the block are kept. If the block is asked to stop, the stage that runs in the thread is ended too.
"""

from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from storage.errors import Interrupted


@contextlib.contextmanager
def reading_ahead(
    read: Callable[[], Any] | None, stop: threading.Event, halt: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Run `read` in a thread beside the block; do nothing if `read` is None.

    If the block fails, `stop` is set, which ends `read` after its current stage. If it was not an Exception (a request to
    stop), `halt` ends that stage too.
    """
    if read is None:
        yield
        return
    context = contextvars.copy_context()
    pool = ThreadPoolExecutor(1, thread_name_prefix="reading-ahead")
    future: Future[Any] = pool.submit(context.run, read)
    try:
        yield
    except BaseException as error:
        stop.set()
        if not isinstance(error, Exception):
            halt()
        with contextlib.suppress(Interrupted, Exception):
            future.result()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    future.result()
