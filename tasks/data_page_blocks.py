"""What a page is made of, written once as Markdown and once as HTML that needs nothing beside it.

Text from documents stands in blocks that neither format reads: escaped in HTML, in Markdown between fences longer than
any in it.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Heading:
    """A heading of level 1, 2 or 3."""

    level: int
    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph; `role` is findings, note or warning."""

    text: str
    role: str = ""


@dataclass(frozen=True)
class Table:
    """A table: the columns whose places are in `words` hold words, the others numbers. A row of one cell is a heading."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Picture:
    """A figure of `figures/`, by name."""

    name: str
    caption: str


@dataclass(frozen=True)
class Quote:
    """Text of a document, with a line that says which."""

    label: str
    text: str


Block = Heading | Text | Table | Picture | Quote


def markdown_of(blocks: Sequence[Block]) -> str:
    """The page as Markdown, with figures by their place beside it."""
    return "\n\n".join(_markdown(block) for block in blocks) + "\n"


def _markdown(block: Block) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {_plain(block.text)}"
    if isinstance(block, Text):
        text = _plain(block.text)
        return f"**{text}**" if block.role in ("findings", "warning") else text
    if isinstance(block, Picture):
        return f"![{block.caption}](figures/{block.name}.svg)\n\n{block.caption}"
    if isinstance(block, Quote):
        return f"{_plain(block.label)}\n\n{fenced(block.text)}"
    lines = ["| " + " | ".join(map(_cell, block.head)) + " |"]
    lines.append(
        "| "
        + " | ".join("---" if place in block.words else "---:" for place in range(len(block.head)))
        + " |"
    )
    for row in block.rows:
        cells = (
            [f"**{_cell(row[0])}**"] + [""] * (len(block.head) - 1)
            if len(row) == 1
            else [_cell(cell) for cell in row]
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def fenced(text: str) -> str:
    """Text as a block of Markdown in which nothing is read as Markdown."""
    longest = max([len(run) for run in re.findall(r"`+", text)] + [2])
    fence = "`" * (longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def _plain(text: str) -> str:
    """Words of the page that may hold a name from outside: in one line, and read as they stand."""
    return re.sub(r"([\\`*_\[\]<>#])", r"\\\1", " ".join(text.split()))


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|")


_CSS = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; color: #1f2937; background: #fff;
  max-width: 62rem; margin: 2.5rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.7rem; margin: 0 0 .8rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: .95rem; margin: 1.3rem 0 .3rem; }
p.findings { font-size: 1.05rem; border-left: 4px solid #1f5a99; background: #f3f6fa; padding: .7rem 1rem; margin: 0; }
p.note { color: #6b7280; font-size: .84rem; margin: .5rem 0 0; }
p.warning { color: #7c2d12; border-left: 4px solid #c2571a; background: #fdf4ee; padding: .5rem 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .9rem .28rem 0; text-align: right; vertical-align: top; white-space: nowrap; }
th { font-weight: 600; color: #4b5563; border-bottom: 1.5px solid #9ca3af; } td { border-bottom: 1px solid #eef0f3; }
.l { text-align: left; } tr.part td { font-weight: 600; padding-top: .7rem; text-align: left; }
figure { margin: 1rem 0 1.6rem; } figure img { width: 100%; max-width: 58rem; height: auto; display: block; }
figcaption { color: #6b7280; font-size: .84rem; margin-top: .3rem; }
.quote { margin: .5rem 0 .8rem; }
.quote p { color: #4b5563; font-size: .82rem; margin: 0 0 .15rem; overflow-wrap: anywhere; }
pre { font: .8rem/1.45 ui-monospace, "DejaVu Sans Mono", monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; margin: 0; background: #f7f8fa;
  border: 1px solid #e5e7eb; border-radius: 4px; padding: .45rem .7rem; }
@media print { body { margin: 0; max-width: none; font-size: 10.5pt; } figure, tr, .quote { break-inside: avoid; } }
"""


def html_of(blocks: Sequence[Block], directory: Path) -> str:
    """The page as one HTML file; `directory` holds `figures/`."""
    title = next((block.text for block in blocks if isinstance(block, Heading)), "Data")
    body = "\n".join(_html(block, directory) for block in blocks)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _html(block: Block, directory: Path) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{html.escape(block.text)}</h{block.level}>"
    if isinstance(block, Text):
        return f'<p class="{block.role}">{html.escape(block.text)}</p>'
    if isinstance(block, Picture):
        drawn = base64.b64encode((directory / "figures" / f"{block.name}.svg").read_bytes()).decode()
        caption = html.escape(block.caption)
        image = f'<img alt="{caption}" src="data:image/svg+xml;base64,{drawn}">'
        return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"
    if isinstance(block, Quote):
        return (
            f'<div class="quote"><p>{html.escape(block.label)}</p><pre>{html.escape(block.text)}</pre></div>'
        )
    kind = [' class="l"' if place in block.words else "" for place in range(len(block.head))]
    head = "".join(f"<th{k}>{html.escape(text)}</th>" for k, text in zip(kind, block.head, strict=True))
    rows = [
        f'<tr class="part"><td colspan="{len(block.head)}">{html.escape(row[0])}</td></tr>'
        if len(row) == 1
        else f"<tr>{''.join(f'<td{k}>{html.escape(cell)}</td>' for k, cell in zip(kind, row, strict=True))}</tr>"
        for row in block.rows
    ]
    lines = "\n".join(rows)
    return (
        f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}\n</tbody></table></div>'
    )
