"""The words and tables of the data page, from its facts."""

from __future__ import annotations

from collections.abc import Sequence

from storage.counts import rounded_count
from tasks.pages.blocks import Block, Heading, Picture, Quote, Table, Text
from tasks.pages.data.extracted import extracted_blocks
from tasks.pages.data.facts import DataFacts, Example, Sample
from tasks.pages.data.likeness import likeness_blocks
from tasks.pages.ledger import Amounts, BenchmarkHits, sources_of
from tasks.pages.wording import size_text, words

_BAR = 10
_MOST_LARGE = 5
_LAST_LOOK = {
    "benchmark_overlap": "held a benchmark's question",
    "held_out_overlap": "held a held-out text or were part of one",
    "copy_after_filter": "were copies once the filter had edited them",
}


def blocks_of(facts: DataFacts, drawn: Sequence[Picture]) -> list[Block]:
    """The page, from top to bottom."""
    pictures = {picture.name: picture for picture in drawn}
    blocks: list[Block] = [
        Heading(1, "What was done to the data"),
        Text(" ".join(facts.findings), "findings"),
    ]
    if facts.flow.problems:
        blocks.append(Text(f"Does not add up: {'; '.join(facts.flow.problems)}.", "warning"))
    blocks += _flow(facts, pictures)
    blocks += extracted_blocks(facts.extracted) if facts.extracted is not None else []
    blocks += _reasons(facts, pictures)
    blocks += _lengths(facts, pictures)
    blocks += _scores(facts, pictures)
    blocks += likeness_blocks(facts.likeness)
    blocks += _duplicates(facts)
    blocks += _contamination(facts)
    blocks += _packing(facts, pictures)
    blocks += _examples(facts)
    blocks.append(Text(_sampling(facts.sample), "note"))
    return blocks


def findings(facts: DataFacts) -> list[str]:
    """The main findings, in sentences made from the numbers."""
    stages = {stage.stage: stage for stage in facts.flow.stages}
    if "ingest" not in stages:
        return ["No document was read."]
    first, last = stages["ingest"], facts.flow.stages[-1]
    read, left = first.documents_in, last.documents_out
    sentences = [
        f"Of {read:,} documents that were read ({size_text(first.text_out or 0)} of text), {left:,} "
        f"({_share(left, read)}) are left for training ({size_text(last.text_out or 0)})."
    ]
    gone = [
        f"{stages[name].documents_dropped:,} {how}"
        for name, how in (
            ("extract", "files or parts of files could not be read"),
            ("ingest", "could not be read"),
            ("dedup", "were copies or near-copies"),
            ("filter", "failed a filter"),
        )
        if name in stages and stages[name].documents_dropped
    ]
    last_look = stages["decontaminate"].reasons if "decontaminate" in stages else {}
    gone += [f"{count:,} {how}" for reason, how in _LAST_LOOK.items() if (count := last_look.get(reason, 0))]
    held = sum(stage.documents_held_out or 0 for stage in stages.values())
    gone += [f"{held:,} are held out for measuring"] if held else []
    sentences += [_listed(gone) + "."] if gone else []
    if last.tokens:
        sentences.append(
            f"They are {rounded_count(last.tokens)} tokens, {(last.text_out or 0) / last.tokens:.2f} bytes each."
        )
    if facts.packing:
        tokens = sum(one.tokens for one in facts.packing)
        padding = sum(one.padding for one in facts.packing)
        sentences.append(f"{_share(padding, tokens + padding)} of the places in the sequences are padding.")
    read_often = {last.source: last.epochs or 0 for last, _ in sources_of(facts.packing)}
    again = [f"{source} {epochs:.2f} ×" for source, epochs in read_often.items() if epochs > 1]
    if again:
        sentences.append("Text is repeated: " + _listed(again) + ".")
    return sentences


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _share(part: float, whole: float) -> str:
    share = 100 * part / whole if whole else 0.0
    return f"{share:.0f} %" if share >= 10 else f"{share:.2g} %"


