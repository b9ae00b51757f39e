"""What stages changed in a document that they kept: removed lines, masked text, and questions that it still holds.

This is read from the texts and tables of the stages; nothing is guessed. Lines are named only if removing them from the
text before gives exactly the text after. Rules and placeholders are named only if the stage's own rules, applied again,
give that text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from storage.catalog import Catalog
from tasks.corpus.rules import pii

SHOWN_LINES = 8
LINE_CHARACTERS = 160
"""At most SHOWN_LINES removed lines are shown, each cut to this many characters."""

_MASKED = {
    "email": ("e-mail addresses", pii.EMAIL),
    "ip": ("IP addresses", pii.IP),
    "phone": ("telephone numbers", pii.PHONE),
}


@dataclass(frozen=True)
class Cut:
    """A removed line, and, if there are several rules, the rule that removed it."""

    line: str
    rule: str = ""


def edited(catalog: Catalog, stage: str, path: str, document: int) -> list[str]:
    """Lines that describe what the artifact at `path` (relative to the store) changed in the document; empty if nothing."""
    if stage == "filter":
        return _filtered(catalog, path, document)
    if stage == "dedup":
        return _deduplicated(catalog, path, document)
    return []


def emptied(catalog: Catalog, path: str, document: int) -> list[str]:
    """The lines of a document that dedup dropped because each line was in an earlier document."""
    text = _given(catalog, path, document)
    return _shown([Cut(line) for line in text.split("\n") if line.strip()]) if text is not None else []


def held_questions(catalog: Catalog, document: int) -> list[str]:
    """`benchmark:row` of the questions that were found later in a document that is still in the corpus."""
    found = set()
    for artifact in catalog.store.artifacts("contamination"):
        path = str(artifact.path.relative_to(catalog.store.root))
        name = artifact.manifest.inputs["benchmark"]["benchmark"]
        found |= {f"{name}:{row['row']}" for row in _rows(catalog, path, "found", "row", document)}
    return sorted(found)


def _deduplicated(catalog: Catalog, path: str, document: int) -> list[str]:
    found = []
    before, after = _given(catalog, path, document), _text(catalog, path, document)
    for row in _rows(catalog, path, "edited", "lines, bytes", document):
        told = f"edited (lines that stood in earlier documents: {row['lines']:,}): {row['bytes']:,} bytes taken out"
        cuts = None
        if before is not None and after is not None:
            told += f", {len(before):,} characters in, {len(after):,} out"
            cuts = _missing(before.split("\n"), after.split("\n"))
        found += [told, *_shown(cuts if cuts is not None and len(cuts) == row["lines"] else [])]
    return found


def _missing(before: Sequence[str], after: Sequence[str]) -> list[Cut] | None:
    """The removed lines; None if the text changed in another way.

    A repeated line is removed wherever it appears later, so the first equal line is the one that stayed.
    """
    gone, at = [], 0
    for line in before:
        if at < len(after) and line == after[at]:
            at += 1
        else:
            gone.append(Cut(line))
    return gone if at == len(after) else None


def _filtered(catalog: Catalog, path: str, document: int) -> list[str]:
    one, two = _given(catalog, path, document), _text(catalog, path, document)
    if one is None or two is None or one == two:
        return []
    said, cuts = _by_rules(catalog, path, one, two) or (_by_looks(one, two), [])
    return [
        f"edited ({', '.join(said) or 'white space'}): {len(one):,} characters in, {len(two):,} out",
        *_shown(cuts),
    ]


def _by_rules(catalog: Catalog, path: str, one: str, two: str) -> tuple[list[str], list[Cut]] | None:
    """What the artifact's own rules do to its input text; None if the result is not the text that the artifact holds."""
    import numpy as np
    import polars as pl

    from tasks.corpus import filter as stage
    from tasks.corpus.rules import c4
    from tasks.corpus.rules.rule import TextBatch

    (made,) = catalog.sql("select version, config from artifacts where path = ?", [path])
    if made["version"] != stage.VERSION:
        return None
    masked: dict[str, int] = {}
    cuts: list[Cut] = []
    citations, text = 0, one
    for family in stage.FilterConfig.model_validate(json.loads(made["config"])).families():
        if family.edit is None:
            continue
        if family is not pii.FAMILY:
            # line rules look at one line only, so each line is tested as a text of its own
            lines = [line for line in text.splitlines() if line.strip()]
            left = family.edit(TextBatch(pl.Series(lines, dtype=pl.String)), np.ones(len(lines), bool)).texts
            for line, kept in zip(lines, left.to_list(), strict=True):
                counts = {} if kept else family.edit(TextBatch(pl.Series([line])), np.ones(1, bool)).counts
                rules = [name for name, count in counts.items() if count.any()]
                cuts += [Cut(line, rule) for rule in rules]
                citations += 0 if rules else len(re.findall(rf"\[{c4.CITATION.strip('^$')}\]", line))
        change = family.edit(TextBatch(pl.Series([text])), np.ones(1, bool))
        text = change.texts[0]
        masked |= {kind: int(count.sum()) for kind, count in change.counts.items() if kind in pii.KINDS}
    if text != two:
        return None
    said = [f"{_MASKED[kind][0]} masked: {count:,}" for kind, count in masked.items() if count]
    said += [f"lines cut: {len(cuts):,}"] if cuts else []
    said += [f"citations cut: {citations:,}"] if citations else []
    return said, cuts


def _by_looks(one: str, two: str) -> list[str]:
    """The changes that a comparison of the two texts shows."""
    counts = {name: two.count(sign) - one.count(sign) for name, sign in _MASKED.values()}
    said = [f"{name} masked: {count:,}" for name, count in counts.items() if count > 0]
    lines = len(one.splitlines()) - len(two.splitlines())
    return [*said, f"lines cut: {lines:,}"] if lines > 0 else said or ["citations cut, or white space"]


def _shown(cuts: Sequence[Cut]) -> list[str]:
    """The first removed lines, without personal data and safe for a terminal."""
    from tasks.pages.data.examples import visible

    told = []
    for cut in cuts[:SHOWN_LINES]:
        line = visible(pii.mask(cut.line)[0].expandtabs(1).strip())
        line = line if len(line) <= LINE_CHARACTERS else line[:LINE_CHARACTERS].rstrip() + " …"
        told.append(f"− {line}" + (f"  ({cut.rule})" if cut.rule else ""))
    more = len(cuts) - len(told)
    return [*told, f"− and {more:,} more"] if more else told


def _text(catalog: Catalog, path: str, document: int) -> str | None:
    """The document's text in the artifact."""
    rows = _rows(catalog, path, "documents", "text", document)
    return rows[0]["text"] if rows else None


def _given(catalog: Catalog, path: str, document: int) -> str | None:
    """The document's text as input of the artifact, if the store still has it."""
    given = catalog.sql(
        "select b.path from artifacts a join inputs i using (key) join artifacts b on b.key = i.from_key "
        "where a.path = ? and i.part = 'documents'",
        [path],
    )
    return _text(catalog, given[0]["path"], document) if given else None


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
