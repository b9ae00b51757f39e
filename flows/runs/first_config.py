"""A first configuration for a folder of text: every value follows from the text, the model and this machine.

The answer is YAML with the reason beside each value, so that it can be read and changed. Nothing is trained to find it: the
folder is looked into, and a sample of its documents is put to the filter's rules.
"""

from __future__ import annotations

import glob
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from storage.counts import count_text, rounded_count
from storage.errors import ConfigError
from storage.paths import from_home, home
from storage.workers import usable_cores
from tasks.corpus.filter import ANY_LANGUAGE, FilterConfig, judge
from tasks.corpus.pieces import LONG
from tasks.corpus.reading.sample import USUAL_FIELD, Folder, look_into

EPOCHS = 4
"""Reading a text so often is nearly as good as new text (Muennighoff et al. 2023, arXiv 2305.16264)."""
_LARGEST_SMALL = 800_000
"""Tokens at which the small model's run takes minutes on a laptop."""
_SLICE = 6_000_000
_LARGEST = 1_000_000_000
_FEWEST_TOKENS = 5_000
_BYTES_PER_TOKEN = {True: 3.3, False: 4.3}
"""Of English, in a vocabulary of 4,096 words that is made for the text, and in one of 50,000."""
_STEPS = 80
"""Steps to the first budget, at least. Below 60, a warning is given (checks.py)."""
_HELD_OUT = 40
"""Documents held out that are aimed at: a verdict needs at least about ten."""
_PIECE = 4_000
_HOURS = 2.0
_OPERATIONS = 60e9
"""Operations per second of one core in training, cautiously."""
_TOO_MANY = 0.1
"""A rule that takes a larger share of a sample was made for other text."""
_MOST_RULES = 3
_ENOUGH = 0.7
"""Share of a sample's bytes that the filter should keep: this text was chosen by a person."""
_ENOUGH_HELD_OUT = 12
"""Texts from which on questions can be made of them."""
_SMALL = {
    "hidden_size": "128",
    "layers": "4",
    "heads": "4",
    "max_positions": "512",
    "tokenizer": "{vocabulary: 4096}",
}
"""The small model, as YAML."""


@dataclass(frozen=True)
class First:
    """A configuration as YAML, and what a person should know about the folder before it is used."""

    name: str
    yaml: str
    notes: tuple[str, ...]


def first_config(folder: Path, *, base: str | None = None, general: Path | None = None) -> First:
    """The configuration. `base`: a model's directory or hub name; None: a small new model. `general`: a folder of text.

    Raises ConfigError if a folder holds no text, or too little to learn from.
    """
    domain = _looked_into(folder)
    replay = _looked_into(general) if general else None
    chosen = _filter_of([domain.texts, *([replay.texts] if replay else [])])
    share = _share_kept(domain.texts, chosen.values)
    tokens = int(domain.size * share / _BYTES_PER_TOKEN[base is None])
    if tokens < _FEWEST_TOKENS:
        raise ConfigError(
            f"{folder} holds about {rounded_count(tokens)} tokens of text that passes the filter; a model learns nothing "
            f"from fewer than {rounded_count(_FEWEST_TOKENS)} (about {4 * _FEWEST_TOKENS // 1000} KB)"
        )
    name = re.sub(r"[^a-z0-9_-]+", "-", folder.resolve().name.lower()).strip("-_")[:40] or "text"
    sizes = _Sizes.of(domain, tokens, base, replay)
    lines = _Lines()
    made_by = f"onward init {json.dumps(str(folder), ensure_ascii=False)}"
    lines.add(f"# Made by {made_by}: every value follows from the text, the model and this machine.")
    lines.add("# Change what you like; `onward plan` says what a change makes again.")
    lines.add(f"name: {name}")
    lines.add(f"store: stores/{name}")
    _corpus(lines, sizes, (folder, general), domain, replay, base)
    _filter_lines(lines, chosen)
    _model(lines, sizes, base)
    length, why_length = _length(base, tokens)
    lines.add("packing:")
    lines.add(f"  sequence_length: {length}", why_length)
    _training(lines, sizes, length, base)
    _evaluation(lines, sizes, name)
    return First(name, str(lines), tuple(_notes(folder, domain)))


