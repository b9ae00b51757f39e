"""E-mail: single messages and mailboxes. The text of a message, or else its HTML; its attachments as files of their own."""

from __future__ import annotations

import re
from collections.abc import Iterator
from email import policy
from email.message import EmailMessage
from email.parser import BytesParser
from email.utils import parseaddr, parsedate_to_datetime
from typing import BinaryIO

from tasks.documents.document import Draft, Unreadable
from tasks.documents.encodings import decoded
from tasks.documents.html import read_html
from tasks.documents.limits import Limits
from tasks.documents.tidy import one_line, tidy

_PARSER = BytesParser(policy=policy.default)  # type: ignore[arg-type]
_FROM = re.compile(rb"^From \S+.*\d{4}\s*$")
Record = tuple[str, Draft | Unreadable | tuple[bytes, dict[str, str]]]


def read_mbox(file: BinaryIO, limits: Limits) -> Iterator[Record]:
    """Each message of a mailbox, by number, and its attachments."""
    number, lines, size = 0, list[bytes](), 0
    blank = True
    for line in file:
        if blank and _FROM.match(line):
            if lines:
                number += 1
                yield from _message(str(number), lines, size, limits)
            lines, size = [], 0
        else:
            size += len(line)
            if size <= limits.file_bytes:
                lines.append(line[1:] if re.match(rb">+From ", line) else line)
        blank = not line.strip()
    if lines:
        yield from _message(str(number + 1), lines, size, limits)


def _message(name: str, lines: list[bytes], size: int, limits: Limits) -> Iterator[Record]:
    if size > limits.file_bytes:
        yield name, Unreadable("too_large", f"the message is larger than {limits.file_bytes:,} bytes")
        return
    yield from records(b"".join(lines), name)


def read_mail(file: BinaryIO, limits: Limits) -> Iterator[Record]:
    """One message and its attachments."""
    yield from records(file.read(limits.file_bytes), "1")


def records(data: bytes, name: str) -> Iterator[Record]:
    """The text of a message, and each attachment."""
    try:
        message = _PARSER.parsebytes(data)
        yield name, _text(message)
        attached = list(message.iter_attachments()) if message.is_multipart() else []
    except Unreadable as error:
        yield name, error
        return
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        IndexError,
        KeyError,
        RecursionError,
    ) as error:
        yield name, Unreadable("damaged", f"the message is not whole ({type(error).__name__}: {error})")
        return
    for place, attachment in enumerate(attached, 1):
        try:
            inner = attachment.get_payload(decode=True)
        except (ValueError, LookupError):
            continue
        if isinstance(inner, bytes) and inner:
            yield f"{name}!{attachment.get_filename() or place}", (inner, {})


def _text(message: EmailMessage) -> Draft:
    subject = one_line(str(message.get("Subject", "")))
    _, address = parseaddr(str(message.get("From", "")))
    sender = parseaddr(str(message.get("From", "")))[0] or address
    body = message.get_body(preferencelist=("plain", "html"))
    text = ""
    if body is not None:
        data = body.get_payload(decode=True)
        if isinstance(data, bytes):
            if body.get_content_type() == "text/html":
                text = read_html(data).pages[0]
            else:
                text = _of(data, body.get_content_charset())
    if not text.strip():
        raise Unreadable("empty", "the message has no text")
    meta = {"title": subject, "author": one_line(sender), "date": message_date(str(message.get("Date", "")))}
    return Draft((tidy(f"# {subject}\n\n{text}" if subject else text),), meta)


def _of(data: bytes, charset: str | None) -> str:
    try:
        return data.decode(charset or "utf-8")
    except (UnicodeDecodeError, LookupError):
        return decoded(data)[0]


def message_date(text: str) -> str:
    """The day of a message's date, empty if it has none."""
    try:
        return parsedate_to_datetime(text).date().isoformat()
    except (ValueError, TypeError, IndexError):
        return ""
