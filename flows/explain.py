"""What became of a document: read from the tables that the stages left, nothing guessed."""

from __future__ import annotations

from storage.catalog import Catalog

_WAY = ("ingest", "dedup", "filter", "decontaminate")


def fate(catalog: Catalog, document: int) -> str:
    """A few lines: the artifacts that hold the document, and the stage that dropped it with reason, value and detail."""
    lines = [f"document {document}"]
    for stage in _WAY:
        for part in ("documents", "holdout"):
            for row in _holding(catalog, stage, part, document):
                words = "held out for measuring" if part == "holdout" else "kept"
                lines.append(f"  {stage:<14} {words:<24} {row['path']}  (source {row['source']})")
        for row in catalog.sql(
            "select d.*, a.path as artifact from dropped d join artifacts a "
            "on contains(d.filename, a.path || '/') where d.id = ? and a.stage = ?",
            [document, stage],
        ):
            value = "" if row["value"] is None else f" ({row['value']:.4g})"
            lines.append(f"  {stage:<14} dropped: {row['reason']}{value}  {row['detail']}  {row['artifact']}")
    if len(lines) == 1:
        lines.append(f"  no stage in {catalog.store.root} has seen it")
    return "\n".join(lines) + "\n"


def _holding(catalog: Catalog, stage: str, part: str, document: int) -> list[dict[str, str]]:
    files = catalog.sql(
        "select f.path as file, a.path from files f join artifacts a using (key) where a.stage = ? and f.part = ?",
        [stage, part],
    )
    by_file = {str(catalog.store.root / row["path"] / row["file"]): row["path"] for row in files}
    if not by_file:
        return []
    found = catalog.sql(
        "select distinct filename, source from read_parquet(?, filename = true) where id = ?",
        [list(by_file), document],
    )
    return [{"path": by_file[row["filename"]], "source": row["source"]} for row in found]
