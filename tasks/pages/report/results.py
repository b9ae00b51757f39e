"""The report's results: perplexity and benchmarks with intervals and verdicts, forgetting, gain, and certainty."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from storage.counts import rounded_count
from tasks.pages.blocks import Block, Cell, Heading, Table, Text
from tasks.pages.ledger import BenchmarkHits
from tasks.pages.report.facts import (
    GROUPS,
    BenchmarkRow,
    BenchmarkScore,
    GroupRow,
    GroupScore,
    ModelChange,
    PerplexityRow,
    PerplexityScore,
    ResultRow,
    Results,
    Within,
    change_of,
    within,
)
from tasks.pages.wording import signed

_TONES = {"improved": "better", "worse": "worse"}


def change_cell(change: ModelChange | None, unit: str = "") -> Cell:
    """+2.3 [0.8, 3.9] with the verdict below; without a clear verdict, the smallest change that would have been
    seen, or how many documents or questions are too few.
    """
    if change is None:
        return Cell("–")
    below = f"{'▲' if change.value > 0 else '▼'} {change.verdict}"
    if change.few:
        below = f"{change.verdict} ({change.count})"
    elif not change.clear:
        seen = "" if change.seen is None else f" (seen\xa0from\xa0{100 * change.seen:.1f}{unit})"
        below = f"≈ {change.verdict}{seen}"
    return Cell(f"{within(change)}{unit}", _tone(change), below)


def _tone(change: ModelChange) -> str:
    return _TONES.get(change.verdict, "same")


def _pair_heads(facts: Results) -> list[str]:
    return [f"{before} → {after}" for before, after in facts.pairs]


def perplexity(facts: Results) -> list[Block]:
    """Perplexity and bits per byte of each source, and the changes of perplexity."""
    if not facts.perplexity:
        return []
    names = facts.names
    rows = []
    for row in facts.perplexity:
        values = [row.models.get(name) for name in names]
        first = [Cell(row.source, below="bits per byte")]
        first += [_perplexity_cell(value) for value in values]
        first += [change_cell(change_of(row, *pair), " %") for pair in facts.pairs]
        rows.append(tuple(first))
    one = facts.perplexity[0]
    measured = "; ".join(
        f"{row.source}: {row.documents:,} documents, {row.tokens:,} tokens" for row in facts.perplexity
    )
    note = (
        f"On held-out documents ({measured}), in windows of {_lengths(facts.perplexity)} tokens with "
        f"stride {one.stride}: each token scored once, the first after an end-of-text token. Not comparable with the "
        "harness's rolling perplexity, whose windows are disjoint. Below each: bits per byte of UTF-8, which compare "
        "across tokenizers. Changes are of perplexity, in percent; less is better."
    )
    note += _few_note(facts.perplexity)
    head = ("source", *names, *_pair_heads(facts))
    return [Heading(2, "Perplexity on held-out text"), Table(head, tuple(rows)), Text(note, "note")]


def _few_note(rows: Sequence[PerplexityRow]) -> str:
    """What to do where there are too few documents for a verdict."""
    few = [row for row in rows if any(change.few for change in row.changes)]
    if not few:
        return ""
    named = ", ".join(f"{row.source} ({row.documents})" for row in few)
    single = any(row.documents < 2 for row in few)
    return (
        f" Too few documents are held out for a verdict: {named}. Ten are the fewest; a larger "
        "corpus.holdout_fraction holds out more, and corpus.holdout_piece a piece of each long document."
        f"{' Of one document no interval can be given.' if single else ''}"
    )


def _lengths(rows: Sequence[PerplexityRow | BenchmarkRow]) -> str:
    """The lengths in tokens. Models measured at other lengths are shown side by side but not compared."""
    return " or ".join(str(one) for one in sorted({length for row in rows for length in row.lengths}))


def _perplexity_cell(value: PerplexityScore | None) -> Cell:
    if value is None:
        return Cell("–")
    number = float(value.perplexity)
    text = f"{number:,.2f}" if number < 1e5 else f"{number:.3e}"
    return Cell(text, below=f"{value.bits_per_byte:.4f}")


def benchmarks(facts: Results, hits: Sequence[BenchmarkHits] = ()) -> list[Block]:
    """Every benchmark by group: chance level, questions in the corpus, scores, changes and verdicts."""
    if not facts.benchmarks:
        return []
    names = facts.names
    found = {row.benchmark: row for row in hits}
    head = ["benchmark", "in corpus", "chance", *names, *_pair_heads(facts)]
    rows: list[tuple[Cell, ...]] = []
    for group in GROUPS:
        members = [row for row in facts.benchmarks if row.group == group]
        if members:
            rows.append((Cell(group),))
        for row in members:
            shown = _contaminated(row.benchmark, found)
            rows.append((Cell(row.benchmark, below=row.metric), shown, *_score_cells(row, facts)))
        mean = next((row for row in facts.groups if row.group == group), None)
        if mean and len(members) > 1:
            label = Cell("mean", below=f"of {len(mean.benchmarks)}")
            rows.append((label, Cell(""), *_score_cells(mean, facts)))
    return [
        Heading(2, "Benchmarks"),
        Table(tuple(head), tuple(rows)),
        Text(_benchmark_note(facts.benchmarks, looked_for=bool(hits)), "note"),
    ]


def _benchmark_note(rows: Sequence[BenchmarkRow], looked_for: bool) -> str:
    limited = [row for row in rows if row.limit is not None and row.questions < row.available]
    drawn = f" At most {limited[0].limit} questions of each, drawn by the seed." if limited else ""
    majority = ", ".join(
        dict.fromkeys(f"{row.benchmark} {100 * row.chance:.1f}" for row in rows if row.rule == "majority")
    )
    commonest = (
        f" For {majority} it is the share of the commonest answer, which is larger." if majority else ""
    )
    corpus = (
        " In corpus: questions found in the text that was read, of those looked for; their documents were dropped before "
        "training unless it says “kept”."
        if looked_for
        else " None of these benchmarks was looked for in the corpus: questions that stand in it may have helped."
    )
    return (
        "Percent of questions, by lm-evaluation-harness with its own prompts and shots, at most "
        f"{_lengths(rows)} tokens.{drawn} In brackets the 95 % interval, over questions, not training seeds. "
        "Where no change is clear, the smallest that would have been seen stands beside it (see How sure). Chance is the "
        f"mean of 1/n over the questions.{commonest}{corpus}"
    )


def _contaminated(name: str, found: Mapping[str, BenchmarkHits]) -> Cell:
    row = found.get(name) or found.get(name.removesuffix("_continuation"))
    if row is None:
        return Cell("–", below="not\xa0looked\xa0for")
    looked = row.questions - row.unchecked
    if not looked:
        return Cell("–", below="cannot be looked for")
    kept = "kept" if row.afterwards and row.questions_found else ""
    return Cell(f"{row.questions_found:,} of {looked:,}", "warn" if row.questions_found else "", kept)


def _score_cells(row: BenchmarkRow | GroupRow, facts: Results) -> list[Cell]:
    cells = [Cell(f"{100 * row.chance:.1f}" if row.chance else "–")]
    for model in facts.models:
        value = row.models.get(model.name)
        if value is None:
            cells.append(Cell("–"))
            continue
        ends = (
            ""
            if value.low is None or value.high is None
            else f"[{100 * value.low:.1f},\xa0{100 * value.high:.1f}]"
        )
        below = f"{ends} at\xa0chance" if isinstance(value, BenchmarkScore) and value.at_chance else ends
        cells.append(Cell(f"{100 * value.score:.1f}", below=below))
    return cells + [change_cell(change_of(row, *pair)) for pair in facts.pairs]


def answers(facts: Results) -> list[Block]:
    """Bits per byte of the right answers, by group, with the changes."""
    if not facts.answers:
        return []
    rows: list[tuple[Cell, ...]] = []
    for group in GROUPS:
        members = [row for row in facts.answers if row.group == group]
        if members:
            rows.append((Cell(group),))
        for row in members:
            label = Cell(row.benchmark) if row.benchmark else Cell("mean", below=f"of {len(row.benchmarks)}")
            values = [_bits_cell(row.models.get(name)) for name in facts.names]
            rows.append((label, *values, *(_bits_change(change_of(row, *pair)) for pair in facts.pairs)))
    head = ("benchmark", *facts.names, *_pair_heads(facts))
    return [
        Heading(2, "How well right answers are foreseen"),
        Table(head, tuple(rows)),
        Text(ANSWERS, "note"),
    ]


ANSWERS = (
    "Bits per byte of the right answer after its question, a mean over questions; less is better. From the same requests "
    "as the accuracy. A model of this size often chooses no better than chance and yet foresees right answers better than "
    "before: where the accuracy of a benchmark is at chance in both models, this is the verdict to go by (Heineman et al. "
    "2025, arXiv 2508.13144; Magnusson et al. 2025, arXiv 2504.11393). In brackets the 95 % interval, over questions. "
    "Bytes are those of the answer as it is asked, with the space before it; lettered answers are a single letter, and "
    "say little."
)


def _bits_cell(value: GroupScore | None) -> Cell:
    if value is None:
        return Cell("–")
    ends = "" if value.low is None or value.high is None else f"[{value.low:.3f},\xa0{value.high:.3f}]"
    return Cell(f"{value.score:.4f}", below=ends)


def _bits_change(change: ModelChange | None) -> Cell:
    if change is None:
        return Cell("–")
    below = f"{'▲' if change.value > 0 else '▼'} {change.verdict}"
    if change.few:
        below = f"{change.verdict} ({change.count})"
    elif not change.clear:
        seen = "" if change.seen is None else f" (seen\xa0from\xa0{change.seen:.4f})"
        below = f"≈ {change.verdict}{seen}"
    return Cell(within(change, 1, 4), _tone(change), below)


HELLASWAG = (
    "HellaSwag is general here by choice: in the study that these groups follow it rose with educational text (Faroz 2025, "
    "arXiv 2504.09687), so its rise is no proof that nothing was forgotten."
)


def forgetting(facts: Results) -> list[Block]:
    """The change of each general benchmark: in points, and as a share of the base's score above chance."""
    rows = [row for row in facts.benchmarks if row.group == "general" and row.changes]
    base = facts.names[0]
    after = [pair[1] for pair in facts.pairs if pair[0] == base]
    if not rows or not after:
        return []
    last = after[-1]
    verdicts = [(row.benchmark, change.verdict) for row in rows if (change := change_of(row, base, last))]
    said = [
        f"{len(names)} {word} ({', '.join(names)})"
        for word in ("worse", "improved", "no clear change", "too few questions")
        if (names := [name for name, verdict in verdicts if verdict == word])
    ]
    table = tuple((Cell(row.benchmark), *(_forgotten(row, base, name) for name in after)) for row in rows)
    text = f"General benchmarks after {last}, against {base}: {'; '.join(said)}."
    note = (
        "Change in points with its interval; below, as a share of what the base scored above chance (only where that is "
        "itself clear of chance)."
    )
    if any(row.benchmark.split(" ")[0] == "hellaswag" for row in rows):
        note += f" {HELLASWAG}"
    return [
        Heading(2, "What was forgotten"),
        Text(text),
        Table(("general benchmark", *after), table),
        Text(note, "note"),
    ]


