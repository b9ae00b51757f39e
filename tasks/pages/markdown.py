"""A page's blocks as Markdown. All text is escaped, so that none of it is read as Markdown or HTML."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tasks.pages.blocks import Block, Cell, Heading, Picture, Quote, Slot, Table, Text

_READ_AS_MARKDOWN = re.compile(
    r"[\\`*~]"  # escapes, code, emphasis
    r"|(?<![^\W_])_|_(?![^\W_])"  # emphasis, but not between two letters or digits, as in acc_norm
    r"|\](?=[(\[:])"  # links, but not the end of an interval
    r"|<(?=[A-Za-z/!?])"  # tags, but not 'p < 0.001'
    r"|&(?=#?\w+;)"  # entities
)


def markdown_of(blocks: Sequence[Block], figures: str = "figures") -> str:
    """The page as Markdown; figures are linked below `figures`."""
    return "\n\n".join(_block(block, figures) for block in blocks) + "\n"


def _block(block: Block, figures: str) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {plain(block.text)}"
    if isinstance(block, Text):
        text = plain(block.text)
        return f"**{text}**" if block.role in ("findings", "warning") else text
    if isinstance(block, Picture):
        caption = plain(block.caption)
        return f"![{caption}]({figures}/{block.name}.svg)\n\n{caption}"
    if isinstance(block, Quote):
        return f"{plain(block.label)}\n\n{fenced(block.text)}"
    if isinstance(block, Slot):
        return block.mark
    return _table(block)


def _table(table: Table) -> str:
    lines = ["| " + " | ".join(map(_cell, table.head)) + " |"]
    rules = ("---" if table.is_text(place) else "---:" for place in range(len(table.head)))
    lines.append("| " + " | ".join(rules) + " |")
    for row in table.rows:
        cells = [_cell(cell) for cell in row]
        if len(row) == 1:
            cells = [f"**{cells[0]}**"] + [""] * (len(table.head) - 1)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(cell: Cell | str) -> str:
    if isinstance(cell, str):
        cell = Cell(cell)
    lines = (cell.text, cell.below) if cell.below else (cell.text,)
    return "<br>".join(plain(line).replace("|", "\\|") for line in lines)


def plain(text: str) -> str:
    """Words on one line, escaped for Markdown."""
    return _READ_AS_MARKDOWN.sub(r"\\\g<0>", re.sub(r"[^\S\xa0]+", " ", text).strip(" "))


def fenced(text: str) -> str:
    """Text as a fenced Markdown block. The fence is longer than any inside the text."""
    longest = max([len(run) for run in re.findall(r"`+", text)] + [2])
    fence = "`" * (longest + 1)
    return f"{fence}text\n{text}\n{fence}"
