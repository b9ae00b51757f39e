"""The report as a page: a list of blocks made of the facts, written once as Markdown and once as HTML.

The HTML needs nothing beside it: its style and figures are inside. Colour never says what the words do not.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.report_facts import signed
from tasks.report_figures import count_text

Json = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One cell of a table; `tone` is better, worse, same or warn, and colours it in HTML."""

    text: str
    tone: str = ""


@dataclass(frozen=True)
class Heading:
    """A heading of level 1 or 2."""

    level: int
    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph; `role` is findings, note or warning."""

    text: str
    role: str = ""


@dataclass(frozen=True)
class Table:
    """A table whose first `labels` columns are words, and the others numbers but for the last `notes`.

    A row of one cell is a heading inside it.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    labels: int = 1
    notes: int = 0

    def is_text(self, place: int) -> bool:
        """Whether a column holds words, which stand on the left."""
        return place < self.labels or place >= len(self.head) - self.notes


@dataclass(frozen=True)
class Picture:
    """A figure of `figures/`, by name."""

    name: str
    caption: str


Block = Heading | Text | Table | Picture


def blocks_of(facts: Json, figures: Sequence[Json]) -> list[Block]:
    """The page, from top to bottom."""
    names = [model["name"] for model in facts["models"]]
    blocks: list[Block] = [
        Heading(1, f"What {names[-1]} tokens did to the model" if len(names) > 1 else "The base model")
    ]
    blocks += [Text(" ".join(facts["findings"]), "findings")]
    blocks += _perplexity(facts, names) + _benchmarks(facts, names)
    if figures:
        blocks.append(Heading(2, "Along the way"))
        blocks += [Picture(figure["name"], figure["caption"]) for figure in figures]
    blocks += (
        _data(facts) + _contamination(facts) + _packing(facts) + _models(facts) + _every_metric(facts, names)
    )
    return blocks


def _change(change: Json | None, scale: float, unit: str, rising_is_better: bool) -> Cell:
    if change is None:
        return Cell("")
    text = f"{signed(scale * change['value'])} ± {scale * change['stderr']:.1f}{unit}"
    if not change["clear"]:
        return Cell(f"{text} ≈", "same")
    better = (change["value"] > 0) == rising_is_better
    return Cell(f"{text} {'▲' if change['value'] > 0 else '▼'}", "better" if better else "worse")


def _perplexity(facts: Json, names: Sequence[str]) -> list[Block]:
    if not facts["perplexity"]:
        return []
    head = ["source", "", names[0]] + [title for name in names[1:] for title in (name, "change")]
    rows = []
    for row in facts["perplexity"]:
        values = [row["models"].get(name) for name in names]
        first = [Cell(row["source"]), Cell("perplexity"), Cell(_number(values[0], "perplexity"))]
        second = [Cell(""), Cell("bits per byte"), Cell(_number(values[0], "bits_per_byte"))]
        for value in values[1:]:
            first += [
                Cell(_number(value, "perplexity")),
                _change(value["change"] if value else None, 100, " %", False),
            ]
            second += [
                Cell(_number(value, "bits_per_byte")),
                Cell(_relative(value, values[0], "bits_per_byte")),
            ]
        rows += [tuple(first), tuple(second)]
    one = facts["perplexity"][0]
    measured = "; ".join(
        f"{row['source']}: {row['documents']:,} documents, {row['tokens']:,} tokens"
        for row in facts["perplexity"]
    )
    note = (
        f"On held-out documents ({measured}), in windows of {one['max_length']} tokens with stride "
        f"{one['stride']}: each token scored once, the first after an end-of-text token. Not comparable with the "
        "harness's rolling perplexity, whose windows are disjoint. ± is one paired standard error over documents; "
        "≈ marks a change within two of them."
    )
    return [Heading(2, "Perplexity on held-out text"), Table(tuple(head), tuple(rows), 2), Text(note, "note")]


def _number(value: Json | None, key: str) -> str:
    if value is None:
        return "–"
    number = float(value[key])
    if key == "bits_per_byte":
        return f"{number:.4f}"
    return f"{number:,.2f}" if number < 1e5 else f"{number:.3e}"


def _relative(value: Json | None, base: Json | None, key: str) -> str:
    return f"{signed(100 * (value[key] / base[key] - 1))} %" if value and base else ""


