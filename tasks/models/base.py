"""Base: the model with which training begins, imported from a directory or the hub, or newly initialised.

The part `export` is what `from_pretrained` loads: config.json, generation_config.json, model.safetensors (float32,
tied weights stored once) and the tokenizer's files. The part `tokenizer` contains only the tokenizer's files, so
another model with the same tokenizer can reuse the cached tokens. Both name their end and begin of text (bos, else
eos) everywhere. The part `readers`, where there is need of one, holds what the exports of training say besides, so that
every reader takes them for what they are (readers.py).

The bytes depend on content only: the digest of a local directory's files, or the hub's name and commit, or the shape
and seed of a new model. Weights are read from safetensors only (never pickle), and no remote code is run.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

from pydantic import ConfigDict, field_validator, model_validator

from storage.artifact import Artifact, Input
from storage.atomic import sha256_file
from storage.draft import Draft
from storage.errors import ConfigError, HubUnreachable
from storage.settings import (
    Count,
    LineText,
    PathText,
    Real,
    Settings,
    Whole,
    execution,
    identity,
    identity_of,
)
from tasks.corpus.reading.hub import Remembered, asked, commit_of
from tasks.corpus.tokenizer import TokenizerConfig
from tasks.corpus.tokens.begin import ends_of
from tasks.corpus.tokens.vocabulary import TOKENIZER_FILES
from tasks.models.source import CONFIG, USED, check_files, files_of, unreadable

STAGE = "base"
VERSION = 2
COMPONENTS = {"imported": 1, "new": 1}
"""Versions of how a model is imported, and of how one is made anew."""

_HUB_NAME = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")


class InitConfig(Settings):
    """A new model of the Llama architecture, pre-trained in round 0 on the replay sources."""

    model_config = ConfigDict(title="New model")

    hidden_size: Whole = identity(ge=8, le=65_536, description="Width of the model")
    layers: Whole = identity(ge=1, le=1024, description="Number of layers")
    heads: Whole = identity(ge=1, le=1024, description="Attention heads; they share the width")
    kv_heads: Whole | None = identity(
        None, ge=1, le=1024, description="Heads of keys and values; null: as many as heads"
    )
    intermediate_size: Whole | None = identity(
        None,
        ge=8,
        le=1_048_576,
        description="Width of the feed-forward layers; null: 8/3 of hidden_size, up to a multiple of 32",
    )
    max_positions: Count = identity(1024, ge=2, le=1_048_576, description="Longest sequence, in tokens")
    tie_embeddings: bool = identity(True, description="Whether the output head is the embedding")
    rope_theta: Real = identity(10_000.0, gt=0, le=1e12, description="Base of the rotary positions")
    tokenizer: TokenizerConfig = identity(
        default_factory=TokenizerConfig, description="Vocabulary that is trained for it"
    )
    pretrain_tokens: Count = identity(gt=0, description="Tokens that it is pre-trained on in round 0")

    @model_validator(mode="after")
    def _shape_fits(self) -> Self:
        if self.hidden_size % (2 * self.heads):
            raise ValueError(f"hidden_size must be a multiple of twice the heads (2 × {self.heads})")
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        return self


class ModelConfig(Settings):
    """The section `model`. The base enters keys by content (`resolve_base`), not by name or path."""

    base: PathText | InitConfig = execution(
        description="Hub name, local directory, or {init: …}: a new model"
    )
    revision: LineText = execution(
        "main", min_length=1, description="Branch, tag or commit, of a model on the hub"
    )
    licence: LineText | None = execution(
        None, min_length=1, description="Licence of the base, such as apache-2.0: model cards name it"
    )
    dropout: Real = identity(
        0.0, ge=0, lt=1, description="Dropout in training (0 to 1), whatever the base's own was"
    )

    @field_validator("base", mode="before")
    @classmethod
    def _unwrap(cls, value: Any) -> Any:
        return value["init"] if isinstance(value, Mapping) and set(value) == {"init"} else value


class BaseConfig(Settings):
    """No options: the inputs decide everything."""


@dataclass(frozen=True)
class BaseInputs:
    """`origin` is plain JSON: {"local": digest}, {"hub": name, "commit": …} or {"init": shape, "seed": …}.

    `tokenizer`: only for a new model. `path`: the location of a local directory, not in the key.
    """

    origin: Mapping[str, Any]
    tokenizer: Input | None = None
    path: Path | None = field(default=None, metadata={"in_key": False})


@dataclass(frozen=True)
class BaseStats:
    """The model's facts (see `tasks.models.files.model_facts`)."""

    parameters: int
    layers: int
    hidden_size: int
    max_positions: int | None
    vocabulary: int
    eot: int
    architecture: str
    tokenizer: str


def resolve_base(
    config: ModelConfig,
    home: Path,
    *,
    seed: int = 0,
    tokenizer: Input | None = None,
    remembered: Remembered | None = None,
    read: bool = True,
) -> BaseInputs:
    """Identify the base by content. A relative directory starts at `home`, and takes precedence over a hub name.

    `seed` and `tokenizer` (the part of the stage `tokenizer`) are for a new model. The function reads the files of a
    local directory (not with `read` False: then its digest is not known), or asks the hub for the commit of
    `revision`, once per `remembered`. Raises ConfigError if there is no such model, HubUnreachable if the hub does
    not answer.
    """
    if isinstance(config.base, InitConfig):
        shape = identity_of(config.base)
        del shape["tokenizer"], shape["pretrain_tokens"]  # keyed by the tokenizer's digest, and by round 0
        return BaseInputs(origin={"init": shape, "seed": seed}, tokenizer=tokenizer)
    directory = home / config.base
    if directory.is_dir():
        digest = directory_digest(directory) if read else ""
        return BaseInputs(origin={"local": digest}, path=directory.resolve())
    if Path(config.base).is_absolute() or config.base.startswith(".") or not _HUB_NAME.fullmatch(config.base):
        raise ConfigError(f"model.base: there is no directory {config.base} (looked for {directory}).")
    commit = _commit(config.base, config.revision, remembered or Remembered(None))
    return BaseInputs(origin={"hub": config.base, "commit": commit})


