"""`inspect`: what a folder of documents holds."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from storage.errors import ConfigError


def inspect(
    path: Annotated[
        Path, typer.Argument(help="folder or file: PDF, HTML, e-books, office files, archives and more")
    ],
    to: Annotated[
        Path | None,
        typer.Option(help="also write the documents to this new file, as JSON lines that a run reads"),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="print one line of JSON")] = False,
) -> None:
    """Show what a folder of documents holds: kinds, pages, languages, what would be lost and why, three samples.

    Every file is told by what is in it, and read in a process of its own. Nothing is changed.
    """
    from tasks.documents.packages import missing

    if absent := missing():
        raise ConfigError(f"reading documents needs {', '.join(absent)}: pip install 'onward[documents]'")
    if not path.exists():
        raise ConfigError(f"{path} is not there; name a folder or a file")
    if to is not None and to.exists():
        raise ConfigError(f"{to} is there already; remove it, or name another file with --to")

    from flows.inspect.documents import inspect as inspected
    from flows.inspect.documents import shown
    from storage.workers import usable_cores
    from tasks.documents.document import Document

    told = sys.stderr.isatty()
    out: IO[str] | None = None

    def seen(files: int, place: str) -> None:
        if told:
            sys.stderr.write(f"\r\x1b[K{files:,} files  {place[-60:]}")
            sys.stderr.flush()

    def give(document: Document) -> None:
        if out is not None:
            out.write(json.dumps(row(document), ensure_ascii=False) + "\n")

    try:
        if to is not None:
            out = to.open("x", encoding="utf-8")
        found = inspected(path, usable_cores(), seen=seen, give=give)
    except OSError as error:
        raise ConfigError(f"{error.filename or path} cannot be opened ({error.strerror})") from error
    finally:
        if told:
            sys.stderr.write("\r\x1b[K")
        if out is not None:
            out.close()
    if json_:
        sys.stdout.write(json.dumps(found.to_json(), ensure_ascii=False) + "\n")
    else:
        from rich.console import Console

        console = Console(file=sys.stdout, highlight=False)
        for part in shown(found):
            console.print(part)
    if to is not None:
        sys.stderr.write(f"wrote {found.documents:,} documents to {to}; name it in the files of a source\n")


def row(document: Any) -> dict[str, Any]:
    """A document as a row of JSON lines: `text`, where it is from, and what the file says of it."""
    ours = {"text": document.text, "place": document.place, "kind": document.kind}
    return ours | {key: value for key, value in document.meta.items() if key not in ours}
