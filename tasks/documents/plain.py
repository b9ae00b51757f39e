"""Files that are text: text, Markdown, tables, notebooks."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from typing import Any

import orjson
import yaml

from tasks.corpus.reading.sources import TEMPLATE_COLUMN
from tasks.documents.document import ANY, Columns, Draft, Unreadable
from tasks.documents.encodings import decoded
from tasks.documents.kinds import table_dialect
from tasks.documents.tidy import one_line, table, tidy

_FRONT = re.compile(r"\A\ufeff?(---|\+\+\+)[ \t]*\n(.*?)^\1[ \t]*$\n?", re.S | re.M)
_FENCE = re.compile(r"(^(?:```|~~~).*?^(?:```|~~~)[ \t]*$)", re.S | re.M)
_IMAGE = re.compile(r"!\[([^\]\n]*)\](?:\([^)\n]*\)|\[[^\]\n]*\])")
_LINK = re.compile(
    r"\[((?:[^\[\]\n]|\[[^\]\n]*\])*)\]\((?:<[^>\n]*>|[^()\s]*(?:\([^()\s]*\)[^()\s]*)*)(?:\s+[\"'(][^\n]*?[\"')])?\s*\)"
)
_LINK_BY_NAME = re.compile(r"\[([^\]\n]+)\]\[[^\]\n]*\]")
_DEFINITION = re.compile(r"^ {0,3}\[[^\]\n]+\]:[ \t]*\S+.*\n?", re.M)
_COMMENT = re.compile(r"<!--.*?-->", re.S)
_TAG = re.compile(
    r"</?(?:a|img|br|div|p|span|details|summary|center|sub|sup|kbd|b|i|em|strong|table|tr|td|th|tbody|thead)\b[^>\n]*>",
    re.I,
)
_AUTOLINK = re.compile(r"<(https?://[^>\s]+|mailto:[^>\s]+)>")
_KEPT_META = ("title", "author", "date", "language", "url")
_TEXT_COLUMNS = ("text", "content", "body", "document", "article", "description", "abstract")
_OWN = ("file", "kind", "encoding")
"""What `meta` of a document says itself."""
_LONG_CELL = 120
_OUTPUT_CHARACTERS = 2000


def read_text(data: bytes) -> Draft:
    """Plain text of any encoding, without odd spaces; the encoding stands in `meta`."""
    text, encoding = decoded(data)
    return Draft((tidy(text),), {"encoding": encoding})


def read_markdown(data: bytes) -> Draft:
    """Markdown as it is, without front matter, link targets, images, comments and HTML's tags. Code stays untouched."""
    text, encoding = decoded(data)
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    meta = {"encoding": encoding}
    if found := _FRONT.match(text):
        meta |= _front(found[2])
        text = text[found.end() :]
    parts = _FENCE.split(text)
    text = tidy("".join(part if part.startswith(("```", "~~~")) else _prose(part) for part in parts))
    if "title" not in meta and (first := re.search(r"^# +(.+?)\s*#*$", text, re.M)):
        meta["title"] = one_line(first[1])
    return Draft((text,), meta)


def _prose(text: str) -> str:
    text = _COMMENT.sub("", text)
    text = _DEFINITION.sub("", text)
    text = _IMAGE.sub("", text)
    text = _LINK.sub(r"\1", text)
    text = _LINK_BY_NAME.sub(r"\1", text)
    text = _AUTOLINK.sub(r"\1", text)
    return _TAG.sub("", text)


def _front(text: str) -> dict[str, str]:
    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    names = {"lang": "language", "authors": "author", "permalink": "url"}
    meta: dict[str, str] = {}
    for key, value in found.items():
        name = names.get(str(key).lower(), str(key).lower())
        if (name in _KEPT_META and isinstance(value, str | int | float)) or (
            name == "date" and value is not None
        ):
            meta[name] = one_line(str(value))
        elif name == "author" and isinstance(value, list):
            meta[name] = ", ".join(one_line(str(one)) for one in value if isinstance(one, str))
    return meta


