"""Refuses a base model that cannot be trained, before anything is read or made, and says what training it costs."""

from __future__ import annotations

import contextlib
import hashlib
import json
from importlib import metadata

from flows.config import RunConfig
from storage.atomic import write_bytes
from storage.errors import ConfigError, HubUnreachable
from storage.paths import home
from storage.store import Request, Store
from tasks.corpus.reading.hub import remembered_in
from tasks.corpus.tokens.begin import BOS, ends_of, refused, told
from tasks.models import base
from tasks.models.base import BaseConfig, BaseInputs, InitConfig, described, fetch_file, resolve_base
from tasks.models.config import resolve_precision
from tasks.models.readers import OF_CHAT
from tasks.models.source import chat_template

_CHECKED = 2
"""Version of the check of a base; a newer one looks again at what passed an older one."""


def check_base(run: RunConfig) -> list[str]:
    """Refuse a base that cannot be trained on these sequences, from its configuration alone: of a hub model, only that
    is fetched. Returns what the user should know of a base that is taken.

    The check is the trainer's own (tasks/training/trainable.py). A base that passed is remembered in the store, so
    that a run over a finished store imports no model code. If the hub does not answer, the import says so.
    """
    if isinstance(run.model.base, InitConfig):
        return []
    store = Store(run.store_path)
    try:
        inputs = resolve_base(run.model, home(), remembered=remembered_in(run.store_path), read=False)
        found = _imported(store, inputs) or described(inputs)
    except HubUnreachable:
        return []
    assert found is not None
    raw, name = found
    beginning = [*_beginning(run, inputs), *_chat(store, inputs)]
    precision, length = resolve_precision(run.training), run.packing.sequence_length
    versions = [metadata.version(library) for library in ("torch", "transformers")]
    facts = json.dumps([_CHECKED, hashlib.sha256(raw).hexdigest(), length, precision, versions])
    passed = store.root / ".cache" / "trainable" / hashlib.sha256(facts.encode()).hexdigest()
    if passed.exists():
        return [*passed.read_text(encoding="utf-8").splitlines(), *beginning]
    from tasks.models.source import configuration
    from tasks.training.trainable import check_trainable

    try:
        notes = check_trainable(configuration(raw, name), length, precision)
    except ConfigError as error:
        raise ConfigError(f"model.base: {str(error).removeprefix('model.base: ')}") from error
    if store.root.is_dir():
        with contextlib.suppress(OSError):
            passed.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(passed, "\n".join(notes).encode())
    return [*notes, *beginning]


def _beginning(run: RunConfig, inputs: BaseInputs) -> list[str]:
    """What documents begin with, if the base lies here and its files say it; otherwise the run says it after the import.

    Raises ConfigError where its tokenizer lacks the token.
    """
    ends = None if inputs.path is None else ends_of(inputs.path)
    if run.packing.begin == BOS and ends is not None and ends.bos is None:
        raise ConfigError(refused(ends))
    line = told(ends, run.packing.begin)
    return [] if line is None else [line]


def _chat(store: Store, inputs: BaseInputs) -> list[str]:
    """That the base is a chat model. Of a model on the hub that was not imported yet, two small files are asked for."""
    directory = inputs.path or store.path_of(base.STAGE, Request(base, BaseConfig(), inputs).key) / "export"
    if inputs.path is None and not directory.is_dir():
        hub, commit = inputs.origin["hub"], inputs.origin["commit"]
        try:
            if fetch_file(hub, commit, "chat_template.jinja") is not None:
                return [OF_CHAT]
            facts = fetch_file(hub, commit, "tokenizer_config.json")
        except HubUnreachable:
            return []
        if facts is None:
            return []
        directory = facts.parent
    return [] if chat_template(directory) is None else [OF_CHAT]


def _imported(store: Store, inputs: BaseInputs) -> tuple[bytes, str] | None:
    """The configuration of a hub model that was imported into the store."""
    if "hub" not in inputs.origin:
        return None
    path = store.path_of(base.STAGE, Request(base, BaseConfig(), inputs).key) / "export" / "config.json"
    return (path.read_bytes(), str(path)) if path.is_file() else None
