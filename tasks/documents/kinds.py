"""What a file is, told by its first bytes, by what a zip holds, or by how its text looks; never by its name."""

from __future__ import annotations

import csv
import io
import re
import zipfile
from typing import BinaryIO

import orjson

from tasks.corpus.reading.kinds import told
from tasks.documents.document import Unreadable
from tasks.documents.encodings import decoded, wide_encoding

NAMES = {
    "pdf": "PDF",
    "html": "HTML",
    "epub": "EPUB",
    "docx": "Word (DOCX)",
    "odt": "OpenDocument text",
    "odp": "OpenDocument slides",
    "pptx": "PowerPoint (PPTX)",
    "sheets": "spreadsheet",
    "rtf": "RTF",
    "msg": "Outlook message",
    "notebook": "Jupyter notebook",
    "markdown": "Markdown",
    "latex": "LaTeX",
    "rst": "reStructuredText",
    "jats": "JATS article",
    "xml": "XML",
    "table": "table (CSV, TSV)",
    "wiki": "MediaWiki dump",
    "warc": "web archive",
    "mbox": "mailbox",
    "mail": "e-mail",
    "text": "text",
    "zip": "zip",
    "tar": "tar",
    "gz": "gzip",
    "bz2": "bzip2",
    "xz": "xz",
    "zst": "zstd",
    "rows": "rows (JSON lines, Parquet)",
    "other": "other",
    "empty": "empty",
}
"""Every kind and how it is called."""
ARCHIVES = frozenset(("zip", "tar", "gz", "bz2", "xz", "zst"))
STREAMED = frozenset(("tar", "gz", "bz2", "xz", "zst", "wiki", "warc", "mbox", "mail"))
"""Kinds that are read as they come, so that their size does not matter."""

_MAGIC = (
    (b"\x1f\x8b", "gz"),
    (b"BZh", "bz2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zst"),
    (b"WARC/", "warc"),
    (b"{\\rtf", "rtf"),
    (b"PAR1", "rows"),
)
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_HTML = re.compile(r"(?:<!--.*?-->\s*|<\?xml[^>]*>\s*)*<(?:!doctype\s+html|html|head|body)\b", re.I | re.S)
_HTML_PIECE = re.compile(
    r"<(?:p|div|h[1-6]|table|ul|ol|article|section|span|a href|br|meta|title)\b[^>]*>", re.I
)
_XML = re.compile(
    r"(?:<\?xml[^>]*\?>\s*|<!--.*?-->\s*|<!DOCTYPE[^>\[]*(?:\[.*?\]\s*)?>\s*)*<([A-Za-z_][\w.:-]*)", re.S
)
_MAIL_HEAD = re.compile(r"(?:[A-Za-z][A-Za-z0-9-]{1,40}:[ \t].*\n(?:[ \t].+\n)*){3,}")
_MAIL_FIELD = re.compile(
    r"^(?:From|Date|Subject|To|Received|Message-ID|MIME-Version|Return-Path):", re.I | re.M
)
_LATEX = re.compile(
    r"^\s*\\(?:documentclass|documentstyle|begin\{document\})|^\\(?:(?:sub)*section|chapter)\*?\{", re.M
)
_RST = re.compile(
    r"^\.\. (?:[\w-]+::|_[^:\n]+:|\|[^|]+\|)|:[a-z]+:`[^`]+`|`[^`\n]+ <[^>`\n]+>`__?|^:[\w -]+: .+$", re.M
)
_RST_TITLE = re.compile(r"^(\S.{0,120})\n([=\-~^\"'*+#`:.])\2{2,}\s*$", re.M)
_FENCED = re.compile(r"^(?:```|~~~).*?^(?:```|~~~)", re.S | re.M)
_CODE = re.compile(
    r"^\s*(?:import |from \S+ import |def |class |return\b|elif |else:|try:|except|self\.|@\w|#include|public |private |"
    r"static |function |var |const |let |fn |func |package |using |echo |export |fi$|done$|end$)|[;{}(]\s*$|"
    r"^\s*[\w.\[\]'\"-]+ ?(?:=|\+=|:=) ?\S|^\s*[\w.-]+:(?: \S+)?$|^\s*\w[\w.]*\(.*\)$|^\s*(?:if|for|while|with) .*[:{]$"
)
_MARKDOWN = (
    re.compile(r"\A---\r?\n(?:.*\n)*?---\s*$", re.M),
    re.compile(r"^#{1,6} \S", re.M),
    re.compile(r"^(?:```|~~~)", re.M),
    re.compile(r"\[[^\]\n]+\]\([^)\s]+[^)\n]*\)"),
    re.compile(r"^\s*(?:[*+-]|\d+\.) \S", re.M),
    re.compile(r"\*\*[^*\n]+\*\*|^> \S", re.M),
    re.compile(r"^\|(?:[^|\n]*\|)+\s*\n\|(?:\s*:?-+:?\s*\|)+", re.M),
)