def _forgotten(row: BenchmarkRow, base: str, name: str) -> Cell:
    change, start = change_of(row, base, name), row.models.get(base)
    if change is None or start is None:
        return Cell("–")
    above = start.score - row.chance
    # without a chance level (0), the score must be clear of zero
    least = start.score if start.low is None else start.low
    clear = not start.at_chance and least > row.chance
    share = f"{signed(100 * change.value / above, 0)} % of {100 * above:.1f}" if clear else ""
    return Cell(within(change), _tone(change), share)


def gain(facts: Results) -> list[Block]:
    """Gain by tokens: of each group's mean in points, of each source in bits per byte. Only along one line of training,
    and per no more tokens than the shortest stretch that was measured.
    """
    seen = {model.name: model.seen for model in facts.models}
    pairs = [pair for pair in facts.pairs if seen[pair[1]] > seen[pair[0]] and facts.of_one_line(*pair)]
    if not pairs:
        return []
    per = whole_unit(min(seen[after] - seen[before] for before, after in pairs), 10**6)
    rows = []
    for before, after in pairs:
        span = seen[after] - seen[before]
        cells = [Cell(f"{before} → {after}"), Cell(rounded_count(span))]
        cells += [_rate(change_of(row, before, after), span / per) for row in facts.groups]
        cells += [_bits(row, change_of(row, before, after), span / per) for row in facts.perplexity]
        rows.append(tuple(cells))
    unit = "million" if per == 10**6 else rounded_count(per)
    head = ["models", "tokens between"]
    head += [f"{row.group} mean, points per {unit}" for row in facts.groups]
    head += [f"{row.source}, bits per byte per {unit}" for row in facts.perplexity]
    note = (
        "The change divided by the tokens seen between the two models, with its interval: a mean over what was trained, no "
        "forecast. Fewer bits per byte of held-out text are better."
    )
    return [Heading(2, f"Gain for each {unit} tokens"), Table(tuple(head), tuple(rows)), Text(note, "note")]


