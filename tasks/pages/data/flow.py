"""The ledger of the data page: documents, bytes of text and tokens from stage to stage, by the stages' own statistics.

    documents  in = out + dropped + held out           text  in = out + dropped + held out + edited away

What does not add up is listed as a problem; nothing here reads a file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Json = dict[str, Any]
STAGES = ("ingest", "dedup", "filter", "decontaminate", "tokenize")
_AMOUNTS = (
    "documents_in",
    "documents_out",
    "documents_dropped",
    "documents_held_out",
    "text_in",
    "text_out",
    "text_dropped",
    "text_held_out",
    "text_edited",
    "tokens",
)


def flow(slices: Sequence[Mapping[str, Any]]) -> Json:
    """{sources: [{source, slices, stages}], stages, problems}: a row a stage, of each source and of all of them.

    A row: the amounts (documents; bytes of UTF-8 text as `text_…`; tokens), `reasons` (document counts) and `edits`.
    Text that ingest sets aside has no size; `text_edited` may be below 0, where placeholders are longer.
    """
    sources: dict[str, dict[str, Json]] = {}
    counted: dict[str, int] = {}
    total: dict[str, Json] = {}
    problems: list[str] = []
    for one in slices:
        counted[one["source"]] = counted.get(one["source"], 0) + 1
        before: Json | None = None
        for stage in STAGES:
            if stage not in one["stages"]:
                continue
            row = _row(stage, one["stages"][stage]["stats"])
            problems += _problems(f"{stage}, slice {one['number']} ({one['source']})", row, before)
            before = row
            for rows in (sources.setdefault(one["source"], {}), total):
                _add(rows.setdefault(stage, {"stage": stage, "reasons": {}, "edits": {}}), row)
    return {
        "sources": [
            {"source": name, "slices": counted[name], "stages": list(rows.values())}
            for name, rows in sources.items()
        ],
        "stages": list(total.values()),
        "problems": problems,
    }


def _row(stage: str, stats: Mapping[str, Any]) -> Json:
    row: Json = {
        "stage": stage,
        "documents_in": int(stats.get("documents_in", 0)),
        "documents_out": int(stats.get("documents_out", 0)),
        "documents_dropped": int(stats.get("documents_dropped", 0)),
        "documents_held_out": int(stats.get("documents_held_out", 0)),
        "reasons": {name: int(count) for name, count in stats.get("dropped_by_reason", {}).items()},
        "edits": _edits(stats),
    }
    came, out = stats.get("bytes_in"), stats.get("bytes_out", stats.get("bytes_in"))
    if out is not None:
        row["text_out"] = int(out)
    if (
        stage != "ingest" and came is not None and out is not None
    ):  # ingest's are of files, as they lie on disk
        row["text_in"], row["text_held_out"] = int(came), int(stats.get("bytes_held_out", 0))
        row["text_edited"] = int(stats.get("bytes_cut", stats.get("bytes_removed", 0)))
        gone = row["text_in"] - row["text_out"] - row["text_held_out"] - row["text_edited"]
        row["text_dropped"] = int(stats.get("bytes_dropped", gone))
    if stats.get("tokens") is not None:
        row["tokens"] = int(stats["tokens"])
    return row


def _edits(stats: Mapping[str, Any]) -> dict[str, int]:
    edits = {name: int(count) for name, count in stats.get("edits", {}).items()}
    return edits | ({"repeated_lines": int(stats["lines_removed"])} if stats.get("lines_removed") else {})


def _problems(place: str, row: Json, before: Json | None) -> list[str]:
    found = []
    came, left = row["documents_in"], row["documents_dropped"] + row["documents_held_out"]
    if came != row["documents_out"] + left:
        found.append(
            f"{place}: {came} documents in, but {row['documents_out']} out and {left} dropped or held out"
        )
    if before is not None and before["documents_out"] != came:
        found.append(f"{place}: {came} documents in, but the stage before gave {before['documents_out']}")
    if "text_in" in row:
        rest = sum(row[f"text_{name}"] for name in ("out", "dropped", "held_out", "edited"))
        if row["text_in"] != rest:
            found.append(
                f"{place}: {row['text_in']} bytes of text in, but {rest} out, dropped, held out or edited"
            )
        if before is not None and before.get("text_out", row["text_in"]) != row["text_in"]:
            found.append(
                f"{place}: {row['text_in']} bytes of text in, but the stage before gave {before['text_out']}"
            )
    return found


def _add(total: Json, row: Json) -> None:
    for name in _AMOUNTS:
        if name in row:
            total[name] = total.get(name, 0) + row[name]
    for kind in ("reasons", "edits"):
        for name, count in row[kind].items():
            total[kind][name] = total[kind].get(name, 0) + count


def packing(packs: Sequence[Mapping[str, Any]]) -> Json:
    """{rounds, sources}: each round's sequences, padding and cuts; each source's tokens at the end of the last round.

    Concatenate-and-cut over the same windows pads nothing; it cuts every document that is cut here, too, for they are
    longer than a sequence, and `concatenation_cuts` more.
    """
    rounds = []
    sources: dict[str, Json] = {}
    for pack in packs:
        stats = pack["stats"]
        documents = max(int(stats["documents_whole"]) + int(stats["documents_cut"]), 1)
        more = int(stats.get("concatenation_cuts", 0))
        places = int(stats["tokens"]) + int(stats["padding"])
        rounds.append(
            {
                "round": pack["round"],
                "sequences": int(stats["sequences"]),
                "sequence_length": places // max(int(stats["sequences"]), 1),
                "tokens": int(stats["tokens"]),
                "padding": int(stats["padding"]),
                "padding_share": stats["padding_fraction"],
                "documents": documents,
                "cut": int(stats["documents_cut"]),
                "cut_share": stats["documents_cut"] / documents,
                "concatenation_cut": int(stats["documents_cut"]) + more,
                "concatenation_cut_share": (stats["documents_cut"] + more) / documents,
            }
        )
        for name, one in stats["sources"].items():
            row = sources.setdefault(name, {"source": name, "rounds": []})
            row["rounds"].append({"round": pack["round"], "tokens": int(one["tokens"])})
            row |= {key: one[key] for key in _LEDGER if key in one}
    return {"rounds": rounds, "sources": list(sources.values())}


_LEDGER = (
    "epochs",
    "tokens_available",
    "tokens_placed",
    "tokens_carried",
    "tokens_not_taken",
    "tokens_repeated",
)


def contamination(slices: Sequence[Mapping[str, Any]], read: Any) -> list[Json]:
    """What `decontaminate` found: a row a benchmark and source, summed over slices. `read` gives a part's JSON."""
    rows: dict[tuple[str, str], Json] = {}
    for one in slices:
        part = one["stages"].get("decontaminate", {}).get("hits")
        for name, entry in sorted(read(part).items()) if part is not None else ():
            row = rows.setdefault(
                (name, one["source"]),
                {"benchmark": name, "source": one["source"], "questions_found": 0, "documents_found": 0},
            )
            row |= {key: int(entry[key]) for key in ("questions", "unchecked")}
            for key in ("questions_found", "documents_found"):
                row[key] += int(entry[key])
    return list(rows.values())