def kind_of(head: bytes, *, whole: bool) -> str:
    """The kind by the first bytes of a file; `whole`: they are all of it. What is in a zip or ole is not told here.

    Raises Unreadable where it is known to be nothing that is read: image, not_read, unknown, empty.
    """
    if not head.strip(b"\0 \t\r\n"):
        raise Unreadable("empty", "the file is empty" if not head else "the file holds nothing but blanks")
    if b"%PDF-" in head[:1024]:
        return "pdf"
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08"):
        return "zip"
    if head.startswith(_OLE):
        return "ole"
    for magic, kind in _MAGIC:
        if head.startswith(magic) and (magic != b"BZh" or head[4:10] in (b"1AY&SY", b"\x17rE8P\x90")):
            return kind
    if head[257:262] == b"ustar":
        return "tar"
    wide = head.startswith((b"\xff\xfe", b"\xfe\xff")) or wide_encoding(head) is not None
    if not (wide and _is_written(decoded(head)[0])):
        found = told(head, ".txt", whole=whole)
        if found is not None and found[0] != "an HTML page" and not _is_text(head):
            what, way = found
            if what.startswith("an image"):
                raise Unreadable("image", f"it is {what}")
            if what == "a binary file":
                raise Unreadable("unknown", "it is a binary file of an unknown kind")
            raise Unreadable("not_read", f"it is {what}: {way}")
        if not _is_text(head):
            raise Unreadable("unknown", "it is a binary file of an unknown kind")
        if found is not None and found[0].startswith("a Git"):
            raise Unreadable("not_read", f"it is {found[0]}: {found[1]}")
    return text_kind(decoded(head)[0], whole=whole)


def _is_text(head: bytes) -> bool:
    """Whether there are hardly any bytes that no text has."""
    control = sum(head.count(byte) for byte in (*range(8), *range(14, 27), 28, 29, 30, 31))
    return control * 200 <= len(head)


def _is_written(text: str) -> bool:
    """Whether (nearly) all characters are those of a text: what samples of a sound or a picture give in UTF-16 is not."""
    some = text[:4096]
    odd = sum(not (letter.isprintable() or letter.isspace()) or letter == "\ufffd" for letter in some)
    return odd * 50 <= len(some)