def whole_unit(span: float, most: float) -> float:
    """The largest of `most`, a tenth of it, a hundredth and so on that is not above the span."""
    unit = most
    while unit > span and unit > 1:
        unit /= 10
    return unit


def _rate(change: ModelChange | None, spans: float) -> Cell:
    if change is None:
        return Cell("–")
    digits = 3 if spans >= 100 else 2
    return Cell(within(change, 100 / spans, digits), _tone(change))


def _bits(row: PerplexityRow, change: ModelChange | None, spans: float) -> Cell:
    """The change of bits per byte: the logarithm of the perplexity's change, scaled by tokens per byte."""
    if change is None:
        return Cell("–")
    scale = row.tokens / row.bytes / math.log(2)
    low, high = (
        None if end is None or end <= -1 else scale * math.log1p(end) for end in (change.low, change.high)
    )
    bits = Within(scale * math.log1p(change.value), low, high)
    digits = 5 if spans >= 100 else 3
    return Cell(within(bits, 1 / spans, digits), _tone(change))


def sureness(facts: Results) -> list[Block]:
    """Each comparison's tests: interval, Holm's p, counts and p of the exact test, smallest detectable change."""
    if not facts.pairs:
        return []
    rows: list[tuple[Cell, ...]] = []
    for before, after in facts.pairs:
        found = [
            (row, change) for row in _rows(facts) if (change := change_of(row, before, after)) is not None
        ]
        if found:
            rows.append((Cell(f"{before} → {after}"),))
        rows += [_test_row(row, change) for row, change in found]
    if not rows:
        return []
    head = (
        "",
        "of",
        "change [95 %]",
        "p",
        "p, Holm",
        "questions gained : lost",
        "exact p",
        "would be seen",
        "verdict",
    )
    return [Heading(2, "How sure"), Text(SURE), Table(head, tuple(rows), notes=1)]


