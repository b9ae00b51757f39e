"""A page's blocks written once as Markdown and once as HTML.

The HTML needs nothing beside it: its style and figures are inside; figures are drawn in it, so that a point says its
numbers under the pointer. It is dark where the reader's screen is, and always light on paper. Colour never says what the
words do not.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from tasks.report_blocks import Block, Cell, Heading, Picture, Place, Table, Text


def markdown_of(blocks: Sequence[Block], figures: str = "figures") -> str:
    """The page as Markdown, with figures by their place beside it, `figures`."""
    return "\n\n".join(_markdown(block, figures) for block in blocks) + "\n"


def _markdown(block: Block, figures: str) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {block.text}"
    if isinstance(block, Text):
        return f"**{block.text}**" if block.role in ("findings", "warning") else block.text
    if isinstance(block, Picture):
        return f"![{block.caption}]({figures}/{block.name}.svg)\n\n{block.caption}"
    if isinstance(block, Place):
        return block.mark
    return _markdown_table(block)


def _markdown_table(table: Table) -> str:
    lines = ["| " + " | ".join(table.head) + " |"]
    rules = ("---" if table.is_text(place) else "---:" for place in range(len(table.head)))
    lines.append("| " + " | ".join(rules) + " |")
    for row in table.rows:
        cells = [_markdown_cell(cell) for cell in row]
        if len(row) == 1:
            cells = [f"**{cells[0]}**"] + [""] * (len(table.head) - 1)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _markdown_cell(cell: Cell) -> str:
    text = f"{cell.text}<br>{cell.below}" if cell.below else cell.text
    return text.replace("|", "\\|").replace("\n", " ")


_CSS = """
:root { color-scheme: light dark; --text: #1f2937; --soft: #6b7280; --head: #4b5563; --line: #9ca3af; --thin: #eef0f3;
  --page: #fff; --box: #f3f6fa; --edge: #1f5a99; --better: #276738; --worse: #a32a2a; --warn: #b04d14; --warnbox: #fdf4ee; }
@media screen and (prefers-color-scheme: dark) { :root { --text: #e5e7eb; --soft: #9ca3af; --head: #cbd5e1;
  --line: #6b7280; --thin: #2b323d; --page: #14181f; --box: #1d2530; --edge: #6ea8e0; --better: #7fca92; --worse: #f19999;
  --warn: #f0a878; --warnbox: #2b211b; } }
body { font: 15px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; color: var(--text);
  background: var(--page); max-width: 76rem; margin: 2.5rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.7rem; margin: 0 0 .8rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; } p { max-width: 56rem; }
p.findings { font-size: 1.05rem; border-left: 4px solid var(--edge); background: var(--box); padding: .7rem 1rem;
  margin: 0; max-width: none; }
p.note { color: var(--soft); font-size: .84rem; margin: .5rem 0 0; }
p.warning { color: var(--warn); border-left: 4px solid var(--warn); background: var(--warnbox); padding: .5rem 1rem; }
.wide { overflow-x: auto; } .wide + .wide { margin-top: 1rem; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem 1.1rem .3rem 0; text-align: right; vertical-align: top; white-space: nowrap; }
th { font-weight: 600; color: var(--head); border-bottom: 1.5px solid var(--line); vertical-align: bottom;
  white-space: normal; }
td { border-bottom: 1px solid var(--thin); }
.l { text-align: left; } td.note { white-space: normal; text-align: left; min-width: 11rem; color: var(--head); }
td.note:not(:last-child) { min-width: 15rem; } td small { display: block; font-size: .9em;
  color: var(--soft); white-space: normal; }
tr.part td { font-weight: 600; padding-top: .8rem; text-align: left; }
.better, .better small { color: var(--better); } .worse, .worse small { color: var(--worse); }
.same, .same small { color: var(--soft); } .warn, .warn small { color: var(--warn); }
figure { margin: 1rem 0 1.8rem; } figure svg { width: 100%; max-width: 62rem; height: auto; display: block;
  background: #fff; border-radius: 6px; } figure g[id^="tip"]:hover { opacity: .55; }
figcaption { color: var(--soft); font-size: .84rem; margin-top: .4rem; max-width: 56rem; }
@page { size: A4 landscape; margin: 14mm; }
@media print { body { margin: 0; padding: 0; max-width: none; font-size: 10pt; } .wide { overflow: visible; }
  figure, tr, p { break-inside: avoid; } h1, h2, h3 { break-after: avoid; } thead { display: table-header-group; }
  table { font-size: 8pt; } th, td { padding-right: .7rem; } figure svg { max-width: 24cm; }
  p.findings, p.warning { background: none; } }
"""


def html_of(blocks: Sequence[Block], directory: Path) -> str:
    """The page as one HTML file; `directory` holds `figures/`."""
    title = next((block.text for block in blocks if isinstance(block, Heading)), "Report")
    body = "\n".join(html_block(block, directory) for block in blocks)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def html_block(block: Block, directory: Path) -> str:
    """One block; figures are read from `directory`/figures."""
    if isinstance(block, Heading):
        return f"<h{block.level}>{html.escape(block.text)}</h{block.level}>"
    if isinstance(block, Text):
        kind = f' class="{block.role}"' if block.role else ""
        return f"<p{kind}>{html.escape(block.text)}</p>"
    if isinstance(block, Picture):
        drawn = (directory / "figures" / f"{block.name}.svg").read_text(encoding="utf-8")
        drawn = drawn[drawn.index("<svg") :].rstrip()
        caption = html.escape(block.caption)
        label = f'<svg role="img" aria-label="{caption}"'
        return f"<figure>{drawn.replace('<svg', label, 1)}<figcaption>{caption}</figcaption></figure>"
    if isinstance(block, Place):
        return block.mark
    return _html_table(block)


def _html_table(table: Table) -> str:
    titles = [html.escape(text).replace(" · ", "&nbsp;·&nbsp;") for text in table.head]
    head = "".join(
        f'<th class="l">{text}</th>' if table.is_text(place) else f"<th>{text}</th>"
        for place, text in enumerate(titles)
    )
    lines = "\n".join(_html_row(table, row) for row in table.rows)
    return (
        f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}\n</tbody></table></div>'
    )


def _html_row(table: Table, row: tuple[Cell, ...]) -> str:
    if len(row) == 1:
        return f'<tr class="part"><td colspan="{len(table.head)}">{html.escape(row[0].text)}</td></tr>'
    cells = []
    for place, cell in enumerate(row):
        kinds = [cell.tone] if cell.tone else []
        kinds += ["l"] if place < table.labels else ["note"] if table.is_text(place) else []
        kind = f' class="{" ".join(kinds)}"' if kinds else ""
        below = f"<small>{html.escape(cell.below)}</small>" if cell.below else ""
        cells.append(f"<td{kind}>{html.escape(cell.text)}{below}</td>")
    return f"<tr>{''.join(cells)}</tr>"
