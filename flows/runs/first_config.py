"""A first configuration for a folder of text: every value follows from the text, the model and this machine.

The answer is YAML with the reason beside each value, so that it can be read and changed. Nothing is trained to find it:
the folder is looked into, a sample of its documents is put to the filter's rules (first_filter.py), sizes follow
(first_sizes.py), and the file is written (first_file.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flows.runs import first_file
from flows.runs.first_file import VERDICT, Lines, documents_text, size_text
from flows.runs.first_filter import filter_of, share_kept
from flows.runs.first_sizes import Sizes
from storage.counts import rounded_count
from storage.errors import ConfigError
from storage.paths import home
from tasks.corpus.reading.sample import Folder, look_into
from tasks.documents.sample import look_into_documents

_FEWEST_TOKENS = 5_000
_BYTES_PER_TOKEN = {True: 3.3, False: 4.3}
"""Of English, in a vocabulary of 4,096 words that is made for the text, and in one of 50,000."""


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
    chosen = filter_of([domain.texts, *([replay.texts] if replay else [])])
    share = share_kept(domain.texts, chosen.values)
    tokens = int(domain.size * share / _BYTES_PER_TOKEN[base is None])
    if tokens < _FEWEST_TOKENS:
        raise ConfigError(
            f"{folder} holds about {rounded_count(tokens)} tokens of text that passes the filter; a model learns nothing "
            f"from fewer than {rounded_count(_FEWEST_TOKENS)} (about {4 * _FEWEST_TOKENS // 1000} KB)"
        )
    name = re.sub(r"[^a-z0-9_-]+", "-", folder.resolve().name.lower()).strip("-_")[:40] or "text"
    sizes = Sizes.of(domain, tokens, base, replay)
    lines = Lines()
    made_by = f"onward init {json.dumps(str(folder), ensure_ascii=False)}"
    lines.add(f"# Made by {made_by}: every value follows from the text, the model and this machine.")
    lines.add("# Change what you like; `onward plan` says what a change makes again.")
    lines.add(f"name: {name}")
    lines.add(f"store: stores/{name}")
    first_file.corpus(lines, sizes, (folder, general), domain, replay, base)
    first_file.filter_section(lines, chosen)
    first_file.model(lines, sizes, base)
    lines.add("packing:")
    lines.add(f"  sequence_length: {sizes.length}", sizes.why_length)
    first_file.training(lines, sizes, base)
    first_file.evaluation(lines, sizes, name)
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
    found = look_into_documents(folder) or look_into(folder)
    if not found.texts:
        why = "; ".join((*found.notes, *_refused(folder, found))) or "it holds no file with text"
        raise ConfigError(f"{folder} holds nothing that can be read: {why}")
    return found


def _notes(folder: Path, found: Folder, sizes: Sizes, base: str | None) -> Iterator[str]:
    yield (
        f"{folder}: {found.files:,} file{'s' if found.files != 1 else ''}, {documents_text(found.documents)}, "
        f"{size_text(found.size)} of text"
    )
    yield from found.notes
    yield from _refused(folder, found)
    if sizes.held.texts < VERDICT:
        yield (
            f"! the model will be measured on {_texts(sizes.held.texts)} of it, and fewer than {VERDICT} give no verdict: "
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


def _texts(count: int) -> str:
    return "one text" if count == 1 else f"about {count:,} texts"


def _refused(folder: Path, found: Folder) -> Iterator[str]:
    for (what, way), paths in found.refused.items():
        named = ", ".join(path.relative_to(folder).as_posix() for path in paths[:2])
        more = f" and {len(paths) - 2:,} more" if len(paths) > 2 else ""
        yield f"not read: {named}{more} ({what}: {way})"
