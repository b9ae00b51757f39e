"""The command line. Standard output carries answers alone; what a run tells on the way goes to standard error.

The commands stand in `flows/commands/`. Exit codes: 0 done; 1 failed; 2 wrong usage, a wrong configuration, or, for
`plan`, work to do.
"""

from __future__ import annotations

import locale
import os
import signal
import sys
from typing import Any

import typer

from flows.commands.common import STOPPED
from flows.commands.plan import plan, why
from flows.commands.run import run
from flows.commands.services import doctor, down, status, up
from flows.commands.store import compare, explain, export, gc, lineage, verify
from storage.errors import ConfigError, OnwardError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Adapt a small language model to a domain.",
)
for command in (run, plan, why, lineage, explain, compare, verify, gc, export, up, down, status, doctor):
    app.command()(command)


def main() -> None:
    """Entry point: errors of ours are a message and an exit code, never a traceback."""
    _in_utf8()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        sys.exit(app(standalone_mode=False) or 0)  # an Exit inside comes back as its code
    except typer.Exit as error:
        sys.exit(error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        sys.stderr.write(f"{STOPPED}\n")
        sys.exit(1)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
    except OnwardError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(1)
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(
            error, "exit_code"
        ):  # a usage error of the command line
            sys.stderr.write(f"{error.format_message()}\n")
            sys.exit(2)
        raise


def _in_utf8() -> None:
    """Start again in Python's UTF-8 mode where the locale has another encoding: libraries, too, read and write text."""
    if not sys.flags.utf8_mode and locale.getencoding().lower() not in ("utf-8", "utf8"):
        os.environ["PYTHONUTF8"] = "1"  # for children
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
