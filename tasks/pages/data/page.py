"""The words and tables of the data page, made of its facts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tasks.pages.blocks import Block, Heading, Picture, Quote, Table, Text
from tasks.pages.wording import count_text, size_text, words

Json = dict[str, Any]
_BAR = 10


def blocks_of(facts: Json, figures: Sequence[Json]) -> list[Block]:
    """The page, from top to bottom."""
    pictures = {one["name"]: Picture(one["name"], one["caption"]) for one in figures}
    blocks: list[Block] = [
        Heading(1, "What was done to the data"),
        Text(" ".join(facts["findings"]), "findings"),
    ]
    blocks += (
        [Text(f"Does not add up: {'; '.join(facts['flow']['problems'])}.", "warning")]
        if facts["flow"]["problems"]
        else []
    )
    blocks += _flow(facts, pictures)
    blocks += _reasons(facts, pictures)
    blocks += _lengths(facts, pictures)
    blocks += _scores(facts, pictures)
    blocks += _duplicates(facts)
    blocks += _contamination(facts)
    blocks += _packing(facts, pictures)
    blocks += _examples(facts)
    blocks.append(Text(_sampling(facts["sample"]), "note"))
    return blocks


def findings(facts: Json) -> list[str]:
    """What a reader should take away, in sentences made of the numbers."""
    stages = {stage["stage"]: stage for stage in facts["flow"]["stages"]}
    if "ingest" not in stages:
        return ["No document was read."]
    first, last = stages["ingest"], facts["flow"]["stages"][-1]
    read, left = first["documents_in"], last["documents_out"]
    sentences = [
        f"Of {read:,} documents that were read ({size_text(first['text_out'])} of text), {left:,} "
        f"({_share(left, read)}) are left for training ({size_text(last['text_out'])})."
    ]
    gone = [
        f"{stages[name]['documents_dropped']:,} {how}"
        for name, how in (
            ("ingest", "could not be read"),
            ("dedup", "were copies or near-copies"),
            ("filter", "failed a filter"),
            ("decontaminate", "held a benchmark's question"),
        )
        if name in stages and stages[name]["documents_dropped"]
    ]
    held = sum(stage["documents_held_out"] for stage in stages.values())
    gone += [f"{held:,} are held out for measuring"] if held else []
    sentences += [_listed(gone) + "."] if gone else []
    if last.get("tokens"):
        sentences.append(
            f"They are {count_text(last['tokens'])} tokens, {last['text_out'] / last['tokens']:.2f} bytes each."
        )
    rounds = facts["packing"]["rounds"]
    if rounds:
        tokens, padding = (sum(one[name] for one in rounds) for name in ("tokens", "padding"))
        sentences.append(f"{_share(padding, tokens + padding)} of the places in the sequences are padding.")
    again = [source for source in facts["packing"]["sources"] if source.get("epochs", 0) > 1]
    if again:
        sentences.append(
            "Text is repeated: " + _listed([f"{one['source']} {one['epochs']:.2f} ×" for one in again]) + "."
        )
    return sentences


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _share(part: float, whole: float) -> str:
    share = 100 * part / whole if whole else 0.0
    return f"{share:.0f} %" if share >= 10 else f"{share:.2g} %"


def _flow(facts: Json, pictures: dict[str, Picture]) -> list[Block]:
    sources = facts["flow"]["sources"]
    if not sources:
        return []
    rows: list[tuple[str, ...]] = []
    for source in sources:
        slices = source["slices"]
        rows.append((f"{source['source']} ({slices} slice{'s' if slices != 1 else ''})",))
        begun = source["stages"][0]["documents_in"]
        rows += [_flow_row(stage, begun) for stage in source["stages"]]
    head = (
        "stage",
        "documents in",
        "dropped",
        "held out",
        "documents out",
        "of those read",
        "text out",
        "text edited away",
        "tokens",
    )
    note = (
        "Documents in = out + dropped + held out, and text in = out + dropped + held out + edited away; each stage takes "
        "what the one before gave. Edited away: lines that C4's rules or dedup of paragraphs removed, less what "
        "placeholders for personal data are longer."
    )
    blocks: list[Block] = [Heading(2, "From the sources to training")]
    blocks += [pictures["flow"]] if "flow" in pictures else []
    return [*blocks, Table(head, tuple(rows)), Text(note, "note")]


def _flow_row(stage: Json, begun: int) -> tuple[str, ...]:
    edited = stage.get("text_edited", 0)
    return (
        stage["stage"],
        *(f"{stage[f'documents_{name}']:,}" for name in ("in", "dropped", "held_out", "out")),
        _bar(stage["documents_out"], begun),
        size_text(stage["text_out"]) if "text_out" in stage else "",
        f"{'−' if edited < 0 else ''}{size_text(abs(edited))}" if edited else "",
        f"{stage['tokens']:,}" if "tokens" in stage else "",
    )


def _bar(part: int, whole: int) -> str:
    full = round(_BAR * part / whole) if whole else 0
    return "█" * full + "░" * (_BAR - full)


def _reasons(facts: Json, pictures: dict[str, Picture]) -> list[Block]:
    rows = facts["reasons"]
    if not rows:
        return []
    edits = [
        (name, count) for stage in facts["flow"]["stages"] for name, count in stage["edits"].items() if count
    ]
    table = Table(
        ("reason", "stage", "documents", "of those asked"),
        tuple(
            (
                words(row["reason"]),
                row["stage"],
                f"{row['documents']:,}",
                _share(row["documents"], row["asked"]),
            )
            for row in rows
        ),
        2,
    )
    blocks: list[Block] = [Heading(2, "Why documents were dropped")]
    blocks += [pictures["reasons"]] if "reasons" in pictures else []
    blocks.append(table)
    if edits:
        said = ", ".join(
            f"{words(name)} {count:,}" for name, count in sorted(edits, key=lambda one: (-one[1], one[0]))
        )
        blocks.append(
            Text(
                f"In documents that were kept, edited: {said} (lines that were removed, by rule; placeholders by kind).",
                "note",
            )
        )
    return blocks


def _lengths(facts: Json, pictures: dict[str, Picture]) -> list[Block]:
    return [Heading(2, "Length of documents"), pictures["lengths"]] if "lengths" in pictures else []


def _scores(facts: Json, pictures: dict[str, Picture]) -> list[Block]:
    apart = _not_measured(facts)
    if "scores" not in pictures:
        return [Heading(2, "What the filter measured"), Text(apart, "note")] if apart else []
    rows = tuple(
        (
            words(score["rule"]),
            "not asked"
            if score["limit"] is None
            else f"at {'least' if score['least'] else 'most'} {score['limit']:g}",
            f"{score['median']:.3g}",
            "" if score["median_after"] is None else f"{score['median_after']:.3g}",
            "" if score["limit"] is None else _share(score["failing"], score["documents"]),
        )
        for score in facts["scores"]
    )
    documents = max(score["documents"] for score in facts["scores"])
    note = (
        f"Measured again on {documents:,} documents that the filter read, drawn by the hash of their ids, all rules on "
        "each; counts are on a logarithmic scale. Failing: what the rule alone would drop; a document that fails several "
        "is counted once, for the first, in the table above."
    )
    note += f" {apart}" if apart else ""
    head = ("rule", "kept", "median before", "median after", "failing")
    return [
        Heading(2, "What the filter measured"),
        pictures["scores"],
        Table(head, rows, 2),
        Text(note, "note"),
    ]


def _not_measured(facts: Json) -> str:
    sample, said = facts["sample"], []
    if sample["classifier"]:
        said.append(
            "What the filter's classifier scored is not measured again: education scores here are the sources' own alone."
        )
    if sample["longer"]:
        said.append(
            f"{sample['longer']:,} documents of more than {sample['longest'] / 1000:,g} KB are left out of the sample."
        )
    return " ".join(said)


def _duplicates(facts: Json) -> list[Block]:
    largest = facts["clusters"]["largest"]
    if not largest:
        return []
    groups = sum(row["clusters"] for row in facts["clusters"]["sizes"])
    documents = sum(row["clusters"] * (row["size"] - 1) for row in facts["clusters"]["sizes"])
    blocks: list[Block] = [
        Heading(2, "Copies and near-copies"),
        Text(
            f"{documents:,} documents were dropped for {groups:,} that came before them and stayed. The largest groups:"
        ),
        Table(
            ("document that stayed", "documents", "exact copies", "near-copies"),
            tuple(
                (row["kept"], f"{row['size']:,}", f"{row['exact']:,}", f"{row['near']:,}") for row in largest
            ),
        ),
    ]
    for pair in facts["pairs"]:
        blocks.append(Heading(3, f"Jaccard similarity {pair['similarity']:.3f} of their word n-grams"))
        blocks.append(
            Quote(f"dropped: document {pair['id']} of {pair['source']}, from where they differ", pair["text"])
        )
        blocks.append(Quote(f"stayed: document {pair['kept']}", pair["kept_text"]))
    return blocks


def _contamination(facts: Json) -> list[Block]:
    found, counted = facts["contamination"], facts["counted"]
    if not found and not counted:
        return []
    blocks: list[Block] = [Heading(2, "Benchmark questions in the text")]
    if found:
        rows = tuple((row["benchmark"], row["source"], *(f"{row[key]:,}" for key in _HITS)) for row in found)
        blocks.append(
            Table(
                ("benchmark", "source", "questions", "not checked", "found", "documents dropped"),
                rows,
                2,
            )
        )
        blocks.append(Text("Summed over slices: a question that stands in two counts twice.", "note"))
    if counted:
        rows = tuple((row["benchmark"], *(f"{row[key]:,}" for key in _HITS)) for row in counted)
        blocks.append(
            Text(
                "Counted afterwards: these were not looked for when the corpus was made, and what is found stays in it."
            )
        )
        blocks.append(Table(("benchmark", "questions", "not checked", "found", "documents with them"), rows))
    return blocks


_HITS = ("questions", "unchecked", "questions_found", "documents_found")


def _packing(facts: Json, pictures: dict[str, Picture]) -> list[Block]:
    rounds = facts["packing"]["rounds"]
    if not rounds:
        return []
    rows = tuple(
        (
            str(one["round"]),
            f"{one['sequences']:,}",
            f"{one['tokens']:,}",
            f"{100 * one['padding_share']:.2f} %",
            f"{one['documents']:,}",
            f"{one['cut']:,} ({_share(one['cut'], one['documents'])})",
            f"{one['concatenation_cut']:,} ({_share(one['concatenation_cut'], one['documents'])})",
        )
        for one in rounds
    )
    head = ("round", "sequences", "tokens", "padding", "documents", "cut", "cut by concatenate-and-cut")
    note = "Concatenate-and-cut over the same windows would pad nothing. Cut here: only what is longer than a sequence."
    blocks: list[Block] = [Heading(2, "Packing")]
    blocks += [pictures["tokens"]] if "tokens" in pictures else []
    return [*blocks, Table(head, rows), Text(note, "note")]


def _examples(facts: Json) -> list[Block]:
    blocks: list[Block] = []
    for row in facts["examples"]:
        blocks.append(Heading(3, f"{row['stage']}: {words(row['reason'])}"))
        for one in row["examples"]:
            said = [f"document {one['id']} of {one['source']}" if one["id"] else f"of {one['source']}"]
            said += [f"{one['characters']:,} characters"] if one["characters"] is not None else []
            said += (
                [f"measured {one['value']:.4g}"]
                if one["value"] is not None and one["text"] is not None
                else []
            )
            said += [one["detail"]] if one["detail"] and one["text"] is not None else []
            blocks.append(Quote("; ".join(said), one["detail"] if one["text"] is None else one["text"]))
    return [Heading(2, "Examples of what was dropped"), *blocks] if blocks else []


def _sampling(sample: Json) -> str:
    masked = " Personal data in the excerpts is replaced, as the filter does." if sample["masked"] else ""
    counts = "Counts of documents, text, tokens and reasons are of everything."
    if sample["shards"] == sample["shards_in_all"]:
        return f"{counts} Lengths are of all documents, too; examples are drawn by the hash of the document's id.{masked}"
    return (
        f"{counts} Lengths are of {sample['shards']} of {sample['shards_in_all']} files of documents, taken evenly over "
        f"all slices; examples are drawn by the hash of the document's id.{masked}"
    )