def _flow(facts: DataFacts, pictures: dict[str, Picture]) -> list[Block]:
    if not facts.flow.sources:
        return []
    rows: list[tuple[str, ...]] = []
    for one in facts.flow.sources:
        rows.append((f"{one.source} ({one.slices} slice{'s' if one.slices != 1 else ''})",))
        rows += [_flow_row(stage, one.stages[0].documents_in) for stage in one.stages]
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


def _flow_row(own: Amounts, begun: int) -> tuple[str, ...]:
    edited = own.text_edited or 0
    return (
        own.stage,
        f"{own.documents_in:,}",
        f"{own.documents_dropped:,}",
        f"{own.documents_held_out or 0:,}",
        f"{own.documents_out:,}",
        _bar(own.documents_out, begun),
        "" if own.text_out is None else size_text(own.text_out),
        f"{'−' if edited < 0 else ''}{size_text(abs(edited))}" if edited else "",
        "" if own.tokens is None else f"{own.tokens:,}",
    )


def _bar(part: int, whole: int) -> str:
    full = round(_BAR * part / whole) if whole else 0
    return "█" * full + "░" * (_BAR - full)


def _reasons(facts: DataFacts, pictures: dict[str, Picture]) -> list[Block]:
    rows = facts.reasons
    if not rows:
        return []
    edits = [(name, count) for stage in facts.flow.stages for name, count in stage.edits.items() if count]
    table = Table(
        ("reason", "stage", "documents", "of those asked"),
        tuple(
            (
                words(row.reason),
                row.stage,
                f"{row.documents:,}",
                _share(row.documents, row.asked),
            )
            for row in rows
        ),
        2,
    )
    blocks: list[Block] = [Heading(2, "Why documents were dropped")]
    blocks += [pictures["reasons"]] if "reasons" in pictures else []
    blocks.append(table)
    if facts.large:
        said = "; ".join(
            f"{words(one.rule)} drops {one.documents:,} of {one.asked:,} documents ({_share(one.documents, one.asked)}) of "
            f"slice {one.slice}, source {one.source}"
            for one in facts.large[:_MOST_LARGE]
        )
        more = (
            f"; and so in {len(facts.large) - _MOST_LARGE:,} more" if len(facts.large) > _MOST_LARGE else ""
        )
        blocks.append(Text(f"One rule takes a large share: {said}{more}. See the examples below.", "warning"))
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


def _lengths(facts: DataFacts, pictures: dict[str, Picture]) -> list[Block]:
    return [Heading(2, "Length of documents"), pictures["lengths"]] if "lengths" in pictures else []


def _scores(facts: DataFacts, pictures: dict[str, Picture]) -> list[Block]:
    apart = _not_measured(facts)
    if "scores" not in pictures:
        return [Heading(2, "What the filter measured"), Text(apart, "note")] if apart else []
    rows = tuple(
        (
            words(score.rule),
            "not asked"
            if score.limit is None
            else f"at {'least' if score.least else 'most'} {score.limit:g}",
            f"{score.median:.3g}",
            "" if score.median_after is None else f"{score.median_after:.3g}",
            "" if score.limit is None else _share(score.failing, score.documents),
        )
        for score in facts.scores
    )
    documents = max(score.documents for score in facts.scores)
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


def _not_measured(facts: DataFacts) -> str:
    sample, said = facts.sample, []
    if sample.classifier:
        said.append(
            "What the filter's classifier scored is not measured again: education scores here are the sources' own alone."
        )
    if sample.longer:
        said.append(
            f"{sample.longer:,} documents of more than {sample.longest / 1000:,g} KB are left out of the sample."
        )
    return " ".join(said)


