"""Questions to the hub about metadata: the commit of a revision, and the files of a dataset's split.

A revision is resolved once per store, and the answer is kept (`Remembered`). When a branch moves, a run that is under
way or is extended later does not change; to use a newer commit, name it. Facts about a commit never change and are
kept too, so a finished run can be planned again without the hub.

No code of a dataset is run. No answer, error or log contains a token: the client reads the token itself.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from storage.errors import ConfigError, HubUnreachable, OnwardError

Kind = Literal["dataset", "model"]
T = TypeVar("T")
COMMIT = re.compile(r"[0-9a-f]{40}")
_TIMEOUT_SECONDS = 20.0
_FILES_AT_ONCE = 500
_URL_QUERY = re.compile(r"\?\S*")
_USER = re.compile(r"//[^/@\s]+@")
_PREFIX = re.compile(r"hf://datasets/[^@]+@(?P<commit>[^/]+)/(?P<path>.+)")


class Remembered:
    """Cached answers of the hub, by question. `path`: a SQLite file that all runs share; None: kept in this object
    only. `what` it holds, and what happens without it, are for a message."""

    def __init__(
        self,
        path: Path | None,
        what: str = "the cache of the hub's answers",
        without: str = "branches are then resolved again",
    ) -> None:
        self.path, self._what, self._without = path, what, without
        self._own: dict[str, Any] = {}

    @property
    def directory(self) -> Path | None:
        """Directory for further cached data: the ends of Parquet files."""
        return self.path.with_suffix("") if self.path else None

    def recall(self, *question: str | None) -> Any:
        """The cached answer, or None."""
        key = json.dumps(question)
        if key not in self._own and self.path is not None and self.path.exists():
            rows = self._execute("SELECT answer FROM answers WHERE question = ?", key)
            if rows:
                self._own[key] = json.loads(rows[0][0])
        return self._own.get(key)

    def remember(self, answer: Any, *question: str | None) -> Any:
        """Store an answer. If there is one already, it is kept and returned."""
        key = json.dumps(question)
        if self.path is None:
            return self._own.setdefault(key, answer)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._execute("INSERT OR IGNORE INTO answers VALUES (?, ?)", key, json.dumps(answer))
        self._own.pop(key, None)
        return self.recall(*question)

    def _execute(self, statement: str, *values: str) -> list[Any]:
        table = "CREATE TABLE IF NOT EXISTS answers (question TEXT PRIMARY KEY, answer TEXT NOT NULL)"
        try:
            with closing(sqlite3.connect(str(self.path), timeout=30)) as database, database:
                database.execute(table)
                return database.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise OnwardError(
                f"{self.path}, {self._what}, cannot be used ({error}). Repair or delete it: {self._without}"
            ) from error


def remembered_in(store: Path) -> Remembered:
    """The hub's answers that are kept in a store."""
    return Remembered(store / ".cache" / "hub.sqlite")


@dataclass(frozen=True)
class HubFile:
    """A file of a dataset at one commit. `digest`: its sha256; for small files `git:` and git's blob id."""

    path: str
    bytes: int
    digest: str


def commit_of(
    kind: Kind, name: str, revision: str, where: str, remembered: Remembered, field: str = ""
) -> str:
    """The commit of a branch, tag or commit, as the store first resolved it.

    `where` and `field` are the configuration fields of the name and of the revision; the error begins with them.
    Raises ConfigError if there is no such repository or revision, HubUnreachable if the hub does not answer.
    """
    if COMMIT.fullmatch(revision):
        return revision
    known = remembered.recall("commit", kind, name, revision)
    if known:
        return str(known)
    from huggingface_hub import HfApi

    api = HfApi()
    ask = api.dataset_info if kind == "dataset" else api.model_info
    info = asked(
        lambda: ask(name, revision=revision, timeout=_TIMEOUT_SECONDS), kind, name, revision, where, field
    )
    if not info.sha:
        raise ConfigError(f"{where}: the hub reports no commit for {name!r}, revision {revision!r}")
    return str(remembered.remember(info.sha, "commit", kind, name, revision))


def split_files(
    dataset: str, name: str | None, split: str, commit: str, where: str, remembered: Remembered
) -> list[HubFile]:
    """The files of a split, in the order in which `datasets` reads them.

    Raises ConfigError, naming the field below `where`, if the configuration or split does not exist.
    """
    question = ("files", dataset, name, split, commit)
    known = remembered.recall(*question)
    if known is None:
        found = _ask_files(dataset, name, split, commit, where)
        known = remembered.remember([asdict(file) for file in found], *question)
    return [HubFile(**entry) for entry in known]