def _looked_into(folder: Path) -> Folder:
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no directory; name a folder of text files")
    found = look_into(folder)
    if not found.texts:
        why = "; ".join(_refused(folder, found)) or "it holds no file with text"
        raise ConfigError(f"{folder} holds nothing that can be read: {why}")
    return found


def _notes(folder: Path, found: Folder) -> Iterator[str]:
    yield (
        f"{folder}: {found.files:,} file{'s' if found.files != 1 else ''}, about {found.documents:,} documents, "
        f"{found.size / 1e6:,.1f} MB of text"
    )
    yield from _refused(folder, found)


def _refused(folder: Path, found: Folder) -> Iterator[str]:
    for (what, way), paths in found.refused.items():
        named = ", ".join(path.relative_to(folder).as_posix() for path in paths[:2])
        more = f" and {len(paths) - 2:,} more" if len(paths) > 2 else ""
        yield f"not read: {named}{more} ({what}: {way})"


# ---- the filter ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Filter:
    """Values of `corpus.filter` that differ from the defaults, each with its reason."""

    values: dict[str, object]
    reasons: dict[str, str]


def _filter_of(samples: list[list[str]]) -> _Filter:
    """Switch off what takes a large part of a sample: such rules were made for pages of the web.

    One rule after the other, the one that takes most first, as a document that one rule leaves may fail the next.
    """
    values: dict[str, object] = {}
    reasons: dict[str, str] = {}
    left: dict[str, float] = {}
    if _worst(samples, _ONLY | {"language": "en"})[1] > _TOO_MANY:
        values["language"] = ANY_LANGUAGE
        reasons["language"] = "much of a sample is not sure to be English"
    for family in ("gopher", "c4", "fineweb"):
        off: dict[str, float] = {}
        while True:
            rule, share = _worst(samples, _ONLY | {family: True, "thresholds": dict.fromkeys(off)})
            if share <= _TOO_MANY or len(off) > _MOST_RULES:
                break
            off[rule] = share
        if len(off) > _MOST_RULES:
            values[family] = False
            reasons[family] = f"more than {_MOST_RULES} of its rules take much of a sample: {_said(off)}"
        else:
            left |= off
    if left:
        values["thresholds"] = dict.fromkeys(left)
        reasons["thresholds"] = f"not asked, for the share of a sample that they take: {_said(left)}"
    for family in (
        "c4",
        "fineweb",
        "gopher",
    ):  # C4 edits texts, so that the other two judge what it leaves of them
        kept = min(_share_kept(texts, values) for texts in samples)
        if kept < _ENOUGH and values.get(family) is not False:
            values[family] = False
            reasons[family] = f"with it, the filter keeps only {kept:.0%} of a sample"
    return _Filter(values, reasons)


_ONLY: dict[str, object] = {
    "language": ANY_LANGUAGE,
    "gopher": False,
    "c4": False,
    "fineweb": False,
    "pii": "off",
}


def _said(taken: dict[str, float]) -> str:
    return ", ".join(f"{rule} {share:.0%}" for rule, share in list(taken.items())[:_MOST_RULES])


def _worst(samples: list[list[str]], values: dict[str, object]) -> tuple[str, float]:
    """The rule that more documents of a sample fail first than any other, and their share."""
    config = FilterConfig.model_validate(values)
    found = [pair for texts in samples for pair in _taken(texts, config).items()]
    return max(found, key=lambda pair: pair[1], default=("", 0.0))


def _taken(texts: list[str], config: FilterConfig) -> dict[str, float]:
    """Share of the documents that fail each rule first."""
    rules = config.rules()
    failed = judge(pl.Series(texts, dtype=pl.String), None, config.families()).failed
    counts = Counter(rules[number].name for number in failed.tolist() if number >= 0)
    return {
        ("language" if rule.startswith("language") else rule): n / len(texts) for rule, n in counts.items()
    }


def _share_kept(texts: list[str], values: dict[str, object]) -> float:
    """Share of a sample's bytes that the filter keeps."""
    series = pl.Series(texts, dtype=pl.String)
    kept = judge(series, None, FilterConfig.model_validate(values).families()).texts
    return int(kept.str.len_bytes().sum()) / max(1, int(series.str.len_bytes().sum()))


# ---- the file ------------------------------------------------------------------------------------------------------


