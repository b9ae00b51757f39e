"""How a page becomes the first of a flow run's list in Prefect. Standard library only."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

FIRST_SECONDS = 5.0
"""For making a page the first of its list: some twenty tries in a second, of which a tenth succeeds."""
ENDING = "how-to-go-on"
"""Key of the page of a run that ended early."""


def created_first(
    create: Callable[[], str], delete: Callable[[str], object], others: Iterable[str], seconds: float
) -> str:
    """The id of an artifact that is the first among `others`, or that was made when `seconds` had passed.

    Prefect lists artifacts by their ids, which are random: it is created until its id is the greatest.
    """
    until, greatest = time.monotonic() + seconds, max(others, default="")
    own = create()
    while own < greatest and time.monotonic() < until:
        own, smaller = sorted((own, create()), reverse=True)
        delete(smaller)
    return own