SURE = (
    "Intervals are over questions (or documents), not over training seeds: another seed would give other models; "
    "“onward run --seeds 3” measures that. Those of benchmarks are paired bootstrap intervals: questions are drawn again "
    "10,000 times for all models at once, within subjects where a benchmark has them (BCa, Efron 1987). Each is at 95 % on "
    "its own. The exact test stands beside p (McNemar 1947 for answers that are right or wrong; for means, whose questions "
    "weigh unlike, and for other scores, of all signs of the changes), and the larger of the two counts: of few changes a "
    "bootstrap says too much. Perplexity is tested over documents, which are few and unlike, by the signs of their changes "
    "alone (Fisher 1935), and its interval holds each change that this test does not reject; of fewer than six documents "
    "it is Student's, and rough. The verdict is by these p after Holm's correction (1979) over the "
    "benchmarks of a comparison, sources and group means apart: less than 0.05. Fewer than ten documents or questions give "
    "none. "
    "Would be seen: the smallest true change that had been called clear in 80 of 100 tries, (z(1 − 0.025/m) + z(0.8)) "
    "standard errors for m benchmarks (Bloom 1995; Miller 2024, arXiv 2411.00640); for perplexity, half the interval at "
    "level 1 − 0.05/m in place of the first term."
    " A score is at chance where its interval holds chance: the mean of 1/n over the questions; where all questions have "
    "the same labels for choices (boolq, lettered sets), the share of the commonest answer, if that is larger and shuffled "
    "answers would reach it less than once in 1,000 times."
)


def _rows(facts: Results) -> list[ResultRow]:
    return [*facts.perplexity, *facts.benchmarks, *facts.means]


def _test_row(row: ResultRow, change: ModelChange) -> tuple[Cell, ...]:
    text = isinstance(row, PerplexityRow)  # its only test is the exact one
    unit = " %" if text else ""
    turned, exact = change.mcnemar, change.exact
    return (
        Cell(row.label),
        Cell(f"{change.count:,}"),
        Cell(f"{within(change)}{unit}"),
        Cell("" if text else _p(change.p)),
        Cell(_p(change.adjusted)),
        Cell(f"{turned.gained:,} : {turned.lost:,}" if turned else ""),
        Cell("" if exact is None else _p(exact)),
        Cell("" if change.seen is None else f"{100 * change.seen:.1f}{unit}"),
        Cell(change.verdict, _tone(change)),
    )


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def every_metric(facts: Results) -> list[Block]:
    """Every metric of every benchmark and model."""
    names = facts.names
    rows = []
    for row in facts.benchmarks:
        measured = next(iter(row.models.values()))
        for metric in measured.metrics:
            counted = Cell(f"{row.questions:,} of {row.available:,}")
            values = [row.models.get(name) for name in names]
            rows.append(
                (Cell(row.benchmark), Cell(metric), counted, *(_metric(one, metric) for one in values))
            )
    if not rows:
        return []
    head = ("benchmark", "metric", "questions", *names)
    return [
        Heading(2, "Every metric"),
        Table(head, tuple(rows), 2),
        Text("± one standard error over questions.", "note"),
    ]


def _metric(value: BenchmarkScore | None, metric: str) -> Cell:
    if value is None or metric not in value.metrics:
        return Cell("–")
    return Cell(f"{value.metrics[metric]:.4g} ± {value.errors[metric]:.2g}")
