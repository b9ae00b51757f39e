"""The command line. Standard output carries only answers; progress and messages go to standard error.

The commands are in `flows/commands/`. Exit codes: 0 done; 1 failed; 2 wrong usage, a wrong configuration, or, for
`plan`, work to do. Help, completion and usage errors import nothing heavy.
"""

from __future__ import annotations

import locale
import os
import signal
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from flows.commands.common import STOPPED, Answers, Forgiving, open_streams, write_utf8
from flows.commands.documents import inspect
from flows.commands.generate import generate
from flows.commands.init import init
from flows.commands.plan import plan, why
from flows.commands.push import push
from flows.commands.rehearse import rehearse
from flows.commands.run import run
from flows.commands.services import doctor, down, status, up
from flows.commands.store import compare, explain, export, gc, lineage, verify
from flows.commands.tune import tune
from flows.machine.servers import ask_directly
from flows.machine.start import collect_rarely, leave
from storage.errors import ConfigError, DamagedArtifact, OnwardError

COMMANDS: dict[str, tuple[tuple[Callable[..., None], str], ...]] = {
    "Run": (
        (init, "onward init notes --general books"),
        (inspect, "onward inspect notes --to notes.jsonl"),
        (run, "onward run configs/demo.yaml --until filter --slices 1"),
        (plan, "onward plan configs/edu-125m.yaml --memory 24G --device-name H100"),
        (rehearse, "onward rehearse configs/edu-125m.yaml"),
        (
            tune,
            "onward tune configs/edu-125m.yaml --vary training.learning_rate=2e-4,5e-4 --vary replay=0.05,0.2",
        ),
        (why, "onward why filter configs/demo.yaml --set corpus.filter.language=en"),
    ),
    "Look into what was made": (
        (lineage, "onward lineage edu-125m@tokens-1b --format mermaid"),
        (explain, "onward explain 8070450532247928832 --store stores/demo"),
        (generate, 'onward generate 1B "The cell is" --against base'),
        (compare, "onward compare 3f9a2c 81d04e --to compared"),
    ),
    "Look after a store": (
        (verify, "onward verify --config configs/demo.yaml"),
        (gc, "onward gc --forget demo-3f9a2c --dry-run"),
        (export, "onward export 1B model"),
        (push, "onward push 1B owner/name --dry-run folder"),
    ),
    "Servers of this directory": (
        (up, "onward up configs/demo.yaml --prefect-port 4300"),
        (status, "onward status --json"),
        (doctor, "onward doctor configs/edu-125m.yaml"),
        (down, "onward down"),
    ),
}
"""Each command with an example, in the groups of the help."""

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich")
for group, commands in COMMANDS.items():
    for command, example in commands:
        app.command(rich_help_panel=group, epilog=f"Example: {example}")(command)


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        sys.stdout.write(f"onward {version('onward')}\n")
        raise typer.Exit


@app.callback()
def onward(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Continued pre-training of a small language model on your own text, as one resumable run.

    A run is one YAML file: onward run CONFIG. Killed, or given a larger budget, the same command goes on.
    """


def main() -> None:
    """Entry point. Onward's own errors give a message and an exit code, never a traceback."""
    _in_utf8()
    collect_rarely()
    open_streams()
    write_utf8()
    sys.stdout, sys.stderr = Answers(sys.stdout), Forgiving(sys.stderr)
    ask_directly(os.environ)
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # it is ignored under nohup
        signal.signal(signal.SIGHUP, lambda number, frame: signal.raise_signal(signal.SIGTERM))
    code = _main()
    try:
        sys.stdout.flush()
    except (OSError, OnwardError) as error:
        if isinstance(error, OnwardError):  # otherwise the reader has left, such as head
            sys.stderr.write(f"{error}\n")
        code = code or 1
    if code:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still buffered must not fail again at exit
    leave(code)


def _main() -> int:
    """The exit code of the command."""
    try:
        return int(app(standalone_mode=False) or 0)  # an Exit inside comes back as its code
    except typer.Exit as error:
        return int(error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        sys.stderr.write(f"{STOPPED}\n")
        return 1
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except DamagedArtifact as error:
        sys.stderr.write(f"{error}; {error.way_out}\n")
        return 1
    except OnwardError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except BrokenPipeError:  # the reader of our output has left, such as head
        return 1
    except OSError as error:  # of the machine: a right, a disk, a file that is gone
        sys.stderr.write(f"failed: {error}\n")
        return 1
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(
            error, "exit_code"
        ):  # wrong usage of the command line
            message, context = error.format_message(), getattr(error, "ctx", None)
            help_ = f"\nTry: {context.command_path} --help" if context is not None else ""
            if message:  # without any argument, the help is already printed
                sys.stderr.write(f"{message}{help_}\n")
            return 2
        raise


def _in_utf8() -> None:
    """Restart as libraries need Python: in UTF-8 mode if the locale has another encoding, and with docstrings."""
    arguments = [argument for argument in sys.orig_argv[1:] if argument != "-OO"]
    encoded = sys.flags.utf8_mode or locale.getencoding().lower() in ("utf-8", "utf8")
    if not encoded:
        os.environ["PYTHONUTF8"] = "1"  # for children
        arguments = ["-X", "utf8", *arguments]
    bare = sys.flags.optimize > 1  # transformers and mlflow build theirs from those that they find
    if bare:
        os.environ.pop("PYTHONOPTIMIZE", None)
    if not encoded or bare:
        os.execv(sys.executable, [sys.executable, *arguments])


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
