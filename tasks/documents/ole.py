"""Files of Microsoft's old compound format: Outlook messages, old workbooks, and office files with a password."""

from __future__ import annotations

from email import message_from_string
from typing import BinaryIO

from tasks.documents.document import Draft, Unreadable
from tasks.documents.encodings import decoded
from tasks.documents.html import read_html
from tasks.documents.mail import message_date
from tasks.documents.tidy import one_line, tidy


def ole_kind(file: BinaryIO) -> str:
    """What a compound file is, by the streams that it holds."""
    import olefile

    try:
        with olefile.OleFileIO(file) as container:
            names = {entry[0] for entry in container.listdir()}
    except (OSError, ValueError, IndexError, TypeError, RecursionError) as error:
        raise Unreadable("damaged", f"the Office document cannot be opened ({error})") from error
    if "EncryptedPackage" in names:
        raise Unreadable("encrypted", "the Office document has a password")
    if "__properties_version1.0" in names:
        return "msg"
    if names & {"Workbook", "Book"}:
        return "sheets"
    if "WordDocument" in names:
        raise Unreadable("not_read", "it is an old Word document (doc): save it as DOCX")
    if "PowerPoint Document" in names:
        raise Unreadable("not_read", "it is an old PowerPoint document (ppt): save it as PPTX")
    raise Unreadable("not_read", "it is an old Office document: save it in a format of today")


# ── Outlook messages ─────────────────────────────────────────────────────────────────────────────────────────────────

_TEXT, _BYTES = "001F", "001E"


def read_msg(file: BinaryIO, most: int) -> Draft:
    """Subject, sender, date and text of a message."""
    import olefile

    with olefile.OleFileIO(file) as container:

        def said(number: str) -> str:
            for kind, encoding in ((_TEXT, "utf-16-le"), (_BYTES, "")):
                name = f"__substg1.0_{number}{kind}"
                if container.exists(name):
                    data = container.openstream(name).read(most)
                    return data.decode(encoding, "replace") if encoding else decoded(data)[0]
            return ""

        subject, sender = one_line(said("0037")), one_line(said("0C1A") or said("0042"))
        body = said("1000")
        if not body.strip() and container.exists("__substg1.0_10130102"):
            body = read_html(container.openstream("__substg1.0_10130102").read(most)).pages[0]
        date = ""
        head = said("007D")
        if head:
            date = message_date(message_from_string(head).get("Date", ""))
    if not body.strip():
        raise Unreadable("empty", "the message has no text")
    text = f"# {subject}\n\n{body}" if subject else body
    return Draft((tidy(text),), {"title": subject, "author": sender, "date": date})
