"""A first configuration as YAML: section by section, the reason beside each value."""

from __future__ import annotations

import glob
import json
from pathlib import Path

from flows.runs.first_filter import Chosen
from flows.runs.first_sizes import HELD_OUT, Sizes, rounded
from storage.counts import count_text
from storage.paths import from_home, home
from tasks.corpus.reading.sample import USUAL_FIELD, Folder

VERDICT = 10
"""Held-out documents below which the report gives no verdict."""
_ENOUGH_QUESTIONS = 12
_SMALL = {
    "hidden_size": "128",
    "layers": "4",
    "heads": "4",
    "max_positions": "512",
    "tokenizer": "{vocabulary: 4096}",
}
"""The small model, as YAML."""


class Lines:
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


def corpus(
    lines: Lines,
    sizes: Sizes,
    folders: tuple[Path, Path | None],
    domain: Folder,
    replay: Folder | None,
    base: str | None,
) -> None:
    """The section `corpus`, but for its filter. `folders`: of the domain's text, and of general text."""
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
        lines.add(f"  slice_bytes: {count_text(rounded(sizes.slice_bytes))}", said)
    held = sizes.held
    if held.piece is not None:
        lines.add(f"  holdout_fraction: {held.fraction:g}", "of the shorter documents, only measured on")
        said = "and of each long document a piece, as there are too few to hold out whole ones"
        lines.add(f"  holdout_piece: {count_text(held.piece)}", said)
    else:
        few = f"; fewer than {VERDICT} give no verdict" if held.texts < HELD_OUT else ""
        lines.add(
            f"  holdout_fraction: {held.fraction:g}",
            f"{documents_text(held.texts)} are only measured on{few}",
        )


def filter_section(lines: Lines, chosen: Chosen) -> None:
    """The filter of the section `corpus`."""
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


def model(lines: Lines, sizes: Sizes, base: str | None) -> None:
    """The section `model`."""
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


def training(lines: Lines, sizes: Sizes, base: str | None) -> None:
    """The section `training`."""
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
    warmup = rounded(max(budgets[0] * 0.05, 5 * batch))
    lines.add(f"    warmup_tokens: {count_text(warmup)}", "a twentieth of the first budget")
    lines.add("  precision: auto", "bf16 on a GPU, fp32 without")


def evaluation(lines: Lines, sizes: Sizes, name: str) -> None:
    """The section `evaluation`, where the held-out text gives enough questions."""
    if sizes.held.questions < _ENOUGH_QUESTIONS:
        return
    lines.add("evaluation:")
    lines.add("  own:", "pick the true continuation of a held-out document among four")
    lines.add(f"    - name: {name}-continuation")
    lines.add("      group: domain")
    lines.add("      held_out: domain")
    lines.add(f"      questions: {min(150, sizes.held.questions)}")


def _source(lines: Lines, name: str, role: str, weight: float, folder: Path, found: Folder) -> None:
    start = glob.escape(from_home(str(folder.resolve())))
    patterns = [f"{start}/{pattern}" for pattern in found.patterns]
    size = f"{documents_text(found.documents)}, {size_text(found.size)}"
    lines.add(f"    - name: {name}", size)
    lines.add(f"      role: {role}")
    lines.add(f"      weight: {weight:g}")
    lines.add(f"      files: {json.dumps(patterns, ensure_ascii=False)}")
    if found.text_field != USUAL_FIELD:
        lines.add(f"      text_field: {json.dumps(found.text_field)}", "the field with the longest values")


def documents_text(count: int) -> str:
    """`about 1,200 documents`."""
    return "one document" if count == 1 else f"about {count:,} documents"


def size_text(size: int) -> str:
    """`3.2 MB` of so many bytes."""
    return f"{size / 1e6:,.1f} MB" if size >= 1_000_000 else f"{max(1, round(size / 1000)):,} KB"
