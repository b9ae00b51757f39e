"""A look at a folder's text before a run: what can be read, how much it is, and some documents of it.

Nothing is written. Every file's first bytes are looked at; the texts of at most `_FILES` of them are read.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import polars as pl
import pyarrow.parquet as pq

from tasks.corpus.reading.batches import Unit
from tasks.corpus.reading.kinds import COMPRESSED_SUFFIXES, refusal
from tasks.corpus.reading.origins import survey_file
from tasks.corpus.reading.readers import read_unit
from tasks.corpus.reading.streams import opened

_FILES = 200
_DOCUMENTS = 1000
_BYTES_OF_FILE = 2_000_000
_RECORDS = 20
USUAL_FIELD = "text"


@dataclass
class Folder:
    """What a folder holds. `patterns` match the readable files and no others; `size` is in bytes of text, as estimated."""

    patterns: list[str]
    files: int
    size: int
    text_field: str
    texts: list[str]
    documents: int
    """Number of documents, as estimated from the sample."""
    refused: dict[tuple[str, str], list[Path]] = field(default_factory=dict)
    """Files that are not read, by what they are and the way out."""
    notes: tuple[str, ...] = ()
    """What else a person should know of it."""


def look_into(folder: Path, seed: int = 0) -> Folder:
    """Look at all files below a folder, hidden ones and hidden folders aside. `patterns` are relative to it.

    If some files of a suffix are readable and others are not, the readable ones stand in `patterns` by their names.
    """
    found: dict[str, list[Path]] = {}
    refused: dict[tuple[str, str], list[Path]] = {}
    mixed: set[str] = set()
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if hidden or not path.is_file() or path.stat().st_size == 0:
            continue
        suffix = suffix_of(path)
        why = refusal(path)
        if why is None and suffix:
            found.setdefault(suffix, []).append(path)
        else:
            mixed.add(suffix)
            refused.setdefault(why or ("text without a suffix", "call it .txt"), []).append(path)
    patterns: list[str] = []
    for suffix, paths in found.items():
        names = [path.relative_to(folder).as_posix() for path in paths]
        patterns += names if suffix in mixed else [f"**/*{suffix}"]
    files = [path for paths in found.values() for path in paths]
    text_field = field_of(files)
    size = sum(sum(survey_file(path, text_field).estimates) for path in files)
    texts, read = texts_of(files, text_field, seed)
    mean = read / len(texts) if texts else 0.0
    return Folder(patterns, len(files), size, text_field, texts, round(size / mean) if mean else 0, refused)


def suffix_of(path: Path) -> str:
    """The suffix as it is written, with the one before it if the file is compressed: `.jsonl.gz`."""
    *_, inner, outer = ["", "", *path.suffixes]
    return inner + outer if outer.lower() in COMPRESSED_SUFFIXES else outer


def field_of(files: list[Path]) -> str:
    """The field that holds the text: `text` if any file has it, else the one with the longest values."""
    sizes: Counter[str] = Counter()
    for path in files[:_FILES]:
        for record in _records(path):
            sizes.update({name: len(value) for name, value in record.items() if isinstance(value, str)})
    return USUAL_FIELD if USUAL_FIELD in sizes or not sizes else sizes.most_common(1)[0][0]


def _records(path: Path) -> Iterator[dict[str, object]]:
    """The first records of a file; none of a text file."""
    kind = survey_file(path, USUAL_FIELD).kind
    if kind == "parquet":
        batch = next(pq.ParquetFile(path).iter_batches(_RECORDS), None)
        yield from batch.to_pylist() if batch is not None else []
    elif kind == "lines":
        with opened(path) as stream:
            head = next(iter(stream), b"")
        for line in head.split(b"\n")[:_RECORDS]:
            try:
                record = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue
            if isinstance(record, dict):
                yield record


def texts_of(files: list[Path], text_field: str, seed: int) -> tuple[list[str], int]:
    """Documents from files drawn at random, and their bytes."""
    rng = random.Random(seed)
    chosen = rng.sample(files, min(_FILES, len(files)))
    each = -(-_DOCUMENTS // max(1, len(chosen)))
    texts: list[str] = []
    for path in chosen:
        kept, size = 0, 0
        for batch in read_unit(Unit(0, path.name, survey_file(path, text_field).kind, 0, path), text_field):
            some = pl.Series(batch.texts.to_pylist()[: each - kept], dtype=pl.String)
            texts += some.to_list()
            kept, size = kept + len(some), size + int(some.str.len_bytes().sum())
            if kept >= each or size > _BYTES_OF_FILE:
                break
    return texts, sum(len(text.encode()) for text in texts)
