"""A model as a repository of the hub: what `onward export` writes, in one commit, by the hub's own client.

The folder is made in the project's state directory first, and stays there until all of it was taken: a push that broke off
goes on with what it had, and the client sends no file, and no piece of one, that the hub has. The token is the client's own
(`hf auth login`) or HF_TOKEN; it is in no message and no command line.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from flows.inspect.about import about_of
from flows.inspect.export import export_model, kept
from flows.inspect.rounding import measured
from storage.artifact import Artifact
from storage.atomic import write_bytes
from storage.catalog import Catalog
from storage.errors import ConfigError, HubUnreachable, OnwardError
from storage.paths import state_directory
from storage.secrets import without_secrets
from tasks.models.card import About, Measured, imported, model_card
from tasks.models.form import SAFETENSORS, Form

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_OLD = [
    "model.safetensors",
    f"model-{'[0-9]' * 5}-of-{'[0-9]' * 5}.safetensors",
    "model.safetensors.index.json",
]
"""What an earlier push may have left of other weights: the names that weights of a whole model have, and no others."""
_WORDS = 4000
"""Characters of what the hub says is wrong: it lists all that it takes."""


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
    """The folder to be pushed: made now, or, if an earlier push broke off, found. The card is written anew each time.

    What was measured for it lies beside the folder, since measuring takes minutes.
    """
    place = (
        state_directory()
        / "push"
        / f"{name.replace('/', '--')}-{artifact.key[:16]}-{form.format}-{form.said}"
    )
    if place.is_dir():
        say(f"going on with {place}")
    else:
        place.parent.mkdir(parents=True, exist_ok=True)
        export_model(catalog, artifact, place, form)
    with kept(catalog.store):
        about = about_of(catalog.store, artifact)
        if measure and form != Form():
            about = replace(about, measured=_measured(catalog, artifact, place, form))
        write_bytes(place / "README.md", model_card(catalog, artifact, form, about).encode())
    return place


def _measured(catalog: Catalog, artifact: Artifact, place: Path, form: Form) -> list[Measured]:
    """What rounding changed: as it was measured for a push that broke off, or measured now."""
    beside = _beside(place)
    if not beside.is_file():
        found = measured(catalog, artifact, place, form)
        write_bytes(beside, json.dumps([asdict(one) for one in found]).encode())
    return [Measured(**one) for one in json.loads(beside.read_bytes())]


def _beside(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.measured.json")


def push(folder: Path, name: str, form: Form, *, private: bool, what: str) -> str:
    """Send a folder to the repository, which is made if it is not there, and remove the folder.

    Returns the commit's address; `what` is its message. Raises HubUnreachable if the hub does not answer, OnwardError if it
    refuses, or if the repository is `private` here and open to all there.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    api = HfApi(library_name="onward")
    try:
        address = _sent(api, folder, name, form, private, what)
    except OnwardError:
        raise
    except Exception as error:
        raise _refused(error, name, folder) from error
    shutil.rmtree(folder, ignore_errors=True)
    _beside(folder).unlink(missing_ok=True)
    return address


def _sent(api: HfApi, folder: Path, name: str, form: Form, private: bool, what: str) -> str:
    """The address of the commit."""
    api.create_repo(name, private=private, exist_ok=True)
    if private and not api.model_info(name).private:  # it was there before
        raise OnwardError(
            f"{name} is on the hub and open to all: give --public to write to it, or push to another name. Nothing was "
            f"sent. {_kept_in(folder)}"
        )
    commit = api.upload_folder(
        repo_id=name,
        folder_path=folder,
        commit_message=what,
        delete_patterns=_OLD if form.format == SAFETENSORS else None,
    )
    return str(commit.commit_url)


def unstated(about: About, made: Iterable[Artifact]) -> str | None:
    """What of the licences of what a model was made of is not stated, as a warning."""
    made = list(made)
    bases = {one.key for one in made if one.stage == "base" and imported(one)} - set(about.bases)
    missing = ["model.licence"] if bases - about.chats else []
    missing += ["merge.licence"] if bases & about.chats else []
    sources = {str(one.stats["source"]) for one in made if one.stage == "ingest"} - set(about.licences)
    missing += [f"licence of source {source}" for source in sorted(sources)]
    if not missing:
        return None
    return (
        f"the card states no licence for: {', '.join(missing)}. Set them in the run's configuration and run it "
        "again, which "
        "makes nothing anew"
    )


def _refused(error: Exception, name: str, folder: Path) -> OnwardError:
    """The client's error in our words, with what is kept."""
    status = _status(error)
    lines = [line.strip() for line in without_secrets(str(error)).splitlines() if line.strip()]
    said = f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
    kept = _kept_in(folder)
    no_json = isinstance(error, json.JSONDecodeError)  # as a server in front of the hub answers for it
    if isinstance(error, ValueError) and not no_json:
        return OnwardError(
            f"the hub takes no such files for {name}: {' '.join(lines)[:_WORDS]}. Mend what it names. {kept}"
        )
    if status in (401, 403):
        return OnwardError(
            f"the hub does not let this token write to {name} (status {status}); log in with `hf auth login`, "
            "or set HF_TOKEN, "
            f"with a token that may. {kept}"
        )
    if status is not None and status < 500 and status != 429:
        return OnwardError(f"the hub refused {name} (status {status}): {said}. {kept}")
    return HubUnreachable(f"{name} was not pushed whole, as the hub did not answer ({said}). {kept}")


def _status(error: BaseException | None) -> int | None:
    """The status of the hub's answer behind an error: the client's own errors may say it of their cause only."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status is not None:
            return int(status)
        error = error.__cause__
    return None


def _kept_in(folder: Path) -> str:
    return f"The files are kept in {folder}; the same command goes on from there"
