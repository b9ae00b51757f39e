"""The order of the report, from the main results to the background; and the sections of the background.

`results` shows the results. This module shows the data through the stages, benchmark questions in the text,
packing, the models, and what they write.
"""

from __future__ import annotations

from collections.abc import Sequence

from storage.counts import rounded_count
from tasks.pages.blocks import Block, Cell, Heading, Picture, Slot, Table, Text
from tasks.pages.ledger import Amounts
from tasks.pages.report.facts import ReportFacts
from tasks.pages.report.merges import merges
from tasks.pages.report.results import (
    answers,
    benchmarks,
    every_metric,
    forgetting,
    gain,
    perplexity,
    sureness,
)
from tasks.pages.wording import words

COST = Slot("cost")
"""The slot for the cost, which is filled when the page is published."""


def blocks_of(facts: ReportFacts, pictures: Sequence[Picture], first: Sequence[Block] = ()) -> list[Block]:
    """The page from top to bottom; `first` comes above the results."""
    blocks: list[Block] = [Heading(1, _title(facts)), Text(" ".join(facts.findings), "findings"), *first]
    blocks += perplexity(facts) + benchmarks(facts, facts.contamination) + answers(facts)
    if pictures:
        blocks += [Heading(2, "Along the way"), *pictures]
    blocks += forgetting(facts) + merges(facts.merges) + gain(facts)
    blocks.append(COST)
    blocks += samples(facts) + sureness(facts)
    blocks += data(facts) + contamination(facts) + packing(facts) + models(facts) + every_metric(facts)
    return blocks


def _title(facts: ReportFacts) -> str:
    if facts.title is not None:
        return facts.title
    return f"What {facts.names[-1]} tokens did to the model" if len(facts.names) > 1 else "The base model"


# ---- the data -----------------------------------------------------------------------------------------------------


def data(facts: ReportFacts) -> list[Block]:
    """Documents and bytes through the stages, and whether they add up."""
    if not facts.data.sources:
        return []
    rows: list[tuple[Cell, ...]] = []
    for one in facts.data.sources:
        rows.append((Cell(f"{one.source} ({one.slices} slice{'s' if one.slices != 1 else ''})"),))
        rows += [_flow_row(stage) for stage in one.stages]
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
    problems = facts.data.document_problems
    if problems:
        verdict = Text(f"Does not add up: {'; '.join(problems)}.", "warning")
    return [Heading(2, "What was done to the data"), Table(head, tuple(rows), notes=1), verdict]


def _flow_row(own: Amounts) -> tuple[Cell, ...]:
    reasons = sorted(own.reasons.items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{words(reason)} {count:,}" for reason, count in reasons if count)
    counts = (own.documents_in, own.documents_dropped, own.documents_held_out, own.documents_out)
    return (
        Cell(own.stage),
        *map(_counted, counts),
        Cell("" if own.bytes_out is None else f"{own.bytes_out / 1e6:,.2f} MB"),
        _counted(own.tokens),
        Cell(shown),
    )


def _counted(value: int | None) -> Cell:
    return Cell("" if value is None else f"{value:,}")


def contamination(facts: ReportFacts) -> list[Block]:
    """How many of each benchmark's questions are in the corpus."""
    if not facts.contamination:
        return []
    rows = tuple(
        (
            Cell(row.benchmark),
            Cell(f"{row.questions:,}"),
            Cell(f"{row.unchecked:,}"),
            Cell(f"{row.questions_found:,}", "warn" if row.questions_found else ""),
            Cell(f"{row.documents_found:,}", below="still in it" if row.afterwards else ""),
        )
        for row in facts.contamination
    )
    head = ("benchmark", "questions", "not looked for", "found in the corpus", "documents with them")
    note = (
        "Documents in which a question was found were dropped before training; a question found in two slices "
        "counts twice. Not looked for: too short."
    )
    if any(row.afterwards for row in facts.contamination):
        note += " Still in it: of a benchmark that was not in corpus.decontaminate.benchmarks, counted afterwards."
    return [Heading(2, "Benchmark questions in the corpus"), Table(head, rows), Text(note, "note")]


def packing(facts: ReportFacts) -> list[Block]:
    """Each round's sequences, mixture and repetition."""
    if not facts.packing:
        return []
    rows = []
    repeated = []
    for one in (packed.round for packed in facts.packing):
        shares = {source.source: source.tokens / max(one.tokens, 1) for source in one.sources}
        epochs = {source.source: source.epochs for source in one.sources if source.epochs is not None}
        repeated += [f"{name} {read:.2f} ×" for name, read in epochs.items() if read > 1]
        rows.append(
            (
                Cell(str(one.round)),
                _counted(one.sequences),
                _counted(one.tokens),
                Cell(f"{100 * one.padding_fraction:.2f} %"),
                _counted(one.documents_whole),
                _counted(one.documents_cut),
                Cell(", ".join(f"{name} {100 * share:.1f} %" for name, share in shares.items())),
                Cell(", ".join(f"{name} {read:.2f}" for name, read in epochs.items())),
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


# ---- the models ---------------------------------------------------------------------------------------------------


def models(facts: ReportFacts) -> list[Block]:
    """Where each model lies, and the tokens seen and computed for it."""
    rows = tuple(
        (
            Cell(model.name),
            Cell(model.path),
            Cell(model.digest[:16]),
            Cell(rounded_count(model.tokens)),
            Cell(f"{model.seen:,}"),
            Cell(f"{model.computed:,}"),
        )
        for model in facts.models
    )
    head = ("model", "artifact", "digest of export", "budget", "tokens seen", "tokens computed")
    note = (
        "Seen: targets that this model was trained on. Computed: what its trunk and branch cost; a branch's tokens are "
        f"computed again by the trunk. All segments together: {facts.computed:,} tokens."
    )
    return [Heading(2, "The models"), Table(head, rows, 3), Text(note, "note")]


def samples(facts: ReportFacts) -> list[Block]:
    """What each model writes after the same prompts, side by side."""
    if not facts.samples:
        return []
    names = facts.names
    rows: list[tuple[Cell, ...]] = []
    for row in facts.samples:
        cells = [Cell(_on_one_line(row.models[name]) if name in row.models else "–") for name in names]
        rows.append((Cell(row.prompt, below=row.decoding), *cells))
    note = (
        "Greedy: the likeliest token at each place. Sampled: drawn by the same random numbers for every model. Cut off "
        "where the model ends the text, or at the number of tokens asked for."
    )
    return [
        Heading(2, "What the models write"),
        Table(("prompt", *names), tuple(rows), notes=len(names)),
        Text(note, "note"),
    ]


def _on_one_line(text: str) -> str:
    """The text on one line, for a table. Unprintable characters are replaced."""
    shown = "".join(letter if letter.isprintable() else " " for letter in text)
    return "… " + " ".join(shown.split()) + " …"
