"""The history of a document, read from the tables of the stages. Nothing is guessed."""

from __future__ import annotations

from flows.lineage.edits import edited, emptied, held_questions
from flows.lineage.exposure import Seen, seen_by
from storage.catalog import Catalog
from storage.errors import DamagedArtifact
from tasks import stages

_WAY = stages.CORPUS[1:-1]
"""From the first stage that gives documents their ids."""
_OTHER = {
    "held_out_overlap": "it has this share of its text, or of the other's, in common with held-out document ",
    "copy_after_filter": "the filter's edits made it a copy of document ",
}
"""What the detail of a reason is."""


def fate(catalog: Catalog, document: int) -> str:
    """A few lines about a document.

    They name the artifacts that hold it and their changes, the stage that dropped it with reason, value and detail, and the
    models trained on it, with the number of times. Raises DamagedArtifact if what would tell it is damaged.
    """
    store = catalog.store
    for path in store.unreadable(stages.NAMES):
        store.read(path)  # it raises the fitting error
    for artifact in store.artifacts():
        store.look(artifact.stage, artifact.key)
    try:
        return _told_of(catalog, document)
    except Exception as error:  # what damaged bytes make of a reader is not to be foreseen
        for artifact in store.artifacts():
            if problems := store.verify(artifact):
                name = artifact.path.relative_to(store.root)
                raise DamagedArtifact(
                    f"what became of document {document} cannot be told: {name}: {'; '.join(problems[:5])}"
                ) from error
        raise


def _told_of(catalog: Catalog, document: int) -> str:
    lines = [f"document {document}"]
    for stage in _WAY:
        parts = {part: _holding(catalog, stage, part, document) for part in ("documents", "holdout")}
        for part, rows in parts.items():
            for row in rows:
                words = "held out for measuring" if part == "holdout" else "kept"
                if part == "holdout" and row["path"] in {kept["path"] for kept in parts["documents"]}:
                    words = "a piece is held out"
                lines.append(f"  {stage:<14} {words:<24} {row['path']}  (source {row['source']})")
                lines += [f"  {'':<14} {change}" for change in edited(catalog, stage, row["path"], document)]
        for row in catalog.sql(
            "select d.*, a.path as artifact from dropped d join artifacts a "
            "on contains(d.filename, a.path || '/') where d.id = ? and a.stage = ?",
            [document, stage],
        ):
            value = "" if row["value"] is None else f" ({row['value']:.4g})"
            detail = f"{_OTHER.get(row['reason'], '')}{row['detail']}"
            lines.append(f"  {stage:<14} dropped: {row['reason']}{value}  {detail}  {row['artifact']}")
            if row["reason"] == "repeated_paragraphs":
                lines += [f"  {'':<14} {line}" for line in emptied(catalog, row["artifact"], document)]
    if len(lines) == 1:
        lines.append(f"  no stage in {catalog.store.root} has seen it")
        return "\n".join(lines) + "\n"
    for question in held_questions(catalog, document):
        lines.append(
            f"  {'contamination':<14} still in the corpus, with a question found afterwards: {question}"
        )
    seen = seen_by(catalog.store, document)
    names = _names(catalog) if seen else {}
    lines += [f"  {_told(one, names)}" for one in seen] or ["  no model was trained on text that holds it"]
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


def _told(seen: Seen, names: dict[str, str]) -> str:
    """The line of one model. A document read in part, or in several rounds, is seen a fractional number of times."""
    model = seen.model
    called = names.get(model.key) or f"{model.stats['tokens_seen']:,} tokens seen"
    path = f"{model.stage}/{model.key[:16]}"
    if not seen.trained:
        return f"{'model':<14} {'never seen':<24} {path}  ({called})"
    times = f"seen {seen.times:.4g} ×"
    of = f"{seen.trained:,} targets in {seen.pieces:,} pieces; it has {seen.tokens:,} tokens"
    return f"{'model':<14} {times:<24} {path}  ({called}; {of})"


def _names(catalog: Catalog) -> dict[str, str]:
    """The names of models by key, taken from the reports of runs."""
    found: dict[str, str] = {}
    for report in catalog.store.artifacts("report"):
        for model in report.manifest.inputs.get("models") or ():
            found.setdefault(str(model["key"]), str(model["name"]))
    return found
