"""A model's files as a directory of the user's: all of them with a model card, or nothing."""

from __future__ import annotations

import contextlib
import errno
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from flows.inspect.about import about_of
from flows.inspect.rounding import measured
from storage.artifact import Artifact
from storage.atomic import commit_directory
from storage.catalog import Catalog
from storage.errors import ConfigError, OnwardError
from storage.runs import shared_lock
from storage.store import Store
from tasks.models.card import model_card
from tasks.models.checkpoint import OF_TRAINING
from tasks.models.form import GGUF, Form
from tasks.training.state.readers import CONFIG, add_readers


def export_model(
    catalog: Catalog, artifact: Artifact, directory: Path, form: Form | None = None, *, measure: bool = False
) -> None:
    """Write a model in a form into a new directory, with a model card. Without a form it is copied as it is.

    `measure`: the perplexity of rounded weights is measured, on the text that the model was measured on, for the card.
    A killed or failed export leaves no `directory`. Raises OnwardError if the directory exists, if there is no space for
    it, or if the model cannot be had in that form.
    """
    form = form or Form()
    if directory.exists() or directory.is_symlink():
        raise OnwardError(f"{directory} exists already")
    beside = directory.absolute().with_name(
        f".{directory.absolute().name[:200]}.{secrets.token_hex(4)}.partial"
    )
    try:
        beside.mkdir(parents=True)
        with kept(catalog.store), as_model(catalog.store, artifact) as export:
            (_write_gguf if form.format == GGUF else _copy)(artifact, export, beside, form)
            about = about_of(catalog.store, artifact)
            if measure and form != Form():
                about = replace(about, measured=measured(catalog, artifact, beside, form))
            card = model_card(catalog, artifact, form, about)
            (beside / "README.md").write_text(card, encoding="utf-8")
        commit_directory(beside, directory.absolute())
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            part = artifact.part("export" if artifact.has("export") else "trunk")
            size = sum(path.stat().st_size for path in part.paths)
            raise OnwardError(
                f"{directory}: no space left; the model takes {size:,} bytes. Nothing was written"
            ) from error
        raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def is_model(artifact: Artifact) -> bool:
    """Whether an artifact is a model, or a trunk, which `as_model` makes one of."""
    return artifact.has("export") or artifact.has("trunk")


@contextlib.contextmanager
def as_model(store: Store, artifact: Artifact) -> Iterator[Path]:
    """A directory that `from_pretrained` loads: the part `export`; of a trunk, links to its weights and its tokenizer.

    Raises OnwardError if the artifact is no model, or if the tokenizer of a trunk is gone.
    """
    if artifact.has("export"):
        yield artifact.path / "export"
        return
    if not artifact.has("trunk"):
        raise OnwardError(f"{artifact.stage} {artifact.key[:12]} holds no model")
    named = artifact.manifest.inputs["tokenizer"]
    of_tokenizer = store.lookup(named["stage"], named["key"])
    if of_tokenizer is None:
        raise OnwardError(
            f"{named['stage']}/{named['key'][:12]}, which has the tokenizer, is gone from {store.root}"
        )
    from tasks.training.state.export import copy_tokenizer

    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for path in artifact.part("trunk").paths:
            if path.name == CONFIG:
                shutil.copyfile(path, directory / path.name)
            elif path.name not in OF_TRAINING:
                (directory / path.name).symlink_to(path)
        copy_tokenizer(of_tokenizer.path / "export", directory)
        if of_tokenizer.has("readers"):
            readers = of_tokenizer.path / "readers"
            for path in readers.iterdir():
                if path.name != CONFIG:
                    (directory / path.name).unlink(missing_ok=True)
            add_readers(directory, readers)
        yield directory


def _copy(artifact: Artifact, export: Path, target: Path, form: Form) -> None:
    """The files of a model, with what other readers need, and the weights in the form's type."""
    for path in _files(export):
        if form.dtype is not None and path.suffix == ".safetensors":
            continue
        (target / path.relative_to(export)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / path.relative_to(export))
    if form.dtype is not None:
        from tasks.formats.rounded import write_rounded

        write_rounded(export, target, form.dtype)
    _say_it_to_readers(artifact, target)


def _files(export: Path) -> list[Path]:
    return sorted(path for path in export.rglob("*") if path.is_file())


def _write_gguf(artifact: Artifact, export: Path, target: Path, form: Form) -> None:
    """One GGUF file, and the Modelfile with which Ollama takes it."""
    from tasks.formats.gguf_file import write_gguf
    from tasks.formats.ollama import modelfile

    with tempfile.TemporaryDirectory(
        dir=target
    ) as name:  # the files that say what the model is, without its weights
        facts = Path(name)
        for path in _files(export):
            (facts / path.relative_to(export)).parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".safetensors":
                (facts / path.relative_to(export)).symlink_to(path.resolve())
            else:
                shutil.copyfile(path, facts / path.relative_to(export))
        _say_it_to_readers(artifact, facts)
        write_gguf(facts, target / form.file, form.said, f"{artifact.stage}-{artifact.key[:12]}")
        (target / "Modelfile").write_text(modelfile(facts, form.file), encoding="utf-8")


def _say_it_to_readers(artifact: Artifact, export: Path) -> None:
    """Add what other readers need (tasks/models/readers.py): that of the base itself, or found anew for older models."""
    from tasks.models.readers import write_readers

    if artifact.has("readers"):
        add_readers(export, artifact.path / "readers")
    if not (export / "config.json").is_file():  # nothing that a reader would take for a model
        return
    with tempfile.TemporaryDirectory() as name, contextlib.suppress(ConfigError):
        write_readers(export, Path(name))
        add_readers(export, Path(name))


@contextlib.contextmanager
def kept(store: Store) -> Iterator[None]:
    """No `gc` frees the model while the block runs. A store that this user may only read has no lock to take."""
    lock = shared_lock(store)
    with contextlib.suppress(PermissionError):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
