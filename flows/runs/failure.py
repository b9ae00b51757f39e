"""The error with which a run ends early. Its text is complete: the account of `flows.runs.ending`."""

from __future__ import annotations

from flows.runs.attempt import Summary
from flows.runs.ending import Ending
from storage.errors import ConfigError, OnwardError


class RunFailed(OnwardError):
    """A run that could not finish. The text is complete. `summary` is the attempt's result, if it had begun."""

    summary: Summary | None = None
    ending: Ending | None = None


class RunRefused(RunFailed, ConfigError):
    """A run that was refused because its configuration cannot be run. The text is complete."""


def run_failed(error: Exception, ending: Ending) -> RunFailed:
    """The error with which a run ends."""
    found = (RunRefused if isinstance(error, ConfigError) else RunFailed)(ending.message)
    found.ending = ending
    return found
