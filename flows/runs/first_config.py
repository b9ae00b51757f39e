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
_SLICE_BYTES = 12
"""Bytes read at a time for each token that the small model is pre-trained on: of Python's documentation, with its many
repetitions, about a tenth of a token is left of a byte."""
_LARGEST = 1_000_000_000
_FEWEST_TOKENS = 5_000
_BYTES_PER_TOKEN = {True: 3.3, False: 4.3}
"""Of English, in a vocabulary of 4,096 words that is made for the text, and in one of 50,000."""
_LEAST_SLICE = 2_000_000
_STEPS = 62
"""Steps to the first budget, at least. Below 60, a warning is given (checks.py)."""
_MOST_STEPS = 200
"""Steps of the small model's pre-training, at most: with little text a step is small, and takes hardly less time."""
_HELD_OUT = 40
"""Documents held out that are aimed at."""
_VERDICT = 10
"""Held-out documents below which the report gives no verdict."""
_SURELY = 15
"""Documents held out that are aimed at where there are few: a draw gives some fewer."""
_PIECES = (4_000, 2_000, 1_000, 500)
"""Sizes of held-out pieces, in bytes. The largest is taken of which enough documents give one."""
_MOST_LONG = 0.7
"""Share of the documents from which on pieces of them are held out, and not whole ones."""
_MOST_HELD = 0.45
"""Share of a few documents that is held out, at most. The configuration allows less than a half."""
_WORDS_OF_A_QUESTION = 125
"""The most that a question of held-out text takes (tasks/evaluation/questions.py)."""
_HOURS = 2.0
_OPERATIONS = 60e9
"""Operations per second of one core in training, cautiously."""
_TOO_MANY = 0.1
"""A rule that takes a larger share of a sample was made for other text."""
_MOST_RULES = 3
_ENOUGH = 0.7
"""Share of a sample's bytes that the filter should keep: this text was chosen by a person."""
_ENOUGH_QUESTIONS = 12
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
    _check_base(base)
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
    lines.add("packing:")
    lines.add(f"  sequence_length: {sizes.length}", sizes.why_length)
    _training(lines, sizes, base)
    _evaluation(lines, sizes, name)
    return First(name, str(lines), tuple(_notes(folder, domain, sizes, base)))


def _check_base(base: str | None) -> None:
    """Refuse what is neither a model's directory nor the name of one on the hub."""
    if base is None:
        return
    here = home() / base
    if here.is_dir():
        if not (here / "config.json").is_file():
            raise ConfigError(f"--base {base} holds no config.json: it is no directory of a model")
    elif not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", base):
        raise ConfigError(
            f"--base {base}: there is no such directory, and it is no name of a model on the hub (owner/model)"
        )


def _looked_into(folder: Path) -> Folder:
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no directory; name a folder of text files")
    found = look_into(folder)
    if not found.texts:
        why = "; ".join(_refused(folder, found)) or "it holds no file with text"
        raise ConfigError(f"{folder} holds nothing that can be read: {why}")
    return found


def _notes(folder: Path, found: Folder, sizes: _Sizes, base: str | None) -> Iterator[str]:
    yield (
        f"{folder}: {found.files:,} file{'s' if found.files != 1 else ''}, {_documents(found.documents)}, "
        f"{_size(found.size)} of text"
    )
    yield from _refused(folder, found)
    if sizes.held.texts < _VERDICT:
        yield (
            f"! the model will be measured on {_texts(sizes.held.texts)} of it, and fewer than {_VERDICT} give no verdict: "
            "split long files, a chapter a file, or give more text"
        )
    if base is None:
        yield "no --base: a small model is made here, which needs no network; --base DIRECTORY trains one of yours"
    elif not (home() / base).is_dir():
        yield from _of_the_hub(base)


def _of_the_hub(base: str) -> Iterator[str]:
    """What a run will need for a model that is no directory here."""
    import huggingface_hub

    if not isinstance(huggingface_hub.try_to_load_from_cache(base, "config.json"), str):
        local = f"models/{base.rsplit('/', 1)[-1].lower()}"
        yield (
            f"{base} is not on this machine: the run fetches it from the hub. Without a network, where there is one: "
            f"hf download {base} --local-dir {local}, copy {local} here and name it; or leave --base out"
        )


def _documents(count: int) -> str:
    return "one document" if count == 1 else f"about {count:,} documents"


def _texts(count: int) -> str:
    return "one text" if count == 1 else f"about {count:,} texts"


