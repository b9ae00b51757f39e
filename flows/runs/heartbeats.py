"""Prefect's heartbeats of a flow run, without a wait for their thread at its end.

The thread sleeps for whole seconds and then sees that the run is over. Prefect's engine waits for it, half a second in the
mean.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import prefect.flow_engine


def do_not_wait() -> None:
    """Let flow runs of this process end while the thread of their heartbeats still sleeps. It tells nothing after that."""
    engine: Any = prefect.flow_engine
    if not isinstance(engine._send_heartbeats, partial):
        engine._send_heartbeats = partial(engine._send_heartbeats, join_on_exit=False)
