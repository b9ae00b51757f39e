"""The plan of a run for a person: a table of its stages, and what it costs in all. Plain text, for any width from 80."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from flows.dag.plan import NEVER, PlanRow, newer_versions, of_newer_version
from flows.quote.happened import Beside
from flows.quote.quote import ASSUMED, MEASURED, RECORDED, Line, Quote
from flows.quote.work import SourceWork
from storage.counts import rounded_count

NARROWEST, PAGE_WIDTH = 80, 110
_MOST_REASONS = 6
_WAITS = "waits for "


def render(
    rows: Sequence[PlanRow],
    quote: Quote,
    *,
    free: int | None = None,
    when: str | None = None,
    width: int = 100,
    happened: Sequence[Beside] = (),
    files: Sequence[str] = (),
) -> str:
    """The plan as text. `files`: lines about files of documents. `free`: bytes free on the store's disk. `when`: when the
    rates were measured.

    Where everything is in the store, it shows what had been quoted beside what it took (`happened`), and ends with "nothing
    to do".
    """
    width = max(width, NARROWEST)
    lines = list(
        _aligned(_done(quote.lines, happened)) if happened and not quote.to_do else _table(quote.lines)
    )
    if not quote.to_do:
        return "\n".join([*lines, "nothing to do"]) + "\n"
    lines += ["", *_labelled("in all", _totals(quote, free), width)]
    lines += _labelled("files", files, width)
    lines += _labelled("text", [_read(one) for one in quote.sources], width)
    lines += _labelled("training", _devices(rows), width)
    lines += _labelled("newer", newer_versions(rows), width)
    lines += _labelled("because", _reasons(rows), width)
    lines += _labelled("rates", _origins(quote, when), width)
    return "\n".join(lines) + "\n"


def hours_text(seconds: float) -> str:
    """`< 1 s`, `40 s`, `12 min`, `2 h 05 min`, `35 h`."""
    if seconds < 59.5:
        return f"{seconds:.0f} s" if seconds >= 0.5 else "< 1 s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes < 600 else f"{round(seconds / 3600):,} h"


def bytes_text(size: float) -> str:
    """`0.4 MB`, `120 MB`, `3.1 GB`: decimal, with two or three figures."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if size >= 0.9995 * scale:
            return f"{size / scale:,.0f} {unit}" if size >= 99.5 * scale else f"{size / scale:.1f} {unit}"
    return f"{size:.0f} B"


def _table(lines: Sequence[Line]) -> Iterable[str]:
    """A row for each stage: how many are in the store, how many are to be made, their work, time and size."""
    head = ("stage", "done", "to do", "work", "time", "disk", "rate")
    return _aligned([head, *(_cells(line) for line in lines)])


def _done(lines: Sequence[Line], happened: Sequence[Beside]) -> list[tuple[str, ...]]:
    """A row for each stage of a finished run: what had been quoted, and what it took."""
    done = {line.stage: f"{line.done:,}" for line in lines}
    rows = [
        (
            one.stage,
            done.get(one.stage, ""),
            hours_text(one.quoted),
            hours_text(one.took),
            f"{100 * one.off:+.0f} %",
        )
        for one in happened
    ]
    return [("stage", "done", "quoted", "took", "off"), *rows]


def _aligned(rows: Sequence[tuple[str, ...]]) -> Iterable[str]:
    """Lines of a table: the first and the last column to the left, the others to the right."""
    head = rows[0]
    widths = [max(len(row[at]) for row in rows) for at in range(len(head))]
    for row in rows:
        first, *numbers, last = row
        middle = "  ".join(cell.rjust(width) for cell, width in zip(numbers, widths[1:-1], strict=True))
        yield f"{first:<{widths[0]}}  {middle}  {last}".rstrip()


def _cells(line: Line) -> tuple[str, ...]:
    done, to_do = (f"{count:,}" if count else "·" for count in (line.done, line.to_do))
    if not line.to_do:
        return (line.stage, done, to_do, "", "", "", "")
    return (
        line.stage,
        done,
        to_do,
        _amount(line.amount, line.unit),
        "?" if line.seconds is None else hours_text(line.seconds),
        bytes_text(line.bytes) if line.bytes else "",
        line.rate if line.seconds is not None else "",
    )


