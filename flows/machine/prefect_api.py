"""Whether Prefect's API answers, and whether this process has a server of its own. Standard library only."""

from __future__ import annotations

import urllib.error
import urllib.request

OWN = "ONWARD_OWN_SERVER"
"""Environment variable, set while this process has a server of its own. No link leads there: it ends with the run."""
LOST = "lost"
"""Its value if that server cannot be started again; otherwise 1."""


def answers(address: str) -> bool:
    """Whether an API answers at this address, even if only by asking for credentials or because it has no such page."""
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except urllib.error.HTTPError as error:
        return error.code < 500
    except OSError:
        return False
