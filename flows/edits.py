"""What stages did to a document that they kept: what they took out of its text or masked in it, and what it still holds.

Read from texts and tables that the stages left, nothing guessed.
"""

from __future__ import annotations

from typing import Any

from storage.catalog import Catalog
from tasks.corpus.rules import pii

_MASKED = {"e-mail addresses": pii.EMAIL, "IP addresses": pii.IP, "telephone numbers": pii.PHONE}


def edited(catalog: Catalog, stage: str, path: str, document: int) -> list[str]:
    """What the artifact at `path` (relative to the store) changed in the document; empty where nothing."""
    if stage == "filter":
        return _rewritten(catalog, path, document)
    if stage == "dedup":
        return [
            f"edited (lines that stood in earlier documents: {row['lines']:,}): {row['bytes']:,} bytes taken out"
            for row in _rows(catalog, path, "edited", "lines, bytes", document)
        ]
    return []


def held_questions(catalog: Catalog, document: int) -> list[str]:
    """`benchmark:row` of the questions that were found in the document afterwards, with it still in the corpus."""
    found = set()
    for artifact in catalog.store.artifacts("contamination"):
        path = str(artifact.path.relative_to(catalog.store.root))
        name = artifact.manifest.inputs["benchmark"]["benchmark"]
        found |= {f"{name}:{row['row']}" for row in _rows(catalog, path, "found", "row", document)}
    return sorted(found)


def _rewritten(catalog: Catalog, path: str, document: int) -> list[str]:
    """The text as the filter was given it beside the text as it left it."""
    given = catalog.sql(
        "select b.path from artifacts a join inputs i using (key) join artifacts b on b.key = i.from_key "
        "where a.path = ? and i.part = 'documents'",
        [path],
    )
    before = (
        [row["text"] for row in _rows(catalog, given[0]["path"], "documents", "text", document)]
        if given
        else []
    )
    after = [row["text"] for row in _rows(catalog, path, "documents", "text", document)]
    if not before or not after or before[0] == after[0]:
        return []
    one, two = before[0], after[0]
    counts = {name: two.count(sign) - one.count(sign) for name, sign in _MASKED.items()}
    said = [f"{name} masked: {count:,}" for name, count in counts.items() if count > 0]
    lines = len(one.splitlines()) - len(two.splitlines())
    if lines > 0:
        said.append(f"lines cut: {lines:,}")
    elif not said:
        said.append("citations cut, or white space")
    return [f"edited ({', '.join(said)}): {len(one):,} characters in, {len(two):,} out"]


def _rows(catalog: Catalog, path: str, part: str, columns: str, document: int) -> list[dict[str, Any]]:
    files = catalog.sql(
        "select f.path as file from files f join artifacts a using (key) where a.path = ? and f.part = ?",
        [path, part],
    )
    paths = [
        str(catalog.store.root / path / row["file"]) for row in files if row["file"].endswith(".parquet")
    ]
    if not paths:
        return []
    return catalog.sql(f"select {columns} from read_parquet(?) where id = ?", [paths, document])
