"""What a run was promised beside what it took: the quote of its rehearsal, else the first one that was made of it.

The first quote is kept as `<store>/.rehearsed/<record>.quote`; `<record>` names the run's record.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from flows.quote.happened import Beside, beside
from flows.quote.quote import Quote
from flows.quote.rates import Made
from flows.quote.rehearsed import DIRECTORY
from flows.quote.table import hours_text
from storage.artifact import Artifact
from storage.atomic import write_bytes


def keep_first(store: Path, record: str, quote: Quote) -> None:
    """Keep a quote of the run, unless there is one of it. A store that cannot be written keeps none."""
    path = store / DIRECTORY / f"{record}.quote"
    if path.exists() or not quote.to_do:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, json.dumps(quote.to_json(), ensure_ascii=False).encode())
    except OSError:
        return


def promised(store: Path, record: str) -> dict[str, Any] | None:
    """The quote of the run, as JSON; None if none was kept."""
    for name, inside in ((f"{record}.json", "quote"), (f"{record}.quote", None)):
        try:
            found: Any = json.loads((store / DIRECTORY / name).read_bytes())
            quote = found[inside] if inside else found
            if isinstance(quote, dict) and quote.get("lines"):
                return quote
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def kept_beside(store: Path, record: str, artifacts: Iterable[Artifact]) -> list[Beside]:
    """What was promised for each stage of a run, beside what its artifacts took; empty without a promise."""
    quote = promised(store, record)
    if quote is None:
        return []
    return beside(quote, [Made(one.stage, None, None, None, one) for one in artifacts])


def beside_text(rows: Sequence[Beside]) -> str:
    """The same as a table in Markdown."""
    if not rows:
        return ""
    lines = ["| stage | promised | took | off |", "| --- | ---: | ---: | ---: |"]
    lines += [
        f"| {one.stage} | {hours_text(one.quoted)} | {hours_text(one.took)} | {100 * one.off:+.0f} % |"
        for one in rows
    ]
    return "\n".join(lines)