def _size(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1_000_000 else f"{max(1, round(size / 1000)):,} KB"


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
class _Held:
    """What is held out of the domain's text."""

    fraction: float
    """Of the first slice's documents."""
    piece: int | None
    """Bytes that are held out of each long document; None: documents are held out whole."""
    texts: int
    """How many are held out, as expected."""
    questions: int
    """How many questions they give, as expected."""
    tokens: float
    """Share of the text that is left to train on."""

    @classmethod
    def of(cls, domain: Folder, slice_bytes: int | None) -> _Held:
        """`slice_bytes`: None if the first slice is all of the text."""
        documents = domain.documents
        if slice_bytes is not None:
            documents = math.ceil(documents * min(1.0, slice_bytes / max(1, domain.size)))
        fraction = _holdout(documents)
        if documents * fraction < _HELD_OUT:
            for piece in _PIECES:  # a fifth more than needed, as the filter edits texts
                long = sum(len(text.encode()) >= 1.2 * LONG * piece for text in domain.texts) / len(
                    domain.texts
                )
                held = round(documents * long)
                if long >= _MOST_LONG or held >= _HELD_OUT:
                    left = 1 - held * piece / max(1, domain.size) - fraction * (1 - long)
                    return cls(fraction, piece, held, int(documents * _questions(domain, piece)), left)
            fraction = max(fraction, min(_MOST_HELD, math.ceil(100 * _SURELY / documents) / 100))
        held = round(documents * fraction)
        return cls(fraction, None, held, int(held * _questions(domain, None)), 1 - fraction)


def _questions(domain: Folder, piece: int | None) -> float:
    """How many questions a document, or a piece of so many bytes, gives: three at most, the mean of a sample."""
    found = 0
    for text in domain.texts:
        words, size = len(text.split()), max(1, len(text.encode()))
        seen = words if piece is None else words * piece / size if size >= LONG * piece else 0
        found += min(3, int(seen / _WORDS_OF_A_QUESTION))
    return found / len(domain.texts)


@dataclass(frozen=True)
class _Sizes:
    """What follows from how much text there is."""

    weight: float
    held: _Held
    budgets: list[int]
    why_most: str
    length: int
    why_length: str
    batch: int
    pretrain: int
    """Tokens that the small model is pre-trained on."""

    @property
    def slice_bytes(self) -> int:
        """Text that is read at a time for the small model."""
        return max(_LEAST_SLICE, _SLICE_BYTES * self.pretrain)

    @classmethod
    def of(cls, domain: Folder, tokens: int, base: str | None, replay: Folder | None) -> _Sizes:
        """`tokens`: of the domain's text that the filter keeps."""
        weight = 0.9 if base is None or replay is not None else 1.0
        length, why_length = _length(base, tokens)
        first = cls._trained(_Held.of(domain, None), tokens, weight, base, length)
        slice_bytes = None if base is not None else max(_LEAST_SLICE, first[-1] * _SLICE_BYTES)
        held = _Held.of(domain, slice_bytes)
        budgets, why_most, batch, pretrain = cls._trained(held, tokens, weight, base, length)
        return cls(weight, held, budgets, why_most, length, why_length, batch, pretrain)

    @staticmethod
    def _trained(
        held: _Held, tokens: int, weight: float, base: str | None, length: int
    ) -> tuple[list[int], str, int, int]:
        """Budgets and why, tokens of a step, and tokens of the small model's pre-training."""
        most, why_most = _largest(int(tokens * held.tokens), weight, base)
        budgets = [_rounded(0.4 * most), _rounded(most)] if most >= 200_000 else [_rounded(most)]
        batch = _batch(budgets[0], length)
        pretrain = min(max(100_000, min(400_000, budgets[-1])), _MOST_STEPS * batch)
        return budgets, why_most, batch, _rounded(pretrain)


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
        lines.add(f"  slice_bytes: {count_text(_rounded(sizes.slice_bytes))}", said)
    held = sizes.held
    if held.piece is not None:
        lines.add(f"  holdout_fraction: {held.fraction:g}", "of the shorter documents, only measured on")
        said = "and of each long document a piece, as there are too few to hold out whole ones"
        lines.add(f"  holdout_piece: {count_text(held.piece)}", said)
    else:
        few = f"; fewer than {_VERDICT} give no verdict" if held.texts < _HELD_OUT else ""
        lines.add(
            f"  holdout_fraction: {held.fraction:g}", f"{_documents(held.texts)} are only measured on{few}"
        )


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
    lines.add(f"      pretrain_tokens: {count_text(sizes.pretrain)}", "on the source general")


def _training(lines: _Lines, sizes: _Sizes, base: str | None) -> None:
    budgets, batch = sizes.budgets, sizes.batch
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
    if sizes.held.questions < _ENOUGH_QUESTIONS:
        return
    lines.add("evaluation:")
    lines.add("  own:", "pick the true continuation of a held-out document among four")
    lines.add(f"    - name: {name}-continuation")
    lines.add("      group: domain")
    lines.add("      held_out: domain")
    lines.add(f"      questions: {min(150, sizes.held.questions)}")


def _source(lines: _Lines, name: str, role: str, weight: float, folder: Path, found: Folder) -> None:
    start = glob.escape(from_home(str(folder.resolve())))
    patterns = [f"{start}/{pattern}" for pattern in found.patterns]
    size = f"{_documents(found.documents)}, {_size(found.size)}"
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
