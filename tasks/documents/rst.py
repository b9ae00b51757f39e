"""reStructuredText as text: headings as in Markdown, marks of roles, links and directives out, what they hold kept."""

from __future__ import annotations

import re
from textwrap import dedent

from tasks.documents.document import Draft
from tasks.documents.encodings import decoded
from tasks.documents.tidy import names, one_line, tidy

_RULE = re.compile(r"([=\-~^\"'*+#`:._<>!$%&,;?@\\/|])\1{2,}\s*$")
_DIRECTIVE = re.compile(r"(\s*)\.\. (?:\|[^|]+\| )?([\w:.+-]+)::[ \t]*(.*)$")
_CODE = names(
    "code code-block sourcecode highlight-block doctest testcode parsed-literal ipython prompt literal"
)
_NO_TEXT = names(
    "image include literalinclude toctree contents index highlight module currentmodule py:module "
    "py:currentmodule automodule autoclass autofunction automethod autosummary raw meta replace role default-role plot "
    "graphviz sectnum testsetup testcleanup target-notes tabularcolumns program"
)
_ROLE = re.compile(r":[a-zA-Z][\w+.:-]*:`(?:[!~])?([^`<]*?)(?:\s*<[^>`]*>)?`")
_LINK = re.compile(r"`([^`<]+?)\s*<[^>`]*>`__?")
_NAMED = re.compile(r"`([^`\n]+)`__?(?=\W|$)")
_LITERAL = re.compile(r"``(.+?)``")
_BARE = re.compile(r"\b([A-Za-z][\w-]*)_(?=[\s.,;:!?)]|$)")
_TARGET = re.compile(r"^\s*\.\. _[^\n]*$|^__ \S.*$", re.M)


def read_rst(data: bytes) -> Draft:
    """The text of a reStructuredText file: headings marked, directives, targets and markup out."""
    text, encoding = decoded(data)
    lines = text.replace("\r\n", "\n").replace("\r", "\n").expandtabs(8).split("\n")
    found = _blocks(lines, {})
    title = re.search(r"^#+ (.+)$", found, re.M)
    return Draft((tidy(found),), {"encoding": encoding, "title": one_line(title[1]) if title else ""})


def _blocks(lines: list[str], levels: dict[str, int]) -> str:
    out: list[str] = []
    at = 0
    while at < len(lines):
        line = lines[at]
        rule = _RULE.fullmatch(line)
        if rule and at + 2 < len(lines) and lines[at + 1].strip() and lines[at + 2].rstrip() == line.rstrip():
            out.append(_heading(lines[at + 1], rule[1] * 2, levels))
            at += 3
        elif (
            line.strip()
            and at + 1 < len(lines)
            and not line.startswith((" ", ".."))
            and (
                (under := _RULE.fullmatch(lines[at + 1]))
                and len(lines[at + 1].rstrip()) >= len(line.rstrip()) - 1
                and not _RULE.fullmatch(line)
            )
        ):
            out.append(_heading(line, under[1], levels))
            at += 2
        elif found := _DIRECTIVE.fullmatch(line):
            body, at = _indented(lines, at + 1, len(found[1]))
            out.append(_directive(found[2], found[3], body, levels))
        elif re.match(r"\s*\.\.(?:\s|$)", line):  # a comment, a target, a note
            note = re.match(r"\s*\.\. \[[^\]]+\]\s+(.*)", line)
            body, at = _indented(lines, at + 1, len(line) - len(line.lstrip()))
            out.append(_inline(note[1] + "\n" + dedent("\n".join(body))) if note else "")
        elif re.fullmatch(r"\s*=+(?:\s+=+)+\s*", line) or re.fullmatch(
            r"\s*\+(?:[-=]+\+)+\s*", line
        ):  # a simple table: its rules go
            at += 1
        elif line.rstrip().endswith("::") and not line.startswith(".."):
            text = line.rstrip()[:-2].rstrip()
            out.append(_inline(text + ":" if text else ""))
            body, at = _indented(lines, at + 1, len(line) - len(line.lstrip()))
            if any(body):
                code = dedent("\n".join(body)).strip("\n")
                out += ["", f"```\n{code}\n```", ""]
        elif re.match(r":[\w -]+:(?:\s|$)", line) and at < 40 and not any(out):
            at += 1  # fields of the document
        else:
            out.append(_inline(line))
            at += 1
    return "\n".join(out)


def _heading(text: str, sign: str, levels: dict[str, int]) -> str:
    level = levels.setdefault(sign, len(levels) + 1)
    return f"\n{'#' * min(level, 6)} {_inline(text.strip())}\n"


def _indented(lines: list[str], at: int, indent: int) -> tuple[list[str], int]:
    begun = at
    while at < len(lines) and (not lines[at].strip() or len(lines[at]) - len(lines[at].lstrip()) > indent):
        at += 1
    return lines[begun:at], at


def _directive(name: str, argument: str, body: list[str], levels: dict[str, int]) -> str:
    options = 0
    while options < len(body) and re.match(r"\s+:[\w-]+:", body[options]):
        options += 1
    inner = dedent("\n".join(body[options:])).strip("\n")
    short = name.rpartition(":")[2]
    if name in _NO_TEXT or short in ("image", "toctree", "include", "literalinclude"):
        return ""
    if short in _CODE:
        return f"\n```{argument.strip()}\n{inner}\n```\n" if inner else ""
    if short in ("math",):
        return f"\n$${(argument + ' ' + inner).strip()}$$\n"
    if short in ("figure",):
        return "\n" + _blocks(inner.split("\n"), levels) + "\n"
    shown = _blocks(inner.split("\n"), levels) if inner else ""
    return "\n" + "\n\n".join(part for part in (_inline(argument), shown) if part.strip()) + "\n"


def _inline(text: str) -> str:
    text = _LITERAL.sub(lambda found: f"\0{found[1]}\1", text)
    text = _ROLE.sub(r"\1", text)
    text = _LINK.sub(r"\1", text)
    text = _NAMED.sub(r"\1", text)
    text = re.sub(r"\|([\w -]+)\|_?(?=\W|$)", r"\1", text) if text.count("|") == 2 else text
    text = re.sub(r"\s?\[(?:#\w*|\d+|\*)\]_", "", text)
    text = _BARE.sub(r"\1", text) if "_" in text and "\0" not in text else text
    text = re.sub(r"\\([^\s\\])", r"\1", text) if "\0" not in text else text
    return text.replace("\0", "`").replace("\1", "`")