def _duplicates(facts: DataFacts) -> list[Block]:
    largest = facts.clusters.largest
    if not largest:
        return []
    groups = sum(row.clusters for row in facts.clusters.sizes)
    documents = sum(row.clusters * (row.size - 1) for row in facts.clusters.sizes)
    blocks: list[Block] = [
        Heading(2, "Copies and near-copies"),
        Text(
            f"{documents:,} documents were dropped for {groups:,} that came before them and stayed. The largest groups:"
        ),
        Table(
            ("document that stayed", "documents", "exact copies", "near-copies"),
            tuple((row.kept, f"{row.size:,}", f"{row.exact:,}", f"{row.near:,}") for row in largest),
        ),
    ]
    for pair in facts.pairs:
        blocks.append(Heading(3, f"Jaccard similarity {pair.similarity:.3f} of their word n-grams"))
        blocks.append(
            Quote(f"dropped: document {pair.id} of {pair.source}, from where they differ", pair.text)
        )
        blocks.append(Quote(f"stayed: document {pair.kept}", pair.kept_text))
    return blocks


def _contamination(facts: DataFacts) -> list[Block]:
    found, counted = facts.contamination, facts.counted
    if not found and not counted:
        return []
    blocks: list[Block] = [Heading(2, "Benchmark questions in the text")]
    if found:
        rows = tuple((row.benchmark, row.source, *_found(row)) for row in found)
        blocks.append(
            Table(
                ("benchmark", "source", "questions", "not checked", "found", "documents dropped"),
                rows,
                2,
            )
        )
        blocks.append(Text("Summed over slices: a question that stands in two counts twice.", "note"))
    if counted:
        rows = tuple((row.benchmark, *_found(row)) for row in counted)
        blocks.append(
            Text(
                "Counted afterwards: these were not looked for when the corpus was made, and what is found stays in it."
            )
        )
        blocks.append(Table(("benchmark", "questions", "not checked", "found", "documents with them"), rows))
    return blocks


def _found(row: BenchmarkHits) -> tuple[str, ...]:
    counts = (row.questions, row.unchecked, row.questions_found, row.documents_found)
    return tuple(f"{count:,}" for count in counts)


def _packing(facts: DataFacts, pictures: dict[str, Picture]) -> list[Block]:
    if not facts.packing:
        return []
    rows = tuple(
        (
            str(one.round),
            f"{one.sequences:,}",
            f"{one.tokens:,}",
            f"{100 * one.padding_fraction:.2f} %",
            f"{one.documents:,}",
            f"{one.documents_cut:,} ({_share(one.documents_cut, one.documents)})",
            f"{one.concatenation_cut:,} ({_share(one.concatenation_cut, one.documents)})",
        )
        for one in facts.packing
    )
    head = ("round", "sequences", "tokens", "padding", "documents", "cut", "cut by concatenate-and-cut")
    note = "Concatenate-and-cut over the same windows would pad nothing. Cut here: only what is longer than a sequence."
    blocks: list[Block] = [Heading(2, "Packing")]
    blocks += [pictures["tokens"]] if "tokens" in pictures else []
    return [*blocks, Table(head, rows), Text(note, "note")]


def _examples(facts: DataFacts) -> list[Block]:
    blocks: list[Block] = []
    for row in facts.examples:
        blocks.append(Heading(3, f"{row.stage}: {words(row.reason)}"))
        blocks += [_example(one) for one in row.examples]
    return [Heading(2, "Examples of what was dropped"), *blocks] if blocks else []


def _example(one: Example) -> Quote:
    said = [f"document {one.id} of {one.source}" if one.id else f"of {one.source}"]
    if one.characters is not None:
        said.append(f"{one.characters:,} characters")
    if one.text is None:
        return Quote("; ".join(said), one.detail)
    said += [f"measured {one.value:.4g}"] if one.value is not None else []
    said += [one.detail] if one.detail else []
    return Quote("; ".join(said), one.text)


def _sampling(sample: Sample) -> str:
    masked = " Personal data in the excerpts is replaced, as the filter does." if sample.masked else ""
    counts = "Counts of documents, text, tokens and reasons are of everything."
    if sample.shards == sample.shards_in_all:
        return f"{counts} Lengths are of all documents, too; examples are drawn by the hash of the document's id.{masked}"
    return (
        f"{counts} Lengths are of {sample.shards} of {sample.shards_in_all} files of documents, taken evenly over "
        f"all slices; examples are drawn by the hash of the document's id.{masked}"
    )