def read_table(data: bytes, wanted: Columns = ANY) -> Draft | Iterator[Draft]:
    """A table: a document for each row where a column holds texts, with the other columns as `meta`; else one document.

    `wanted`: the column that is asked for, or a template of columns. Where the table has none of these, it is as without.
    Columns with a name that `meta` needs get another: `file_`. Raises Unreadable: damaged, empty, no_column (some columns
    of the template are there, and some are not).
    """
    text, encoding = decoded(data)
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")
    sign = table_dialect(text, whole=True) or ","
    csv.field_size_limit(1 << 24)
    try:
        rows = [
            row for row in csv.reader(io.StringIO(text), delimiter=sign) if any(cell.strip() for cell in row)
        ]
    except csv.Error as error:
        raise Unreadable("damaged", f"the table cannot be read ({error})") from error
    if not rows:
        raise Unreadable("empty", "the table has no cell with text")
    names = [one_line(name).lower() for name in rows[0]]
    asked = TEMPLATE_COLUMN.findall(wanted.template or "")
    absent = [one.strip() for one in dict.fromkeys(asked) if one.strip().lower() not in names]
    if absent and len(absent) < len(set(asked)):
        there = ", ".join(one_line(name) for name in rows[0] if name.strip())[:300]
        raise Unreadable(
            "no_column",
            f"the template names {', '.join(f'{{{one}}}' for one in absent)}, which the table has not; it has {there}",
        )
    if wanted.template is not None and asked and not absent:
        return _filled(rows, names, wanted.template, encoding)
    asked_for = wanted.text.lower()
    column = names.index(asked_for) if wanted.text != ANY.text and asked_for in names else _text_column(rows)
    if column is None:
        return Draft((tidy(table(rows)),), {"encoding": encoding})
    return _rows(rows, column, encoding)


def _heads(row: list[str]) -> list[str]:
    """The names of columns in `meta`."""
    names = [one_line(name) or f"column_{place + 1}" for place, name in enumerate(row)]
    return [f"{name}_" if name in _OWN else name for name in names]


def _rows(rows: list[list[str]], column: int, encoding: str) -> Iterator[Draft]:
    names = _heads(rows[0])
    for row in rows[1:]:
        others = {
            name: one_line(row[place])
            for place, name in enumerate(names)
            if place != column and place < len(row) and row[place].strip()
        }
        yield Draft((tidy(row[column]) if column < len(row) else "",), others | {"encoding": encoding})


def _filled(rows: list[list[str]], names: list[str], template: str, encoding: str) -> Iterator[Draft]:
    """A document for each row: the template with the row's cells in place of its columns; all columns as `meta`."""
    heads = _heads(rows[0])
    for row in rows[1:]:
        cells = {name: row[place].strip() for place, name in enumerate(names) if place < len(row)}
        pieces = TEMPLATE_COLUMN.split(template)
        pieces[1::2] = [cells.get(name.strip().lower(), "") for name in pieces[1::2]]
        text = "".join(pieces)
        meta = {name: one_line(cell) for name, cell in zip(heads, row, strict=False) if cell.strip()}
        yield Draft((tidy(text) if any(cells.values()) else "",), meta | {"encoding": encoding})


def _text_column(rows: list[list[str]]) -> int | None:
    """The column that holds texts: by its name, or because its cells are long and those of the others are not."""
    head, body = rows[0], rows[1:1001]
    if not body:
        return None
    lengths = [
        sum(len(row[place]) for row in body if place < len(row)) / len(body) for place in range(len(head))
    ]
    order = sorted(range(len(head)), key=lambda place: -lengths[place])
    named = [place for place in order if head[place].strip().lower() in _TEXT_COLUMNS]
    if named and lengths[named[0]] >= 30:
        return named[0]
    longest = order[0]
    if lengths[longest] < _LONG_CELL or (len(order) > 1 and lengths[longest] < 3 * lengths[order[1]]):
        return None
    return longest


def read_notebook(data: bytes) -> Draft:
    """Cells in their order: Markdown as Markdown, code as code with what it printed, shortened."""
    text, _ = decoded(data)
    try:
        book = orjson.loads(text)
        cells = book.get("cells") or book["worksheets"][0]["cells"]
        language = str(book.get("metadata", {}).get("language_info", {}).get("name", "") or "python")
    except (orjson.JSONDecodeError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise Unreadable("damaged", f"the notebook is not whole ({error})") from error
    parts: list[str] = []
    title = ""
    for cell in cells if isinstance(cells, list) else ():
        if not isinstance(cell, dict):
            continue
        source = _joined(cell.get("source", cell.get("input", "")))
        if not source.strip():
            continue
        if cell.get("cell_type") == "code":
            parts.append(f"```{language}\n{source.rstrip()}\n```")
            for output in cell.get("outputs") or ():
                if shown := _output(output):
                    parts.append(f"```\n{shown}\n```")
        elif cell.get("cell_type") in ("markdown", "heading", "raw"):
            draft = read_markdown(source.encode("utf-8", "replace"))
            title = title or draft.meta.get("title", "")
            parts.append(draft.pages[0])
    return Draft((tidy("\n\n".join(part for part in parts if part)),), {"title": title})


def _joined(source: Any) -> str:
    return "".join(map(str, source)) if isinstance(source, list) else str(source)


def _output(output: Any) -> str:
    if not isinstance(output, dict):
        return ""
    data = output.get("data")
    found = output.get("text", data.get("text/plain", "") if isinstance(data, dict) else "")
    text = _joined(found).strip("\n")
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    if len(text) > _OUTPUT_CHARACTERS:
        text = text[:_OUTPUT_CHARACTERS].rsplit("\n", 1)[0] + "\n…"
    return text.strip()