class _Lines:
    """YAML line by line, with the reasons in a column of their own."""

    def __init__(self) -> None:
        self._lines: list[tuple[str, str]] = []

    def add(self, text: str, why: str = "") -> None:
        """Add a line, and why it stands there."""
        self._lines.append((text, why))

    def __str__(self) -> str:
        written = []
        for text, why in self._lines:
            written.append(f"{text:<44} # {why}" if why and len(text) <= 44 and len(why) < 80 else text)
            if why and (len(text) > 44 or len(why) >= 80):
                written.insert(len(written) - 1, f"{' ' * (len(text) - len(text.lstrip()))}# {why}")
        return "\n".join(written) + "\n"


@dataclass(frozen=True)
class _Sizes:
    """What follows from how much text there is."""

    weight: float
    held: float
    """The share that is held out of the first slice."""
    held_out: int
    """Texts that are held out, as expected."""
    pieces: bool
    budgets: list[int]
    why_most: str

    @classmethod
    def of(cls, domain: Folder, tokens: int, base: str | None, replay: Folder | None) -> _Sizes:
        """`tokens`: of the domain's text that the filter keeps."""
        weight = 0.9 if base is None or replay is not None else 1.0
        documents = domain.documents
        if base is None:
            documents = math.ceil(documents * min(1.0, _SLICE / max(1, domain.size)))
        held = _holdout(documents)
        pieces = documents * held < _HELD_OUT and domain.size > LONG * _PIECE * domain.documents
        most, why_most = _largest(int(tokens * (1 - held)), weight, base)
        budgets = [_rounded(0.4 * most), _rounded(most)] if most >= 200_000 else [_rounded(most)]
        return cls(weight, held, documents if pieces else round(documents * held), pieces, budgets, why_most)


def _corpus(
    lines: _Lines,
    sizes: _Sizes,
    folders: tuple[Path, Path | None],
    domain: Folder,
    replay: Folder | None,
    base: str | None,
) -> None:
    folder, general = folders
    lines.add("corpus:")
    lines.add("  sources:")
    _source(lines, "domain", "domain", sizes.weight, folder, domain)
    if replay is not None and general is not None:
        _source(lines, "general", "replay", 0.1, general, replay)
    elif base is None:
        said = "Python's own documentation: what the small model is pre-trained on, and keeps"
        lines.add("    - name: general", said)
        lines.add("      role: replay")
        lines.add("      weight: 0.1")
        lines.add("      python_docs: general")
    if base is None:
        said = "read at a time: more than the small model will see"
        lines.add(f"  slice_bytes: {count_text(_SLICE)}", said)
    said = "of the shorter documents, only measured on" if sizes.pieces else "are only measured on"
    told = said if sizes.pieces else f"about {sizes.held_out:,} documents {said}"
    lines.add(f"  holdout_fraction: {sizes.held:g}", told)
    if sizes.pieces:
        said = "and of each long document a piece, as there are too few to hold out whole ones"
        lines.add(f"  holdout_piece: {count_text(_PIECE)}", said)


def _model(lines: _Lines, sizes: _Sizes, base: str | None) -> None:
    lines.add("model:")
    if base is not None:
        lines.add(f"  base: {json.dumps(from_home(base) if (home() / base).is_dir() else base)}")
        return
    lines.add("  base:")
    lines.add(
        "    init:", "no model was named (--base): a small one is made, to see the whole way in minutes"
    )
    for key, value in _SMALL.items():
        lines.add(f"      {key}: {value}")
    lines.add(f"      pretrain_tokens: {count_text(max(100_000, min(400_000, sizes.budgets[-1])))}")


def _training(lines: _Lines, sizes: _Sizes, length: int, base: str | None) -> None:
    budgets = sizes.budgets
    batch = _batch(budgets[0], length)
    lines.add("training:")
    lines.add(f"  token_budgets: [{', '.join(map(count_text, budgets))}]", sizes.why_most)
    lines.add(f"  batch_tokens: {batch}", f"about {budgets[0] // batch:,} steps to the first budget")
    if base is None:
        lines.add("  learning_rate: 2.0e-3", "usual for a model of this size")
    else:
        lines.add("  learning_rate: 5.0e-4", "the rate of Faroz 2025 (arXiv 2504.09687)")
    lines.add("  schedule:")
    lines.add("    kind: wsd")
    warmup = _rounded(max(budgets[0] * 0.05, 5 * batch))
    lines.add(f"    warmup_tokens: {count_text(warmup)}", "a twentieth of the first budget")
    lines.add("  precision: auto", "bf16 on a GPU, fp32 without")


