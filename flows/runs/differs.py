"""What a run differs in from its file: the deployment's configuration, or the file of `onward run --set`.

The differences are part of the flow run's name, unless a person has named it, and are its tags.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from flows.config import RunConfig, parse_config
from flows.runs.names import run_name, summary_of
from storage.counts import count_text
from storage.keys import difference
from storage.paths import from_home
from storage.provenance import git_commit
from storage.settings import identity_values

_IN_A_NAME = 3
"""Differences that a name shows; tags have all of them."""
_WORD = 40
_BUDGETS = "training.token_budgets"
"""They stand in the name anyway."""
_of_file: ContextVar[RunConfig | None] = ContextVar("of_file", default=None)


@contextmanager
def compared_with(config: RunConfig | None) -> Iterator[None]:
    """Runs that begin in this block are compared with a configuration as its file has it."""
    token = _of_file.set(config)
    try:
        yield
    finally:
        _of_file.reset(token)


def file_of() -> RunConfig | None:
    """The configuration that the current flow run is compared with: of its file, else of its deployment."""
    if (known := _of_file.get()) is not None:
        return known
    from prefect.client.orchestration import get_client
    from prefect.context import FlowRunContext

    context = FlowRunContext.get()
    deployment = context.flow_run.deployment_id if context and context.flow_run else None
    if deployment is None:
        return None
    try:
        with get_client(sync_client=True) as client:
            return parse_config(client.read_deployment(deployment).parameters["config"])
    except Exception:  # of an older release, or Prefect is away: the run is named without
        return None


def differing(run: RunConfig, of_file: RunConfig | None) -> dict[str, Any]:
    """What the run has otherwise than its file, by the key's path. Where and how fast it runs is no difference."""
    if of_file is None:
        return {}
    before, after = _compared(of_file), _compared(run)
    found = {one.path: one.after for one in difference(before, after)}
    if "training.schedule.kind" in found:  # whose other fields follow
        found = {path: value for path, value in found.items() if not _of_schedule(path)}
    return found


def words_of(found: Mapping[str, Any]) -> list[str]:
    """Each difference in a few words: `lr 0.005`, `rewarm`, `seed 7`."""
    return [_word(path, value) for path, value in found.items() if not path.startswith(_BUDGETS)]


def full_name(run: RunConfig, of_file: RunConfig | None) -> str:
    """`edu-125m · 400M→1B · lr 0.005 · rewarm · 3f9a2c`."""
    words = words_of(differing(run, of_file))
    if len(words) > _IN_A_NAME:
        words = [*words[: _IN_A_NAME - 1], f"{len(words) - _IN_A_NAME + 1} more changes"]
    head, _, digest = run_name(run).rpartition(" · ")
    return " · ".join([head, *words, digest])


def head_of(run: RunConfig, found: Mapping[str, Any]) -> dict[str, str]:
    """Which run this is, in a few rows, for people: its configuration, differences (of `differing`), code and date."""
    words = words_of(found)
    differs = {"differs from its file": " · ".join(words)} if words else {}
    commit = git_commit()
    code = {"code": f"commit {commit[:12]}"} if commit else {}
    return {**differs, **summary_of(run), **code, "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"}


def given_name(name: str | None) -> str | None:
    """The name that a person gave a flow run, or that an earlier attempt gave it; None if Prefect made it up."""
    if not name:
        return None
    first, _, rest = name.partition("-")
    if not rest:
        return name
    if _made_up().issuperset(name.split("-")):
        return None
    if re.fullmatch(_FIRST_IN_A_FORM, first) and all(part in _in_a_form() for part in rest.split("-")):
        return None
    return name


def current_name() -> str | None:
    """The name of the current flow run, if a person gave it."""
    from prefect.context import FlowRunContext

    context = FlowRunContext.get()
    return given_name(context.flow_run.name) if context and context.flow_run else None


_FIRST_IN_A_FORM = (
    r"(alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|omicron|pi|rho|sigma|tau|upsilon|phi|chi"
    r"|psi|omega)\d{0,3}"
)


@cache
def _made_up() -> frozenset[str]:
    """The words of which Prefect makes names."""
    from coolname.data import config

    entries: list[dict[str, Any]] = list(config.values())  # type: ignore[arg-type]
    lists = [entry.get("words", ()) for entry in entries]
    phrases = [phrase for entry in entries for phrase in entry.get("phrases", ())]
    return frozenset(word for words in (*lists, *phrases) for word in words)


@cache
def _in_a_form() -> frozenset[str]:
    """The words behind a Greek letter with which Prefect's pages fill in a run's name, as they stand in their code."""
    import prefect

    found: set[str] = set()
    pages = Path(prefect.__file__).parent / "server" / "ui" / "assets"
    for script in pages.glob("index-*.js"):
        text = script.read_text(encoding="utf-8", errors="replace")
        for mark in ("andromedae.", "a.b.c.d.e.f.g."):
            begin = text.find(f"`{mark}") + 1
            words = text[begin : text.find("`", begin)] if begin else ""
            found.update(part for word in words.split(".") for part in word.split("-"))
    return frozenset(found)


def _compared(run: RunConfig) -> dict[str, Any]:
    """Identity fields, and what is read by name."""
    values: dict[str, Any] = identity_values(run)
    model = run.model.model_dump(mode="json")
    values["base"] = from_home(model["base"]) if isinstance(model["base"], str) else model["base"]
    values.pop("model", None)
    values["benchmark_files"] = None if run.benchmark_files is None else from_home(run.benchmark_files)
    values["files"] = {
        source.name: [from_home(pattern) for pattern in source.files or ()] for source in run.corpus.sources
    }
    return values


def _of_schedule(path: str) -> bool:
    return path.startswith("training.schedule.") and path != "training.schedule.kind"


def _word(path: str, value: Any) -> str:
    match path:
        case "training.learning_rate":
            text = f"lr {value:g}"
        case "training.schedule.kind":
            text = str(value)
        case "training.batch_tokens":
            text = f"batch {count_text(value)}"
        case "base":
            text = f"base {Path(value).name}" if isinstance(value, str) else "base a new model"
        case "benchmark_files":
            text = f"benchmarks {value}"
        case _:
            text = f"{path.removeprefix('training.').removeprefix('corpus.')} {_value(value)}"
    return text if len(text) <= _WORD else f"{text[: _WORD - 1]}…"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, int):
        return count_text(value)
    return "changed" if isinstance(value, list | tuple | Mapping) else str(value)
