"""The frame of the commands that run flows: one line of answer, also of what failed, and an end that waits for nobody.

Standard output carries only the answer. Light to import.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import typer

from flows.commands.common import STOPPED, clean_stdout
from flows.machine.environment import command_line, prepare
from storage.errors import ConfigError, OnwardError, said


@dataclass(frozen=True)
class Outcome:
    """What a command answers as JSON, and as text where it has one; its exit code, and whether Prefect got everything."""

    answer: dict[str, Any]
    code: int = 0
    settled: bool = True
    text: str = ""


def answer(
    act: Callable[[], Outcome],
    nothing: Mapping[str, Any],
    *,
    as_json: bool,
    keeps: bool = True,
    show: Callable[[dict[str, Any]], object] = lambda answer: None,
) -> NoReturn:
    """Do what a command does, and end it. `nothing`: what the answer has in any case, if it was refused or stopped.
    `keeps`: the same command goes on where it was stopped.

    The answer is a line of JSON, also after a failure; without `as_json`, a text, and `show` tells a person of a success.
    Raises typer.Exit, and errors that are not told yet.
    """
    prepare()
    with clean_stdout() as out:
        try:
            outcome = act()
        except ConfigError as error:
            outcome = refused(error, nothing)
        except KeyboardInterrupt:
            if not keeps:
                raise
            outcome = stopped(nothing)
        except (OnwardError, OSError) as error:
            if as_json:
                _write(out, {**nothing, "state": "failed", "error": said(error)})
            raise
        if as_json:
            _write(out, outcome.answer)
        elif outcome.code == 0:
            out.write(outcome.text)
            show(outcome.answer)
    if not outcome.settled:
        sys.stderr.flush()
        os._exit(outcome.code)  # otherwise Prefect's threads wait for their server before the process may end
    raise typer.Exit(outcome.code)


def _write(out: Any, answer: Mapping[str, Any]) -> None:
    out.write(json.dumps(answer, ensure_ascii=False) + "\n")


def refused(error: ConfigError, nothing: Mapping[str, Any]) -> Outcome:
    """A configuration or an option is wrong. It is told on standard error too."""
    sys.stderr.write(f"{error}\n")
    return Outcome({**nothing, "state": "failed", "error": str(error)}, 2)


def stopped(nothing: Mapping[str, Any]) -> Outcome:
    """It was asked to stop. It is told on standard error too."""
    told = f"{STOPPED}; what was finished is found again, and to go on from there: {command_line()}"
    sys.stderr.write(f"{told}\n")
    return Outcome({**nothing, "state": "stopped", "error": told}, 1)
