"""What is done to every text: letters for ligatures, no marks that nobody sees, blank lines in order."""

from __future__ import annotations

import re
import unicodedata

_FORMS = re.compile("[\ufb00-\ufb06\ufb13-\ufb17\ufb1d-\ufdff\ufe70-\ufefc]")
_UNSEEN = re.compile(
    "[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f\u00ad\u200b\u2060-\u2064\ufeff\ufffe\uffff\ud800-\udfff]"
)
_ENDS = re.compile(r"\r\n?|[\u2028\u2029\u0085]")
_TRAILING = re.compile(r"[ \t]+$", re.M)
_BLANK = re.compile(r"\n{3,}")


def tidy(text: str) -> str:
    """The text with letters for ligatures (`ﬁ` is `fi`), one kind of line end, and at most one blank line in a row."""
    text = _ENDS.sub("\n", text)
    if not text.isascii():
        text = _FORMS.sub(lambda found: unicodedata.normalize("NFKC", found[0]), text)
    text = _UNSEEN.sub("", text)
    return _BLANK.sub("\n\n", _TRAILING.sub("", text)).strip("\n")


def names(text: str) -> frozenset[str]:
    """A set of words."""
    return frozenset(text.split())


def one_line(text: str | None) -> str:
    """A title or a name: one line, without surrounding spaces."""
    return " ".join(tidy(text or "").split())


def table(rows: list[list[str]]) -> str:
    """Rows as a table in Markdown; the first is its head. Rows and columns without any text are left out."""
    rows = [[" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in rows]
    width = max((len(row) for row in rows), default=0)
    full = [column for column in range(width) if any(column < len(row) and row[column] for row in rows)]
    rows = [[row[column] if column < len(row) else "" for column in full] for row in rows if any(row)]
    if not rows:
        return ""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    if len(full) > 1 and len(rows) > 1:
        lines.insert(1, "|" + " --- |" * len(full))
    elif len(full) == 1:
        lines = [row[0] for row in rows]
    return "\n".join(lines)