def components(config: BaseConfig, inputs: BaseInputs) -> Iterator[str]:
    """Which of the two it is."""
    yield "new" if "init" in inputs.origin else "imported"


def directory_digest(directory: Path) -> str:
    """sha256 over the names and the sha256 of all files that an import may read.

    Raises ConfigError for a file that cannot be read, or that is a link out of the directory.
    """
    lines = []
    for path in files_of(directory):
        try:
            lines.append(f"{path.name}\0{sha256_file(path)}\n")
        except OSError as error:
            raise unreadable(path, error) from error
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def run(config: BaseConfig, inputs: BaseInputs, draft: Draft) -> BaseStats:
    """Write parts `export`, `tokenizer`, and `readers` if there is need of it.

    Raises ConfigError for an unusable model or tokenizer.
    """
    from tasks.models.files import import_model, initialise_model, model_facts
    from tasks.models.readers import write_readers

    export, readers = draft.path / "export", draft.path / "readers"
    for made in (export, readers):
        made.mkdir(exist_ok=True)
        for left in made.iterdir():
            left.unlink()
    directory = None
    if "init" in inputs.origin:
        if inputs.tokenizer is None:
            raise ConfigError("A new model needs the tokenizer that was trained for it.")
        initialise_model(inputs.origin["init"], inputs.origin["seed"], inputs.tokenizer.paths, export)
    else:
        directory = inputs.path or _download(inputs.origin["hub"], inputs.origin["commit"])
        if "local" in inputs.origin and directory_digest(directory) != inputs.origin["local"]:
            raise ConfigError(
                f"model.base: the files in {directory} changed since this run began; the next start imports them anew",
                passing=True,
            )
        for message in import_model(directory, export):
            draft.warn(message)
    for message in write_readers(export, readers, directory):
        draft.warn(message)
    if (ends := ends_of(export)) is not None:
        draft.note(text=ends.facts)
    draft.part("export", "export")
    if any(readers.iterdir()):
        draft.part("readers", "readers")
    draft.part("tokenizer", *(f"export/{name}" for name in TOKENIZER_FILES))
    return BaseStats(**asdict(model_facts(export)))


def readers_of(base: Artifact) -> Input | None:
    """The part `readers` of a base, or None: there is no need of one, or 0.1.0 imported it."""
    return base.part("readers") if base.has("readers") else None


def _commit(name: str, revision: str, remembered: Remembered) -> str:
    """The commit that the store first resolved. If the hub does not answer, that of the last download to this machine."""
    try:
        return commit_of("model", name, revision, "model.base", remembered, "model.revision")
    except HubUnreachable as error:
        commit = _cached_commit(name, revision)
        if commit is None:
            raise HubUnreachable(
                f"{error} (or give a directory: there is no local one named {name!r})"
            ) from None
        return str(remembered.remember(commit, "commit", "model", name, revision))


def _cached_commit(name: str, revision: str) -> str | None:
    """The commit of the revision when it was last downloaded to this machine."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(found).parent.name if isinstance(found, str) else None


def described(inputs: BaseInputs) -> tuple[bytes, str] | None:
    """The config.json of a base that is to be imported, and its name for messages; None for a new model.

    Of a hub model this file alone is fetched; all files of a directory are looked at (`check_files`). Raises ConfigError
    if there is none, HubUnreachable if the hub does not answer.
    """
    if "init" in inputs.origin:
        return None
    if inputs.path is not None:
        check_files(inputs.path)
        path, name = inputs.path / CONFIG, str(inputs.path / CONFIG)
    else:
        hub = inputs.origin["hub"]
        found = fetch_file(hub, inputs.origin["commit"], CONFIG)
        if found is None:
            raise ConfigError(
                f"model.base: {hub} has no {CONFIG}, so it is no model by itself (an adapter, or a GGUF file alone?); name "
                "the model that it belongs to"
            )
        path, name = found, f"the {CONFIG} of {hub}"
    try:
        return path.read_bytes(), name
    except OSError as error:
        raise unreadable(path, error) from error


def fetch_file(name: str, commit: str, file: str) -> Path | None:
    """One small file of a model on the hub, in the client's cache; None if it has no such file.

    Raises ConfigError for a model that is gated or gone, HubUnreachable if the hub does not answer.
    """
    from huggingface_hub import errors, hf_hub_download

    def fetch() -> str | None:
        try:
            return hf_hub_download(name, file, revision=commit)
        except errors.RemoteEntryNotFoundError:
            return None

    found = asked(fetch, "model", name, commit, "model.base", "model.revision")
    return None if found is None else Path(found)


def _download(name: str, commit: str) -> Path:
    """The files of a model in the client's own cache. Cached files are not requested again.

    Raises ConfigError for a model that is gated or gone, HubUnreachable if the connection breaks; received files are
    kept.
    """
    from huggingface_hub import snapshot_download

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fetch = partial(snapshot_download, name, revision=commit, allow_patterns=list(USED))
        return Path(asked(fetch, "model", name, commit, "model.base", "model.revision"))
