"""Rich Text Format."""

from __future__ import annotations

import re

from tasks.documents.document import Draft
from tasks.documents.tidy import one_line, tidy


def read_rtf(data: bytes) -> Draft:
    """Text of a document in RTF, whose bytes are ASCII with letters escaped."""
    from striprtf.striprtf import rtf_to_text

    source = data.decode("cp1252", "replace")
    text = rtf_to_text(source, errors="replace")
    lines = [" ".join(line.split()) if "|" not in line else line.strip() for line in text.split("\n")]
    info = {
        key: one_line(found[1])
        for key in ("title", "author")
        if (found := re.search(rf"{{\\{key} ([^{{}}\\]+)}}", source))
    }
    return Draft((tidy("\n\n".join(line for line in lines if line)),), info)
