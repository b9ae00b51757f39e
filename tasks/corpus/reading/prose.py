"""Extract prose from reStructuredText, Markdown and docstrings: one line per paragraph, without code and markup."""

from __future__ import annotations

import re

_ROLE = re.compile(r":[\w:+-]+:`~?([^`<]+?)(?:\s*<[^`>]*>)?`")
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)\s]*\)")
_RST_LINK = re.compile(r"`([^`<]+?)\s*<[^`>]*>`_+")
_TAG = re.compile(r"<!--.*?-->|</?[a-zA-Z][\w:-]*(?:\s+[\w:-]+(?:=(?:\"[^\"]*\"|'[^']*'))?)*\s*/?>")
_BRACES = str.maketrans("{}", "()")  # numpydoc's {'auto', 'exact'}: quality rules take a brace for code
_UNDERLINE = re.compile(r"\s*([=\-~^\"'`*#+.:_])\1{2,}\s*$")
_DIRECTIVE = re.compile(r"\s*\.\.\s+([\w:-]+)::\s*(.*)$")
_KEPT_DIRECTIVES = frozenset(
    re.findall(
        r"\w+",
        "note warning tip important seealso versionadded versionchanged deprecated attention caution hint rubric",
    )
)
_BULLET = re.compile(r"(?:[-*+•]|\(?\d{1,3}[.)])\s+")
_ENTRY = re.compile(r"\*{0,2}[`\w.\[\]]+(?:, \*{0,2}[`\w.]+){0,4}(?: ?\([^()]*(?:\([^()]*\)[^()]*)*\))?:\s")
_FIELD = re.compile(r":(\w+)(?:\s+([^:]*))?:\s*")  # :param name: and :returns: of reStructuredText
_HEADER = re.compile(r"[A-Z][\w ]{1,30}:$")  # Args: and Returns: of Google's style
_FOOTNOTE = re.compile(r"\s?\[\w+\]_")
_DEFINITION = re.compile(r"[*`\w., ]{1,60} : \S")
_WORD = re.compile(r"\S+")
_NO_LETTER = re.compile(r"[^\w ]|[\d_]")
_WORDLIKE = re.compile(r"(?<!\S)[(\"']?[^\W\d_]+[.,;:)'\"]*(?!\S)")
_STOP_WORDS = frozenset(
    re.findall(r"\w+", "the be to of and that have with is in a for are this as it by or on an")
)


def word_count(text: str) -> int:
    """Number of words: runs of characters that are not whitespace."""
    return len(_WORD.findall(text))


def prose(text: str) -> list[str]:
    """Paragraphs, list items and headings of a text, in order, one string each. Code, tables and markup are removed."""
    found: list[str] = []
    heading: str | None = None  # kept back until something follows it
    for block in _joined(_without_code(text.expandtabs().splitlines())):
        line = _inline(block).strip()
        if not line:
            continue
        if line.startswith("\0"):  # a heading, marked by _without_code
            heading = line[1:].strip().strip("#").strip()
            continue
        if heading:
            found.append(f"## {heading}")
            heading = None
        found.append(line)
    return found


def is_prose(text: str) -> bool:
    """Whether a document is mostly running English text, with at least fifty words of it."""
    words = _WORD.findall(text)
    if len(words) < 50:
        return False
    letters = len(text) - len(_NO_LETTER.findall(text))
    wordlike = len(_WORDLIKE.findall(text))
    common = sum(map(_STOP_WORDS.__contains__, words))
    return letters >= 0.75 * len(text) and wordlike >= 0.6 * len(words) and common >= 0.08 * len(words)


def _without_code(lines: list[str]) -> list[str]:
    """The lines without doctests, code blocks, tables and underlines. A heading is marked by a leading NUL."""
    kept: list[str] = []
    fenced = doctest = False
    deeper_than: int | None = None  # skip lines indented more than this
    for number, line in enumerate(lines):
        bare = line.strip()
        indent = len(line) - len(line.lstrip())
        if bare.startswith(("```", "~~~")):
            fenced = not fenced
            kept.append("")
            continue
        if fenced:
            continue
        if not bare:
            doctest = False
            kept.append("")
            continue
        if deeper_than is not None:
            if indent > deeper_than:
                continue
            deeper_than = None
        doctest = doctest or bare.startswith((">>>", "In ["))
        if doctest or bare.startswith(("|", "+--", "+==", "[![", "![", "..  _", ".. _", "$ ")):
            kept.append("")
            continue
        if _UNDERLINE.match(line):
            if kept and kept[-1].strip() and not kept[-1].startswith("\0") and len(kept[-1]) < 100:
                kept[-1] = "\0" + kept[-1].strip()
            kept.append("")
            continue
        if bare.startswith("#") and bare.lstrip("#").startswith(" "):
            kept += ["\0" + bare, ""]
            continue
        directive = _DIRECTIVE.match(line)
        if directive:
            if directive[1] in _KEPT_DIRECTIVES:
                kept += ["", " " * indent + directive[2] if not directive[2][:1].isdigit() else ""]
            else:
                deeper_than = indent
            continue
        if bare.startswith(".. "):
            deeper_than = indent
            continue
        if bare.endswith("::"):
            deeper_than = indent
            line = line.rstrip()[:-1]
        following = lines[number + 1] if number + 1 < len(lines) else ""
        if _UNDERLINE.match(following) and kept[-1:] != [""]:
            kept.append("")
        kept.append(line)
    return kept


def _joined(lines: list[str]) -> list[str]:
    """Join hard-wrapped lines: a paragraph, a list item, or a parameter with its description becomes one line."""
    blocks: list[str] = []
    current: list[str] = []
    depth = 0

    def close() -> None:
        if current:
            blocks.append(" ".join(current))
            current.clear()

    for line in lines:
        bare = line.strip()
        indent = len(line) - len(line.lstrip())
        if not bare or line.startswith("\0"):
            close()
            if bare:
                blocks.append(line)
            continue
        if len(current) == 1 and indent > depth and _defines(current[0]):
            current[0] += ":"
            current.append(bare)
            depth = indent
            continue
        starts = any(mark.match(bare) for mark in (_BULLET, _FIELD, _ENTRY, _DEFINITION))
        header = len(current) == 1 and _HEADER.match(current[0])
        if current and (
            (starts and (indent <= depth or header)) or (indent < depth and not _BULLET.match(current[0]))
        ):
            close()
        if not current:
            depth = indent
        current.append(bare)
    close()
    return blocks


def _defines(line: str) -> bool:
    """Whether a line names what the more deeply indented lines below it describe: `x : array_like`, or `x` alone."""
    return _DEFINITION.match(line) is not None or (len(line) < 40 and line.strip("*").isidentifier())


def _inline(text: str) -> str:
    field = _FIELD.match(text)
    if field:
        text = f"{field[2] or field[1].capitalize()}: {text[field.end() :]}"
    text = _FOOTNOTE.sub("", text)
    text = _ROLE.sub(r"\1", text)
    text = _RST_LINK.sub(r"\1", text)
    text = _LINK.sub(r"\1", text)
    text = _TAG.sub("", text)
    return text.replace("``", "").replace("`", "").replace("**", "").replace("\\\\", "\\").translate(_BRACES)
