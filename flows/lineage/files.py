"""What became of a file that documents were read out of, and of one page of it, from the tables of `extract` and ingest."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from storage.catalog import Catalog
from tasks.documents.kinds import NAMES

_PAGE = re.compile(r"(?P<place>.+)#(?P<page>[0-9]{1,9})")
_MOST = 12
_SHOWN = 300


@dataclass(frozen=True)
class _Row:
    """A row of `fates`: a document, a page of it, or what was lost."""

    artifact: str
    key: str
    source: str
    file: str
    place: str
    kind: str
    page: int | None
    begin: int | None
    end: int | None
    reason: str | None
    message: str | None


def of_file(catalog: Catalog, asked: str) -> tuple[str, list[int]] | None:
    """What `extract` made of a file (`report.pdf`, or a path that ends so), an entry (`books.zip!one.pdf`) or a page
    (`report.pdf#12`), and the ids of the documents that came of it. None where no such file was read.
    """
    rows = _rows(catalog, asked)
    page: int | None = None
    if not rows and (found := _PAGE.fullmatch(asked)):
        rows, page = _rows(catalog, found["place"]), int(found["page"])
    if not rows:
        return None
    rows = [row for row in rows if row.artifact == rows[-1].artifact]  # of the newest artifact
    ids = _ids(catalog, rows)
    told = _of_page(catalog, rows, page, ids) if page is not None else _of_file(rows)
    told += _set_aside(catalog, rows)
    lines = [f"{asked}, of source {rows[0].source}  {rows[0].artifact}", *told]
    return "\n".join(lines) + "\n", sorted({ids[row.place] for row in rows if row.place in ids})


def _rows(catalog: Catalog, place: str) -> list[_Row]:
    files = catalog.sql(
        "select a.path || '/' || f.path as file, a.path, a.key, json_extract_string(a.config, '$.name') as source "
        "from files f join artifacts a using (key) where a.stage = 'extract' and f.part = 'fates' order by a.started"
    )
    found = []
    for one in files:
        rows = catalog.sql(
            "select * from read_parquet($1) where file = $2 or place = $2 or ends_with(file, '/' || $2) or "
            "ends_with(place, '!' || $2) order by place, page nulls first",
            [str(catalog.store.root / one["file"]), place],
        )
        found += [_Row(one["path"], one["key"], one["source"], **row) for row in rows]
    return found


def _ids(catalog: Catalog, rows: list[_Row]) -> dict[str, int]:
    """The ids that ingest gave to the documents, by place. Asked is ingest of this very extract, and of no other."""
    files = _of_ingest(catalog, rows[0].key, "documents")
    places = _places(rows)
    if not files or not places:
        return {}
    found = catalog.sql(
        "select distinct id, json_extract_string(meta, '$.file') as place from read_parquet($1) "
        "where source = $2 and place in (select unnest($3::varchar[]))",
        [files, rows[0].source, places],
    )
    return {str(row["place"]): int(row["id"]) for row in found}


def _set_aside(catalog: Catalog, rows: list[_Row]) -> list[str]:
    """Documents that ingest set aside: by a condition of the source, or as no stage takes such a text."""
    files, places = _of_ingest(catalog, rows[0].key, "dropped"), _places(rows)
    if not files or not places:
        return []
    found = catalog.sql(
        "select distinct reason, detail, place from read_parquet($1), (select unnest($2::varchar[]) as place) "
        "where starts_with(detail, place || ': ') order by place, detail",
        [files, places],
    )
    lines = [f"  ingest         dropped: {row['reason']}  {row['detail']}" for row in found[:_MOST]]
    return [*lines, *([f"  {'':<14} and {len(found) - _MOST:,} more"] if len(found) > _MOST else [])]


def _places(rows: list[_Row]) -> list[str]:
    """Where the documents are that were read."""
    return sorted({row.place for row in rows if row.page is None and row.reason is None})


def _of_ingest(catalog: Catalog, extract: str, part: str) -> list[str]:
    """The files of a part of each ingest that read this artifact of `extract`."""
    files = catalog.sql(
        "select distinct a.path || '/' || f.path as file from files f join artifacts a using (key) "
        "join inputs i on i.key = a.key where a.stage = 'ingest' and f.part = $1 and i.from_key = $2 order by file",
        [part, extract],
    )
    return [str(catalog.store.root / row["file"]) for row in files]


def _of_file(rows: list[_Row]) -> list[str]:
    documents = [row for row in rows if row.page is None and row.reason is None]
    lost = [row for row in rows if row.reason is not None]
    lines = []
    for row in documents[:_MOST]:
        pages = [
            other
            for other in rows
            if other.place == row.place and other.page is not None and not other.reason
        ]
        of = f" on {len(pages):,} page{'s' * (len(pages) != 1)}" if pages else ""
        lines.append(
            f"  extract        read as {NAMES.get(row.kind, row.kind)}: {row.end or 0:,} characters{of}  {row.place}"
        )
    if len(documents) > _MOST:
        lines.append(f"  {'':<14} and {len(documents) - _MOST:,} documents more")
    for row in lost[:_MOST]:
        where = f", page {row.page}" if row.page is not None else ""
        lines.append(f"  extract        lost: {row.reason}  {row.place}{where}: {row.message}")
    if len(lost) > _MOST:
        lines.append(f"  {'':<14} and {len(lost) - _MOST:,} more that were lost")
    return lines


def _of_page(catalog: Catalog, rows: list[_Row], page: int, ids: dict[str, int]) -> list[str]:
    own = [row for row in rows if row.page == page]
    if not own:
        last = max((row.page for row in rows if row.page is not None), default=None)
        has = "it has no pages" if last is None else f"its pages go up to {last}"
        return [f"  extract        no page {page}: {has}"]
    lines = []
    for row in own:
        if row.reason is not None:
            lines.append(f"  extract        page {page} lost: {row.reason}  {row.message}")
            continue
        begin, end = row.begin or 0, row.end or 0
        lines.append(
            f"  extract        page {page} read: {end - begin:,} characters, from character {begin:,} of its document"
        )
        text = _text(catalog, row)
        if text is None:
            continue
        shown = " ".join(text[begin:end].split())
        lines.append(f"  {'':<14} “{shown[:_SHOWN]}{' …' if len(shown) > _SHOWN else ''}”")
        if (document := ids.get(row.place)) is not None:
            lines += _kept(catalog, document, text[begin:end])
    return lines


def _text(catalog: Catalog, row: _Row) -> str | None:
    paths = [str(path) for path in (catalog.store.root / row.artifact).glob("documents/*/*.parquet")]
    found = catalog.sql(
        "select text from read_parquet($1) where json_extract_string(meta, '$.file') = $2", [paths, row.place]
    )
    return str(found[0]["text"]) if found else None


def _kept(catalog: Catalog, document: int, page: str) -> list[str]:
    """How much of a page is in what a later stage holds of its document."""
    wanted = [line.strip() for line in page.split("\n") if line.strip()]
    lines = []
    for stage in ("dedup", "filter", "decontaminate"):
        for part, words in (("documents", "kept"), ("holdout", "held out")):
            for text in _texts(catalog, stage, part, document):
                there = {line.strip() for line in text.split("\n")}
                left = sum(line in there for line in wanted)
                lines.append(f"  {stage:<14} {left:,} of the page's {len(wanted):,} lines {words}")
    return lines


def _texts(catalog: Catalog, stage: str, part: str, document: int) -> list[str]:
    files: list[dict[str, Any]] = catalog.sql(
        "select a.path || '/' || f.path as file from files f join artifacts a using (key) where a.stage = ? and f.part = ?",
        [stage, part],
    )
    paths = [str(catalog.store.root / row["file"]) for row in files]
    if not paths:
        return []
    found = catalog.sql("select distinct text from read_parquet($1) where id = $2", [paths, document])
    return [str(row["text"]) for row in found]