def _benchmarks(facts: Json, names: Sequence[str]) -> list[Block]:
    if not facts["benchmarks"]:
        return []
    head = ["benchmark", "score", "chance", names[0]] + [
        title for name in names[1:] for title in (name, "change")
    ]
    rows: list[tuple[Cell, ...]] = []
    for group in ("domain", "general"):
        members = [row for row in facts["benchmarks"] if row["group"] == group]
        if members:
            rows.append((Cell(group),))
        rows += [_score_row(row["benchmark"], row["metric"], row, names) for row in members]
        mean = next((row for row in facts["groups"] if row["group"] == group), None)
        if mean and len(members) > 1:
            rows.append(_score_row("mean", "", mean, names))
    limited = [
        row for row in facts["benchmarks"] if row["limit"] is not None and row["questions"] < row["available"]
    ]
    drawn = f" At most {limited[0]['limit']} questions of each, drawn by the seed." if limited else ""
    note = (
        f"Percent of questions, by lm-evaluation-harness with its own prompts and shots, at most "
        f"{facts['benchmarks'][0]['max_length']} tokens.{drawn} After a score ± one standard error; after a change, "
        "in points, ± one paired standard error over the same questions; ≈ marks a change within two of them. "
        "The errors are of the "
        "questions, not of training with another seed."
    )
    return [Heading(2, "Benchmarks"), Table(tuple(head), tuple(rows), 2), Text(note, "note")]


def _score_row(label: str, metric: str, row: Json, names: Sequence[str]) -> tuple[Cell, ...]:
    cells = [Cell(label), Cell(metric), Cell(f"{100 * row['chance']:.1f}")]
    for name in names:
        value = row["models"].get(name)
        cells.append(Cell(f"{100 * value['score']:.1f} ± {100 * value['stderr']:.1f}" if value else "–"))
        if name != names[0]:
            cells.append(_change(value["change"] if value else None, 100, "", True))
    return tuple(cells)


def _data(facts: Json) -> list[Block]:
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
        "the one before gave.",
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


def _contamination(facts: Json) -> list[Block]:
    if not facts["contamination"]:
        return []
    rows = tuple(
        (
            Cell(row["benchmark"]),
            Cell(f"{row['questions']:,}"),
            Cell(f"{row['unchecked']:,}"),
            Cell(f"{row['questions_found']:,}", "warn" if row["questions_found"] else ""),
            Cell(f"{row['documents_found']:,}"),
        )
        for row in facts["contamination"]
    )
    head = ("benchmark", "questions", "too short to look for", "found in the corpus", "documents with them")
    note = (
        "Documents in which a question was found were dropped before training; a question found in two slices "
        "counts twice."
    )
    return [Heading(2, "Benchmark questions in the corpus"), Table(head, rows), Text(note, "note")]


def _packing(facts: Json) -> list[Block]:
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


def _models(facts: Json) -> list[Block]:
    rows = tuple(
        (
            Cell(model["name"]),
            Cell(model["path"]),
            Cell(model["digest"][:16]),
            Cell(count_text(model["tokens"])),
            _counted(model["seen"]),
            _counted(model["computed"]),
        )
        for model in facts["models"]
    )
    head = ("model", "artifact", "digest of export", "budget", "tokens seen", "tokens computed")
    note = (
        "Seen: targets that this model was trained on. Computed: what its trunk and branch cost; a branch's tokens are "
        f"computed again by the trunk. All segments together: {facts['computed']:,} tokens."
    )
    return [Heading(2, "The models"), Table(head, rows, 3), Text(note, "note")]


def _every_metric(facts: Json, names: Sequence[str]) -> list[Block]:
    if not facts["benchmarks"]:
        return []
    rows = []
    for row in facts["benchmarks"]:
        for metric in row["models"][names[0]]["metrics"]:
            cells = [
                Cell(row["benchmark"]),
                Cell(metric),
                Cell(f"{row['questions']:,} of {row['available']:,}"),
            ]
            for name in names:
                value = row["models"].get(name)
                cells.append(Cell(_metric(value, metric) if value else "–"))
            rows.append(tuple(cells))
    head = ("benchmark", "metric", "questions", *names)
    return [Heading(2, "Every metric"), Table(head, tuple(rows), 2)]


def _metric(value: Json, metric: str) -> str:
    return f"{value['metrics'][metric]:.4g} ± {value['errors'][metric]:.2g}"


