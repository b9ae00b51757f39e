"""A page's blocks as one self-contained HTML file: style and figures are inside.

Figures are embedded as SVG, so that points show their numbers under the pointer. All text is escaped.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from tasks.pages.blocks import Block, Cell, Heading, Picture, Quote, Row, Slot, Table, Text
from tasks.pages.style import CSS


def html_of(blocks: Sequence[Block], directory: Path) -> str:
    """The page as one HTML file; `directory` holds `figures/`."""
    title = next((block.text for block in blocks if isinstance(block, Heading)), "Onward")
    body = "\n".join(html_block(block, directory) for block in blocks)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def html_block(block: Block, directory: Path) -> str:
    """One block; figures are read from `directory`/figures."""
    if isinstance(block, Heading):
        return f"<h{block.level}>{html.escape(block.text)}</h{block.level}>"
    if isinstance(block, Text):
        kind = f' class="{block.role}"' if block.role else ""
        return f"<p{kind}>{html.escape(block.text)}</p>"
    if isinstance(block, Picture):
        return _picture(block, directory)
    if isinstance(block, Quote):
        label, text = html.escape(block.label), html.escape(block.text)
        return f'<div class="quote"><p>{label}</p><pre>{text}</pre></div>'
    if isinstance(block, Slot):
        return block.mark
    return _table(block)


def _picture(picture: Picture, directory: Path) -> str:
    drawn = (directory / "figures" / f"{picture.name}.svg").read_text(encoding="utf-8")
    drawn = drawn[drawn.index("<svg") :].rstrip()
    caption = html.escape(picture.caption)
    label = f'<svg role="img" aria-label="{caption}"'
    return f"<figure>{drawn.replace('<svg', label, 1)}<figcaption>{caption}</figcaption></figure>"


def _table(table: Table) -> str:
    titles = [html.escape(text).replace(" · ", "&nbsp;·&nbsp;") for text in table.head]
    head = "".join(
        f'<th class="l">{text}</th>' if table.is_text(place) else f"<th>{text}</th>"
        for place, text in enumerate(titles)
    )
    lines = "\n".join(_row(table, row) for row in table.rows)
    return (
        f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}\n</tbody></table></div>'
    )


def _row(table: Table, row: Row) -> str:
    cells = [Cell(cell) if isinstance(cell, str) else cell for cell in row]
    if len(cells) == 1:
        return f'<tr class="part"><td colspan="{len(table.head)}">{html.escape(cells[0].text)}</td></tr>'
    shown = []
    for place, cell in enumerate(cells):
        kinds = [cell.tone] if cell.tone else []
        kinds += ["l"] if place < table.labels else ["note"] if table.is_text(place) else []
        kind = f' class="{" ".join(kinds)}"' if kinds else ""
        below = f"<small>{html.escape(cell.below)}</small>" if cell.below else ""
        shown.append(f"<td{kind}>{html.escape(cell.text)}{below}</td>")
    return f"<tr>{''.join(shown)}</tr>"
