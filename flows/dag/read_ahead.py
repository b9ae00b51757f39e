"""Reading on for the next round while this one trains: one thread, the same tasks of the same flow.

A stop event, made inside the flow, is looked at before each task. A failure in the thread surfaces when the block ends,
after what ran beside it is kept. Where the block is asked to stop, the stage under way in the thread is ended, too.
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
    """Run `read` beside the block; nothing where it is None.

    `stop` ends it after its stage when the block fails; `halt` ends that stage where what came is no Exception.
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
