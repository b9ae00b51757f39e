"""The data on the page: documents through the stages, benchmark questions in the corpus, packing and mixture."""

from __future__ import annotations

from typing import Any

from tasks.pages.blocks import Block, Cell, Heading, Table, Text

Json = dict[str, Any]


def data(facts: Json) -> list[Block]:
    """Documents and bytes through the stages, and whether they add up."""
    data = facts["data"]
    if not data["sources"]:
        return []
    rows: list[tuple[Cell, ...]] = []
    for source in data["sources"]:
        slices = source["slices"]
        rows.append((Cell(f"{source['source']} ({slices} slice{'s' if slices != 1 else ''})"),))
        rows += [_flow_row(stage) for stage in source["stages"]]
    head = (
        "stage",
        "documents in",
        "dropped",
        "held out",
        "documents out",
        "text out",
        "tokens",
        "dropped for",
    )
    verdict = Text(
        "Every document is accounted for: in every stage, in = out + dropped + held out, and each stage takes what "
        "the one before gave. Examples, lengths, scores and groups of copies are on the page of the stage data.",
        "note",
    )
    if data["problems"]:
        verdict = Text("Does not add up: " + "; ".join(data["problems"]) + ".", "warning")
    return [Heading(2, "What was done to the data"), Table(head, tuple(rows), notes=1), verdict]


def _flow_row(stage: Json) -> tuple[Cell, ...]:
    reasons = sorted(stage["dropped_by_reason"].items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{reason.replace('_', ' ')} {count:,}" for reason, count in reasons if count)
    return (
        Cell(stage["stage"]),
        *(_counted(stage.get(f"documents_{name}")) for name in ("in", "dropped", "held_out", "out")),
        Cell(f"{stage['bytes_out'] / 1e6:,.2f} MB" if stage.get("bytes_out") is not None else ""),
        _counted(stage.get("tokens")),
        Cell(shown),
    )


def _counted(value: int | None) -> Cell:
    return Cell("" if value is None else f"{value:,}")


def contamination(facts: Json) -> list[Block]:
    """Per benchmark: how many of its questions stand in the corpus."""
    if not facts["contamination"]:
        return []
    rows = tuple(
        (
            Cell(row["benchmark"]),
            Cell(f"{row['questions']:,}"),
            Cell(f"{row['unchecked']:,}"),
            Cell(f"{row['questions_found']:,}", "warn" if row["questions_found"] else ""),
            Cell(f"{row['documents_found']:,}", below="still in it" if row.get("afterwards") else ""),
        )
        for row in facts["contamination"]
    )
    head = ("benchmark", "questions", "not looked for", "found in the corpus", "documents with them")
    note = (
        "Documents in which a question was found were dropped before training; a question found in two slices "
        "counts twice. Not looked for: too short."
    )
    if any(row.get("afterwards") for row in facts["contamination"]):
        note += " Still in it: of a benchmark that was not in corpus.decontaminate.benchmarks, counted afterwards."
    return [Heading(2, "Benchmark questions in the corpus"), Table(head, rows), Text(note, "note")]


def packing(facts: Json) -> list[Block]:
    """Each round's sequences, mixture and repetition."""
    if not facts["packing"]:
        return []
    rows = []
    repeated = []
    for one in facts["packing"]:
        mixture = ", ".join(f"{source['source']} {100 * source['share']:.1f} %" for source in one["sources"])
        read = [source for source in one["sources"] if "epochs" in source]
        epochs = ", ".join(f"{source['source']} {source['epochs']:.2f}" for source in read)
        again = [source for source in one["sources"] if source.get("epochs", 0) > 1]
        repeated += [f"{source['source']} {source['epochs']:.2f} ×" for source in again]
        rows.append(
            (
                Cell(str(one["round"])),
                _counted(one["sequences"]),
                _counted(one["tokens"]),
                Cell(f"{100 * one['padding_fraction']:.2f} %"),
                _counted(one["documents_whole"]),
                _counted(one["documents_cut"]),
                Cell(mixture),
                Cell(epochs),
            )
        )
    head = (
        "packed",
        "sequences",
        "tokens",
        "padding",
        "documents whole",
        "cut",
        "mixture",
        "text read, in epochs",
    )
    blocks: list[Block] = [Heading(2, "Packing and mixture"), Table(head, tuple(rows), notes=2)]
    if repeated:
        text = f"Text is repeated: {', '.join(dict.fromkeys(repeated))}. The budget asks for more than the sources hold."
        blocks.append(Text(text, "warning"))
    return blocks
