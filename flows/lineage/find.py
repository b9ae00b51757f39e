"""Documents found by what a person remembers of them: a title, a file, an address, or words of the text."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from storage.catalog import Catalog

MOST = 12
"""Documents that are shown."""
_AROUND = 36
"""Characters of text on both sides of the words that were found."""


@dataclass(frozen=True)
class Found:
    """A document: its id, its source, and where the words are (`text`, or a field of its `meta`), with what is around
    them."""

    id: int
    source: str
    where: str
    around: str


def find(catalog: Catalog, words: str, most: int = MOST) -> list[Found]:
    """Documents as they were read that hold `words` in a field of their `meta` (first) or in their text.

    Letters' case does not count, and any white space stands for any other. At most `most` are given, by source and id.
    """
    files = catalog.sql(
        "select a.path || '/' || f.path as file from files f join artifacts a using (key) "
        "where a.stage = 'ingest' and f.part = 'documents'"
    )
    paths = [str(catalog.store.root / row["file"]) for row in files]
    pattern = r"\s+".join(re.escape(word) for word in words.split())
    if not paths or not pattern:
        return []
    rows = catalog.sql(
        "select distinct id, source, meta, "
        f"regexp_extract(text, '(?is).{{0,{_AROUND}}}' || $1 || '.{{0,{_AROUND}}}') as around, "
        "coalesce(regexp_matches(meta, '(?is)' || $1), false) as by_meta "
        "from read_parquet($2) where regexp_matches(text, '(?is)' || $1) or regexp_matches(meta, '(?is)' || $1) "
        "order by by_meta desc, source, id limit $3",
        [pattern, paths, most],
    )
    return [_found(row, re.compile(pattern, re.IGNORECASE)) for row in rows]


def shown(found: list[Found], words: str, most: int = MOST) -> str:
    """A line for each document, and how to go on from there."""
    lines = [f"{one.id:<21} {one.source:<14} {one.where}: {one.around}" for one in found]
    more = ", and maybe more: say more of its words" if len(found) >= most else ""
    counted = "1 document holds" if len(found) == 1 else f"{len(found)} documents hold"
    return "\n".join([f"{counted} “{words}”{more}; `onward explain ID` follows one", *lines]) + "\n"


def _found(row: dict[str, object], pattern: re.Pattern[str]) -> Found:
    fields = json.loads(str(row["meta"])) if row["by_meta"] and row["meta"] else {}
    for name, value in fields.items():
        if isinstance(value, str) and pattern.search(value):
            return Found(int(str(row["id"])), str(row["source"]), name, " ".join(value.split())[:100])
    around = " ".join(str(row["around"]).split())
    return Found(int(str(row["id"])), str(row["source"]), "text" if around else "meta", around)
