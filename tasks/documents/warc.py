"""Web archives: pages of WARC with their address and day, texts of WET."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from tasks.documents.document import Draft, Unreadable
from tasks.documents.encodings import decoded
from tasks.documents.limits import Limits
from tasks.documents.tidy import tidy

_DAMAGE = (OSError, ValueError, EOFError, KeyError, IndexError, zlib.error)


def read_warc(
    file: BinaryIO, limits: Limits
) -> Iterator[tuple[str, Draft | Unreadable | tuple[bytes, dict[str, str]]]]:
    """Each answer, resource and text of an archive. Requests and descriptions are passed over."""
    from warcio.archiveiterator import ArchiveIterator
    from warcio.exceptions import ArchiveLoadFailed

    number = 0
    try:
        for record in ArchiveIterator(file):
            if record.rec_type in ("response", "resource", "conversion"):
                number += 1
                yield str(number), _record(record, limits)
    except (*_DAMAGE, ArchiveLoadFailed) as error:
        number += 1
        yield str(number), Unreadable("damaged", f"the archive ends early or is damaged ({error})")
    if not number:
        yield "1", Unreadable("empty", "the archive holds no answer and no text")


def _record(record: Any, limits: Limits) -> Draft | Unreadable | tuple[bytes, dict[str, str]]:
    def said(name: str) -> str:
        return str(record.rec_headers.get_header(name) or "")

    meta = {"url": said("WARC-Target-URI").strip("<>"), "date": said("WARC-Date")[:10]}
    try:
        if record.rec_type == "response" and record.http_headers is not None:
            status = record.http_headers.get_statuscode()
            if not status.startswith("2"):
                return Unreadable(
                    "other_answer", f"the server's answer is {status}, which is no page ({meta['url']})"
                )
        data = record.content_stream().read(limits.file_bytes + 1)
        cut = record.raw_stream is not None and getattr(record.raw_stream, "limit", 0) > 0 and not data
    except _DAMAGE as error:
        return Unreadable("damaged", f"the record is damaged ({error})")
    if len(data) > limits.file_bytes:
        return Unreadable("too_large", f"the record is larger than {limits.file_bytes:,} bytes")
    if cut:
        return Unreadable("damaged", "the record ends early")
    if record.rec_type == "conversion":
        meta["language"] = said("WARC-Identified-Content-Language").split(",")[0]
        return Draft((tidy(decoded(data)[0]),), meta)
    return data, meta
