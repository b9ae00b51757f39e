"""How much memory and time one file may ask for, whatever it holds. Each limit is far above what text needs.

What goes beyond a limit is set aside with its reason, like a malformed row. No limit depends on the machine, so the
same file gives the same documents everywhere.
"""

from __future__ import annotations

TEXT_BYTES = 16_000_000
"""The longest text of a document. One this long takes up to 1.1 GB in the stages after ingest (measured)."""
LINE_BYTES = 32_000_000
"""The longest row: a line, an element of an array, the other fields of a Parquet row."""
PLAIN_JSON_BYTES = 4_000_000
"""JSON up to this size is parsed without counting its values first: it cannot take much memory."""
JSON_VALUES = 1_000_000
"""The most values in one larger row of JSON. A value takes up to 30 times its JSON in memory."""
ARRAY_BYTES = 8_000_000
"""A JSON array up to this size is parsed at once; a larger one is read element by element."""
ENDLESS_BYTES = 1_000_000_000
"""After so many bytes of one line the rest of the file is given up; and before so many, no ratio counts."""
EXPANSION = 2000
"""The largest ratio of unpacked to packed bytes. gzip reaches 1,032; repetitive text stays below 1,000."""
WINDOW_LOG = 27
"""zstd keeps so much (2**27 bytes, 128 MiB) to refer back to; zstd itself refuses more without --long."""
HOPELESS_ROWS = 200_000
"""A unit is given up after so many bad rows, if they are more than `HOPELESS_SHARE` of its rows."""
HOPELESS_SHARE = 0.9
BATCH_ROWS = 65_536
"""The most lines in one batch."""
PIECE_ROWS = 1_000_000
PIECE_META_BYTES = 256_000_000
"""A file of documents ends here too: where texts are very short, or their other fields very long."""
PAGE_BYTES = 1_000_000_000
"""The largest page of a Parquet file."""
PAGE_EXPANSION = 100
"""The largest ratio of unpacked to packed bytes of a Parquet page of more than `LINE_BYTES`."""
BATCH_BYTES = 64_000_000
"""What the rows of a batch of a Parquet file may take, when each were the largest value that the file can repeat."""
NESTED_VALUES = 32_000_000
"""The most values of one nested column in a row group, if they take less than a bit each."""


def megabytes(size: int) -> str:
    """A size for a message: `64 MB`."""
    return f"{size / 1_000_000:,.0f} MB"
