"""A model as a repository of the hub: what `onward export` writes, in one commit, by the hub's own client.

The folder is made in the project's state directory first, and stays there until all of it was taken: a push that broke off
goes on with what it had, and the client sends no file, and no piece of one, that the hub has. The token is the client's own
(`hf auth login`) or HF_TOKEN; it is in no message and no command line.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from flows.inspect.about import about_of
from flows.inspect.export import export_model
from storage.artifact import Artifact
from storage.catalog import Catalog
from storage.errors import ConfigError, HubUnreachable, OnwardError
from storage.paths import state_directory
from storage.secrets import without_secrets
from tasks.models.card import About, model_card
from tasks.models.form import SAFETENSORS, Form

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_OLD = ["*.safetensors", "*.safetensors.index.json"]
"""What an earlier push may have left of other weights."""


def check_name(name: str) -> None:
    """Raise ConfigError unless it is `owner/name`."""
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name[:200]!r} is no name of a model on the hub: owner/name, of letters, digits, _, - and ."
        )


def token_there() -> None:
    """Raise OnwardError if the client has no token, or is told to ask nobody."""
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise OnwardError("nothing can be pushed: HF_HUB_OFFLINE is set; unset it")
    if get_token() is None:
        raise OnwardError(
            "nothing can be pushed: there is no token of the hub; log in with `hf auth login`, or set HF_TOKEN in the "
            "environment. The token needs the right to write"
        )


def staged(
    catalog: Catalog, artifact: Artifact, name: str, form: Form, *, measure: bool, say: Callable[[str], None]
) -> Path:
    """The folder to be pushed: made now, or, if an earlier push broke off, found, with a new card."""
    place = (
        state_directory()
        / "push"
        / f"{name.replace('/', '--')}-{artifact.key[:16]}-{form.format}-{form.said}"
    )
    if place.is_dir():
        say(f"going on with {place}")
        if not measure:  # the card of before has what was measured then
            card = model_card(catalog, artifact, form, about_of(catalog.store, artifact))
            (place / "README.md").write_text(card, encoding="utf-8")
        return place
    place.parent.mkdir(parents=True, exist_ok=True)
    export_model(catalog, artifact, place, form, measure=measure)
    return place


def push(folder: Path, name: str, form: Form, *, private: bool, what: str) -> str:
    """Send a folder to the repository, which is made if it is not there, and remove the folder.

    Returns the commit's address; `what` is its message. Raises HubUnreachable if the hub does not answer, OnwardError if it
    refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    api = HfApi(library_name="onward")
    try:
        api.create_repo(name, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=name,
            folder_path=folder,
            commit_message=what,
            delete_patterns=_OLD if form.format == SAFETENSORS else None,
        )
    except Exception as error:
        raise _refused(error, name, folder) from error
    shutil.rmtree(folder, ignore_errors=True)
    return str(commit.commit_url)


def unstated(about: About, sources: set[str], imported: bool) -> str | None:
    """What of the licences is not stated, as a warning."""
    missing = ["model.licence"] if imported and about.licence is None else []
    missing += [f"licence of source {source}" for source in sorted(sources - set(about.licences))]
    if not missing:
        return None
    return (
        f"the card states no licence for: {', '.join(missing)}. Set them in the run's configuration and run it "
        "again, which "
        "makes nothing anew"
    )


def _refused(error: Exception, name: str, folder: Path) -> OnwardError:
    """The client's error in our words, with what is kept."""
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    lines = [line for line in without_secrets(str(error)).splitlines() if line.strip()]
    said = f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
    kept = f"The files are kept in {folder}; the same command goes on from there"
    if status in (401, 403):
        return OnwardError(
            f"the hub does not let this token write to {name} (status {status}); log in with `hf auth login`, "
            "or set HF_TOKEN, "
            f"with a token that may. {kept}"
        )
    if status is not None and status < 500 and status != 429:
        return OnwardError(f"the hub refused {name} (status {status}): {said}. {kept}")
    return HubUnreachable(f"{name} was not pushed whole, as the hub did not answer ({said}). {kept}")