def _amount(amount: float, unit: str) -> str:
    if not unit or not amount:
        return ""
    return bytes_text(amount) if unit == "bytes" else f"{rounded_count(amount)} {unit}"


def _totals(quote: Quote, free: int | None) -> list[str]:
    least = "more than " if quote.open else ""
    told = [f"{least}{hours_text(quote.seconds)}"]
    if quote.open:
        told.append(f"not known: {', '.join(quote.open)}")
    disk = f"disk {bytes_text(quote.bytes)}"
    if quote.passing_bytes:
        disk += f", and {bytes_text(quote.passing_bytes)} of checkpoints while it trains"
    if free is not None:
        disk += f" ({bytes_text(free)} are free)"
    told.append(disk)
    if quote.peak_memory:
        told.append(f"memory {bytes_text(quote.peak_memory)}")
    if quote.device_memory:
        told.append(f"of the GPU {bytes_text(quote.device_memory)}")
    if quote.price is not None:
        told.append(f"price {quote.price:,.2f}")
    return told


def _read(one: SourceWork) -> str:
    """How often a source's text is read."""
    about = "about " if one.estimated else ""
    of = f"{rounded_count(one.tokens)} tokens of {about}{rounded_count(one.there)}"
    if one.epochs > 1:
        times = f"{one.epochs:.1f}" if one.epochs < 10 else f"{one.epochs:,.0f}"
        return f"{one.name} is read {about}{times} times ({of})"
    if not one.tokens:
        return f"{one.name} is measured, and not trained on"
    share = f"{100 * one.epochs:.0f} %" if one.epochs >= 0.01 else "less than 1 %"
    return f"{one.name}: {about if one.epochs >= 0.01 else ''}{share} is read ({of})"


def _devices(rows: Sequence[PlanRow]) -> list[str]:
    """What training needs of the device: once, where all its stages need the same."""
    found: dict[str, None] = {}
    for row in rows:
        if row.training and row.training.get("tokens_per_second"):
            head = row.training["line"].partition(", about ")[0]
            rate = f"about {row.training['tokens_per_second']:,.0f} tokens/s ({row.training['rate_from']})"
            fits = (
                ""
                if row.training["fits"]
                else f", needs {bytes_text(row.training['peak_bytes'])}: it will not fit"
            )
            found[f"{head}, {rate}{fits}"] = None
        elif row.training:
            found[row.training["line"]] = None
    return list(found)


def _reasons(rows: Sequence[PlanRow]) -> list[str]:
    """Why stages are made again that a store could have had: each reason once, with how many stages it holds for."""
    counts: dict[str, int] = {}
    for row in rows:
        for reason in row.why:
            if not reason.startswith(_WAITS) and reason != NEVER and not of_newer_version(reason):
                counts[f"{row.stage}: {reason}"] = counts.get(f"{row.stage}: {reason}", 0) + 1
    told = [f"{reason} (× {count})" if count > 1 else reason for reason, count in counts.items()]
    if len(told) > _MOST_REASONS:
        told = [*told[:_MOST_REASONS], f"and {len(told) - _MOST_REASONS} more: --all shows them"]
    return told


def _origins(quote: Quote, when: str | None) -> list[str]:
    names = {line.rate for line in quote.lines if line.to_do and line.seconds is not None}
    said = {
        MEASURED: f"measured on {when} by rehearse",
        RECORDED: "recorded in this store",
        ASSUMED: "assumed, which may be wrong by a factor: onward rehearse measures them",
    }
    return [f"{said[name]}" for name in (MEASURED, RECORDED, ASSUMED) if name in names]


def _labelled(label: str, told: Sequence[str], width: int) -> list[str]:
    """Lines below a label, broken between words where they are too long."""
    lines: list[str] = []
    for words in told:
        line = ""
        for word in words.split(" "):
            if line and len(line) + 1 + len(word) > width - 10:
                lines.append(line)
                line = f"  {word}"
            else:
                line = f"{line} {word}" if line else word
        lines.append(line)
    return [f"{label if not at else '':<10}{line}" for at, line in enumerate(lines)]