def _evaluation(lines: _Lines, sizes: _Sizes, name: str) -> None:
    if sizes.held_out < _ENOUGH_HELD_OUT:
        return
    lines.add("evaluation:")
    lines.add("  own:", "pick the true continuation of a held-out document among four")
    lines.add(f"    - name: {name}-continuation")
    lines.add("      group: domain")
    lines.add("      held_out: domain")
    lines.add(f"      questions: {min(150, 3 * sizes.held_out)}")


def _source(lines: _Lines, name: str, role: str, weight: float, folder: Path, found: Folder) -> None:
    start = glob.escape(from_home(str(folder.resolve())))
    patterns = [f"{start}/{pattern}" for pattern in found.patterns]
    size = f"about {found.documents:,} documents, {found.size / 1e6:,.1f} MB"
    lines.add(f"    - name: {name}", size)
    lines.add(f"      role: {role}")
    lines.add(f"      weight: {weight:g}")
    lines.add(f"      files: {json.dumps(patterns, ensure_ascii=False)}")
    if found.text_field != USUAL_FIELD:
        lines.add(f"      text_field: {json.dumps(found.text_field)}", "the field with the longest values")


def _filter_lines(lines: _Lines, chosen: _Filter) -> None:
    if not chosen.values:
        return
    lines.add("  filter:")
    for key, value in chosen.values.items():
        if isinstance(value, dict):
            lines.add(f"    {key}:", chosen.reasons[key])
            for rule in value:
                lines.add(f"      {rule}: null")
        else:
            lines.add(f"    {key}: {json.dumps(value)}", chosen.reasons[key])


def _holdout(documents: int) -> float:
    """Share of the first slice's documents."""
    return min(0.2, max(0.005, math.ceil(1000 * _HELD_OUT / max(1, documents)) / 1000))


def _largest(tokens: int, weight: float, base: str | None) -> tuple[int, str]:
    """The last budget, and why it is so large."""
    read = int(EPOCHS * tokens / weight)
    often = f"the text, about {rounded_count(tokens)} tokens, is read {EPOCHS} times at most"
    if base is None:
        capped = min(read, _LARGEST_SMALL)
        return capped, often if capped == read else "what the small model takes in minutes"
    import torch

    if torch.cuda.is_available():
        capped = min(read, _LARGEST)
        return capped, often if capped == read else "the paper's second budget"
    rate = _OPERATIONS * usable_cores() / (6 * _parameters(home() / base))
    capped = min(read, int(_HOURS * 3600 * rate))
    hours = f"about {_HOURS:g} hours of training on these {usable_cores()} cores, without a GPU"
    return capped, often if capped == read else hours


def _parameters(directory: Path) -> int:
    """Parameters of a local model; 135 million for one that is not here."""
    weights = sorted(directory.glob("*.safetensors"))
    if not weights:
        return 135_000_000
    from safetensors import safe_open

    total = 0
    for path in weights:
        with safe_open(path, "pt") as file:
            total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return total


def _length(base: str | None, tokens: int) -> tuple[int, str]:
    if base is None:
        return (256, "documents of a page or two") if tokens >= 50_000 else (128, "there is little text")
    positions = 1024
    config = home() / base / "config.json"
    if config.is_file():
        found = json.loads(config.read_bytes())
        positions = int(found.get("max_position_embeddings") or found.get("n_positions") or positions)
    return min(
        1024, positions
    ), f"the model has {positions:,} positions" if positions < 1024 else "as in the paper"


def _batch(budget: int, length: int) -> int:
    """Tokens of a step: a power of two of sequences, so that the budget has about `_STEPS` steps."""
    sequences = max(1, min(524_288, budget // _STEPS) // length)
    return length * 2 ** int(math.log2(sequences))


def _rounded(count: float) -> int:
    """Two figures."""
    size = 10 ** max(0, int(math.log10(count)) - 1)
    return int(count // size * size)
