"""A run's pages as MLflow shows them: which run it is above the report, which is the same for every run that made it."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tasks.pages.blocks import Table
from tasks.pages.html import html_block
from tasks.pages.markdown import markdown_of

_PICTURE = re.compile(r"!\[[^\]\n]*\]\([^)\n]+\)")


@contextmanager
def with_head(page: Path, name: str, rows: Mapping[str, str]) -> Iterator[Path]:
    """A copy of a page (`.html` or `.md`) with the run's name and a table of `rows` below its title, for the block.

    In Markdown, whose pictures are not published beside it, their captions say where they are.
    """
    table = Table(("this run", name), tuple(rows.items()), notes=1)
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".html":
        before, title, after = text.partition("</h1>")
        text = f"{before}{title}\n{html_block(table, page.parent)}{after}" if title else text
    else:
        title, _, after = text.partition("\n")
        text = (
            f"{title}\n\n{markdown_of([table])}\n{_PICTURE.sub('*Figure, in report.html:*', after).lstrip()}"
        )
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / page.name
        copy.write_text(text, encoding="utf-8")
        yield copy