def _ask_files(dataset: str, name: str | None, split: str, commit: str, where: str) -> list[HubFile]:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    by_split = _data_files(dataset, name, commit, where)
    if split not in by_split:
        raise ConfigError(
            f"{where}.split: {_named(dataset, name)} has no split {split!r}; it has {_list(by_split)}"
        )
    paths = []
    for address in by_split[split]:
        match = _PREFIX.fullmatch(address)
        if match is None or match["commit"] != commit:
            raise ConfigError(
                f"{where}.dataset: {dataset} keeps its data elsewhere ({_URL_QUERY.sub('', address)}); "
                "only files of the repository itself are read"
            )
        paths.append(match["path"])
    entries: dict[str, HubFile] = {}
    ask = HfApi().get_paths_info
    for begin in range(0, len(paths), _FILES_AT_ONCE):
        some = partial(
            ask, dataset, paths[begin : begin + _FILES_AT_ONCE], repo_type="dataset", revision=commit
        )
        infos = asked(some, "dataset", dataset, commit, f"{where}.dataset", f"{where}.revision")
        for info in infos:
            if isinstance(info, RepoFile):
                digest = info.lfs.sha256 if info.lfs else f"git:{info.blob_id}"
                entries[info.path] = HubFile(info.path, info.size, digest)
    return [entries[path] for path in dict.fromkeys(paths) if path in entries]


def _data_files(dataset: str, name: str | None, commit: str, where: str) -> dict[str, list[str]]:
    """The files of each split as `datasets` determines them: addresses by split. Nothing is downloaded."""
    import datasets
    from datasets.data_files import EmptyDatasetError
    from datasets.exceptions import DataFilesNotFoundError, DatasetNotFoundError
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        load = partial(datasets.load_dataset_builder, f"hf://datasets/{dataset}", name, revision=commit)
        builder = asked(load, "dataset", dataset, commit, f"{where}.dataset", f"{where}.revision")
    except ValueError as error:  # an unknown configuration, or several exist and none is named
        known = re.search(r"\[.*\]", str(error))
        raise ConfigError(
            f"{where}.name: {dataset} has no configuration {name!r}"
            + (f"; it has {known[0]}" if known else f" ({_first_line(error)})")
        ) from error
    except RuntimeError as error:
        raise ConfigError(
            f"{where}.dataset: {dataset} is made by a script, and code of a dataset is never run; name a revision with "
            "its files (often refs/convert/parquet), or another copy"
        ) from error
    except (EmptyDatasetError, DataFilesNotFoundError, DatasetNotFoundError) as error:
        if "gated" in str(error):  # the client's own error is not among its causes
            raise _gated(f"{where}.dataset", "dataset", dataset) from None
        if isinstance(error, DatasetNotFoundError):
            raise _missing(f"{where}.dataset", "dataset", dataset) from None
        raise ConfigError(f"{where}.dataset: {_first_line(error)}") from error
    finally:
        if shown:
            enable_progress_bars()
    return {str(split): list(files) for split, files in (builder.config.data_files or {}).items()}


def asked(ask: Callable[[], T], kind: Kind, name: str, revision: str, where: str, field: str = "") -> T:
    """The hub's answer. Raises ConfigError if the request is wrong, HubUnreachable if the connection or the hub fails."""
    from huggingface_hub import errors

    try:
        return ask()
    except Exception as error:
        cause = _cause(error)
        if isinstance(cause, errors.GatedRepoError):
            raise _gated(where, kind, name) from None
        if isinstance(cause, errors.RepositoryNotFoundError):
            raise _missing(where, kind, name) from None
        if isinstance(cause, errors.RevisionNotFoundError):
            raise ConfigError(f"{field or where}: the {kind} {name!r} has no revision {revision!r}") from None
        if isinstance(cause, errors.HFValidationError):
            raise ConfigError(f"{where}: {name!r} is not a valid name of a {kind} on the hub") from None
        if _of_the_way(cause):
            raise HubUnreachable(
                f"{where}: the hub cannot be reached for the {kind} {name!r} ({_said(cause)}). Check the network "
                "(HF_ENDPOINT, HF_HUB_OFFLINE, proxies)"
            ) from None
        raise


def _gated(where: str, kind: Kind, name: str) -> ConfigError:
    return ConfigError(
        f"{where}: the {kind} {name!r} is gated. Accept its terms on its page, and give this machine a token of that "
        "account (`hf auth login`, or HF_TOKEN in the environment)"
    )


def _missing(where: str, kind: Kind, name: str) -> ConfigError:
    return ConfigError(
        f"{where}: the hub has no {kind} {name!r}, or it is private and this machine has no token for it "
        "(`hf auth login`, or HF_TOKEN in the environment)"
    )


def _cause(error: Exception) -> BaseException:
    """The hub's own error, if a library wrapped it in another exception."""
    from huggingface_hub.errors import HfHubHTTPError

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, HfHubHTTPError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return error


def _of_the_way(error: BaseException) -> bool:
    """Whether the network, the hub's health or offline mode is the cause, rather than the request."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    known = (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError, TimeoutError)
    if isinstance(error, known):
        return True
    return type(error).__module__.split(".")[0] in (
        "httpx",
        "httpx2",
        "httpcore",
        "httpcore2",
        "requests",
        "urllib3",
    )


def _said(error: BaseException) -> str:
    """The error in one line, without the secrets that an address may contain: a password, or the signature in its
    query."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    line = _first_line(error)
    return f"{type(error).__name__}{f', status {status}' if status else ''}{f': {line}' if line else ''}"


def _first_line(error: BaseException) -> str:
    lines = _URL_QUERY.sub("", _USER.sub("//", str(error))).strip().splitlines()
    return lines[0][:200] if lines else ""


def _named(dataset: str, name: str | None) -> str:
    return f"{dataset}, configuration {name!r}," if name else dataset


def _list(names: Any) -> str:
    return ", ".join(map(repr, names)) or "none"
