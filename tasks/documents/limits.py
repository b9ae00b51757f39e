"""How much one file may ask for, whatever it holds. What goes beyond is set aside with its reason.

Time and memory are those of the process that reads; nothing else depends on the machine.
"""

from __future__ import annotations

from dataclasses import dataclass

HEAD_BYTES = 1 << 16
"""So much of a file is looked at to tell its kind."""


@dataclass(frozen=True)
class Limits:
    """Sizes in bytes, time in seconds."""

    file_bytes: int = 256_000_000
    """The largest file that is read as a whole: a PDF, a book, a file in an archive. Dumps are read as they come."""
    unpacked_bytes: int = 8_000_000_000
    """What one file may unpack to, all levels of archives together."""
    depth: int = 6
    """Archives within archives, an office file or a book counted as none."""
    entries: int = 1_000_000
    """Files, messages and pages in one file."""
    text_bytes: int = 16_000_000
    """The longest text of a document, in UTF-8, as in `tasks.corpus.reading.limits`."""
    silence_seconds: float = 60.0
    """After so long without a document, a page or an entry, the process is ended, and what it was at is set aside."""
    memory_bytes: int = 4_000_000_000
    """Address space of the process that reads."""