def zip_kind(file: BinaryIO) -> str:
    """What a zip is, by what it holds."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = set(archive.namelist())
            kind = ""
            if "mimetype" in names:
                kind = archive.read("mimetype")[:200].decode("ascii", "replace").strip()
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError, ValueError, EOFError) as error:
        raise Unreadable("damaged", f"the zip cannot be opened ({error})") from error
    for sign, found in (
        ("application/epub", "epub"),
        ("opendocument.text", "odt"),
        ("opendocument.presentation", "odp"),
        ("opendocument.spreadsheet", "sheets"),
    ):
        if sign in kind:
            return found
    if "META-INF/container.xml" in names:
        return "epub"
    if "[Content_Types].xml" in names:
        folders = {name.split("/", 1)[0] for name in names}
        for folder, found in (("word", "docx"), ("ppt", "pptx"), ("xl", "sheets")):
            if folder in folders:
                return found
    if any(name.endswith("/data.pkl") or name == "data.pkl" for name in names):
        raise Unreadable("not_read", "it is a PyTorch checkpoint: leave it out")
    return "zip"


def text_kind(text: str, *, whole: bool) -> str:
    """The kind of a text, by how its beginning looks."""
    bare = text.lstrip("\ufeff \t\r\n")
    if _HTML.match(bare):
        return _as_markup(bare, "html")
    if bare.startswith("<"):
        found = _XML.match(bare)
        if found is not None:
            kind = _as_markup(bare, found[1].rpartition(":")[2].lower())
            if kind != "":
                return kind
        if len(_HTML_PIECE.findall(bare[:4000])) >= 2:
            return "html"
    if bare[:1] in "{[" and (kind := _json_kind(bare, whole)):
        return kind
    if re.match(r"From \S+.*\d{4}\s*\n(?:>?From |[A-Za-z-]+:)", bare):
        return "mbox"
    if (found := _MAIL_HEAD.match(bare.replace("\r\n", "\n"))) and len(_MAIL_FIELD.findall(found[0])) >= 3:
        return "mail"
    if _LATEX.search(text) and text.count("\\") > 3:
        return "latex"
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    if _is_table(lines, whole):
        return "table"
    rst = 2 * len(_RST.findall(lines)) + sum(
        len(title) <= len(rule) + 200 and rule != "" for title, rule in _RST_TITLE.findall(lines)
    )
    markdown = sum(2 if place in (0, 6) else 1 for place, sign in enumerate(_MARKDOWN) if sign.search(lines))
    atx = bool(_MARKDOWN[1].search(lines))
    if markdown and not _MARKDOWN[0].match(lines) and _is_code(lines):
        return "text"
    if rst >= 2 and not atx and re.search(r"^\.\. |:[a-z]+:`|`__?(?:\W|$)", lines, re.M):
        return "rst"
    if markdown >= 2 or (atx and not lines.lstrip().startswith("#!")):
        return "markdown"
    return "text"


def _is_code(text: str) -> bool:
    """Whether a third of the lines looks like a program or a configuration, whose comments look like headings."""
    lines = [
        line
        for line in re.sub(_FENCED, "", text).split("\n")
        if line.strip() and not line.lstrip().startswith("#")
    ]
    return 3 * sum(_CODE.search(line) is not None for line in lines) > len(lines)


def _as_markup(text: str, root: str) -> str:
    if root == "mediawiki":
        return "wiki"
    if root == "article" and (
        "<front" in text[:20000] or "jats" in text[:2000].lower() or "<article-meta" in text
    ):
        return "jats"
    if root in ("html", "article", "body", "head") or root in (
        "p",
        "div",
        "h1",
        "h2",
        "table",
        "ul",
        "span",
        "section",
        "main",
    ):
        return "html"
    return "xml" if text.startswith("<?xml") or text.count("</") > 1 else ""


def _json_kind(text: str, whole: bool) -> str:
    if '"nbformat"' in text or ('"cells"' in text[:4000] and '"cell_type"' in text):
        return "notebook"
    first = text.split("\n", 1)[0].strip()
    for candidate in (first, text if whole else ""):
        try:
            if candidate and isinstance(orjson.loads(candidate), dict | list):
                return "rows"
        except orjson.JSONDecodeError:
            continue
    return "rows" if re.match(r"[\[{]\s*[\[{\"]", text) and '":' in text[:4000] else ""


def _is_table(text: str, whole: bool) -> bool:
    return table_dialect(text, whole=whole) is not None


def table_dialect(text: str, *, whole: bool) -> str | None:
    """The sign between the columns, if the beginning of a text is a table: the same number of them in (nearly) all rows."""
    sample = text[:16384]
    if not whole or len(text) > 16384:
        sample = sample[: sample.rfind("\n") + 1] or sample
    for sign in ("\t", ",", ";", "|"):
        if sign not in sample[:4096]:
            continue
        try:
            rows = [row for row in csv.reader(io.StringIO(sample), delimiter=sign) if row][:100]
        except csv.Error:
            continue
        widths = [len(row) for row in rows]
        if len(rows) < 2 or widths[0] < 2:
            continue
        same = sum(width == widths[0] for width in widths)
        head = rows[0]
        named = all(0 < len(cell.strip()) <= 60 for cell in head[:1]) and max(map(len, head)) <= 80
        enough = len(rows) > 2 or (
            sign != "," or '"' in sample or all(" " not in cell.strip() for cell in head)
        )
        if same >= 0.95 * len(rows) and named and enough and not _is_prose(rows, sign):
            return sign
    return None


def _is_prose(rows: list[list[str]], sign: str) -> bool:
    """Whether the cells look like parts of sentences: a space behind each comma, and no short first row."""
    if sign in ("\t", "|"):
        return False
    cells = [cell for row in rows for cell in row[1:]]
    spaced = sum(cell.startswith(" ") for cell in cells)
    return spaced > 0.8 * len(cells) and sum(
        len(cell.split()) > 3 for row in rows for cell in row
    ) > 0.3 * len(cells)