def markdown_of(blocks: Sequence[Block]) -> str:
    """The page as Markdown, with figures by their place beside it."""
    parts = []
    for block in blocks:
        if isinstance(block, Heading):
            parts.append(f"{'#' * block.level} {block.text}")
        elif isinstance(block, Text):
            parts.append(f"**{block.text}**" if block.role in ("findings", "warning") else block.text)
        elif isinstance(block, Picture):
            parts.append(f"![{block.caption}](figures/{block.name}.svg)\n\n{block.caption}")
        else:
            parts.append(_markdown_table(block))
    return "\n\n".join(parts) + "\n"


def _markdown_table(table: Table) -> str:
    lines = ["| " + " | ".join(table.head) + " |"]
    lines.append(
        "| "
        + " | ".join("---" if table.is_text(place) else "---:" for place in range(len(table.head)))
        + " |"
    )
    for row in table.rows:
        cells = [cell.text.replace("|", "\\|") for cell in row]
        if len(row) == 1:
            cells = [f"**{cells[0]}**"] + [""] * (len(table.head) - 1)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


_CSS = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; color: #1f2937; background: #fff;
  max-width: 62rem; margin: 2.5rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.7rem; margin: 0 0 .8rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
p.findings { font-size: 1.05rem; border-left: 4px solid #1f5a99; background: #f3f6fa; padding: .7rem 1rem; margin: 0; }
p.note { color: #6b7280; font-size: .84rem; margin: .5rem 0 0; }
p.warning { color: #7c2d12; border-left: 4px solid #c2571a; background: #fdf4ee; padding: .5rem 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .7rem .28rem 0; text-align: right; vertical-align: top; white-space: nowrap; }
th { font-weight: 600; color: #4b5563; border-bottom: 1.5px solid #9ca3af; } td { border-bottom: 1px solid #eef0f3; }
.l { text-align: left; } td.note { white-space: normal; text-align: left; min-width: 11rem; color: #4b5563; }
tr.part td { font-weight: 600; padding-top: .7rem; text-align: left; }
.better { color: #276738; } .worse { color: #a32a2a; } .same { color: #6b7280; } .warn { color: #c2571a; font-weight: 600; }
figure { margin: 1rem 0 1.6rem; } figure img { width: 100%; max-width: 54rem; height: auto; display: block; }
figcaption { color: #6b7280; font-size: .84rem; margin-top: .3rem; }
@media print { body { margin: 0; max-width: none; font-size: 10.5pt; }
  figure, tr { break-inside: avoid; } h2 { break-after: avoid; } .wide { overflow: visible; } table { font-size: .72rem; } }
"""


def html_of(blocks: Sequence[Block], directory: Path) -> str:
    """The page as one HTML file; `directory` holds `figures/`."""
    title = next((block.text for block in blocks if isinstance(block, Heading)), "Report")
    body = "\n".join(_html_block(block, directory) for block in blocks)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _html_block(block: Block, directory: Path) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{html.escape(block.text)}</h{block.level}>"
    if isinstance(block, Text):
        return f'<p class="{block.role}">{html.escape(block.text)}</p>'
    if isinstance(block, Picture):
        drawn = base64.b64encode((directory / "figures" / f"{block.name}.svg").read_bytes()).decode()
        caption = html.escape(block.caption)
        image = f'<img alt="{caption}" src="data:image/svg+xml;base64,{drawn}">'
        return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"
    return _html_table(block)


def _html_table(table: Table) -> str:
    head = "".join(
        f'<th class="l">{html.escape(text)}</th>' if table.is_text(place) else f"<th>{html.escape(text)}</th>"
        for place, text in enumerate(table.head)
    )
    rows = []
    for row in table.rows:
        if len(row) == 1:
            rows.append(
                f'<tr class="part"><td colspan="{len(table.head)}">{html.escape(row[0].text)}</td></tr>'
            )
            continue
        cells = []
        for place, cell in enumerate(row):
            kinds = [cell.tone] if cell.tone else []
            kinds += ["l"] if place < table.labels else ["note"] if table.is_text(place) else []
            kind = f' class="{" ".join(kinds)}"' if kinds else ""
            cells.append(f"<td{kind}>{html.escape(cell.text)}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    lines = "\n".join(rows)
    return (
        f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}\n</tbody></table></div>'
    )
