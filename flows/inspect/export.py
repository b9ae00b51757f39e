"""A model's files as a directory of the user's: all of them with a model card, or nothing."""

from __future__ import annotations

import contextlib
import errno
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from storage.artifact import Artifact
from storage.atomic import commit_directory
from storage.catalog import Catalog
from storage.errors import ConfigError, OnwardError
from storage.runs import shared_lock
from storage.store import Store
from tasks.models.card import model_card
from tasks.models.form import GGUF, Form
from tasks.training.state.readers import add_readers


def export_model(catalog: Catalog, artifact: Artifact, directory: Path, form: Form | None = None) -> None:
    """Write the part `export` in a form into a new directory, with a model card. Without a form it is copied as it is.

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
        with _kept(catalog.store):
            (_write_gguf if form.format == GGUF else _copy)(artifact, beside, form)
            card = model_card(catalog, artifact, form)
            (beside / "README.md").write_text(card, encoding="utf-8")
        commit_directory(beside, directory.absolute())
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            size = sum(path.stat().st_size for path in artifact.part("export").paths)
            raise OnwardError(
                f"{directory}: no space left; the model takes {size:,} bytes. Nothing was written"
            ) from error
        raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _copy(artifact: Artifact, target: Path, form: Form) -> None:
    """The files of the part `export`, with what other readers need, and the weights in the form's type."""
    export = artifact.path / "export"
    for path in artifact.part("export").paths:
        if form.dtype is not None and path.suffix == ".safetensors":
            continue
        (target / path.relative_to(export)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / path.relative_to(export))
    if form.dtype is not None:
        from tasks.formats.rounded import write_rounded

        write_rounded(export, target, form.dtype)
    _say_it_to_readers(artifact, target)


def _write_gguf(artifact: Artifact, target: Path, form: Form) -> None:
    """One GGUF file, and the Modelfile with which Ollama takes it."""
    from tasks.formats.gguf_file import write_gguf
    from tasks.formats.ollama import modelfile

    with tempfile.TemporaryDirectory(
        dir=target
    ) as name:  # the files that say what the model is, without its weights
        facts, export = Path(name), artifact.path / "export"
        for path in artifact.part("export").paths:
            (facts / path.relative_to(export)).parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".safetensors":
                (facts / path.relative_to(export)).symlink_to(path)
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
def _kept(store: Store) -> Iterator[None]:
    """No `gc` frees the model while the block runs. A store that this user may only read has no lock to take."""
    lock = shared_lock(store)
    with contextlib.suppress(PermissionError):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
