"""What is to be deployed: which flows, with which parameters, from which configuration files, on which pool.

A deployment holds the whole configuration with absolute paths, so that the form shows all of it and a worker can start
anywhere. This module does not talk to Prefect; `flows.services.deploy` does.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from prefect import Flow
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.schedules import CronSchedule

from flows.config import RunConfig, load_config
from flows.entrypoints import evaluate, pretrain
from flows.machine.environment import gpus
from flows.tuning import tune
from flows.ui.form import form_schema, form_values
from storage.code import ROOT
from storage.errors import ConfigError
from storage.paths import from_home

NIGHTLY = "nightly-demo"
NIGHT_QUEUE = "nightly"
OF_A_HOME = ("pretrain/corpus-only", f"pretrain/{NIGHTLY}", "evaluate/model", "tune/trials")
"""Deployments that every home has once, independent of its configurations."""
_NIGHT = "0 3 * * *"


@dataclass(frozen=True)
class Wanted:
    """A deployment as defined by this code and a configuration file."""

    flow: Flow[..., Any]
    name: str
    description: str
    parameters: dict[str, Any]
    source: str
    """The file of the parameters, relative to home; empty if there is none."""
    digest: str
    """Digest of that file."""
    pool: str
    tags: tuple[str, ...]
    queue: str | None = None
    schedules: list[DeploymentScheduleCreate] = field(default_factory=list)

    @property
    def title(self) -> str:
        """`pretrain/demo`."""
        return f"{self.flow.name}/{self.name}"


@dataclass(frozen=True)
class Given:
    """A configuration file that was read."""

    run: RunConfig
    path: Path
    digest: str
    about: str

    @property
    def source(self) -> str:
        """The file, relative to home."""
        return from_home(str(self.path.resolve()))


def read(
    configs: Sequence[Path],
    home: Path,
    say: Callable[[str], object],
    owner: Callable[[str], str | None] = lambda name: None,
) -> Iterator[Given]:
    """The configurations that can be deployed. `say` is told which ones are skipped, and why.

    `owner` tells the file, relative to home, from which the deployment of a name was made. A copy under the same name does
    not take it over while that file has the name.
    """
    loaded: dict[str, list[Given]] = {}
    for path in configs:
        try:
            run = load_config(path)
        except ConfigError as error:
            say(f"passed over: {error}")
            continue
        loaded.setdefault(run.name, []).append(_given(run, path))
    for name, several in loaded.items():
        if name in ("corpus-only", NIGHTLY):
            for one in several:
                say(f"passed over: {one.path}: another deployment has the name {name} already")
            continue
        before = owner(name)
        kept = next((one for one in several if one.source == before), None)
        if kept is None and before and _named(home / before) == name:
            owned = before
        else:
            kept = kept or several[0]
            owned = kept.source
            yield kept
        for one in several:
            if one is not kept:
                say(
                    f"passed over: {one.path}: the deployment {name} is that of {owned}; give one of them another name"
                )


def _named(path: Path) -> str | None:
    """The name that a configuration file gives; None if it cannot be read."""
    with contextlib.suppress(ConfigError, OSError):
        return load_config(path).name if path.is_file() else None
    return None


def _given(run: RunConfig, path: Path) -> Given:
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    head = [line.removeprefix("#").strip() for line in lines[: next(_code(lines), 0)]]
    return Given(run, path, hashlib.sha256(text.encode()).hexdigest()[:12], " ".join(head).strip())


def _code(lines: Sequence[str]) -> Iterator[int]:
    return (at for at, line in enumerate(lines) if not line.startswith("#"))


def wanted(
    home: Path,
    given: Sequence[Given],
    say: Callable[[str], object],
    sources: Mapping[str, str] | None = None,
) -> Iterator[Wanted]:
    """The deployments that must exist: one for each configuration, and those that every home has.

    `sources` maps existing deployments to the file that they came from. They keep using that file as long as it can be
    read, whatever other files are given now.
    """
    schema = form_schema(pretrain)
    sources = sources or {}

    def of(run: RunConfig, **options: Any) -> dict[str, Any]:
        return form_values({"config": plain(run, home), **options}, schema)

    for one in given:
        about = f"{one.about}\n\nFrom {one.path.name}: the whole run, from text to report.".strip()
        tags = ("onward", "training")
        yield Wanted(pretrain, one.run.name, about, of(one.run), one.source, one.digest, pool(), tags)
    first = next((one for one in given if one.run.name != "demo"), next(iter(given), None))
    real = _kept(home, given, sources.get("pretrain/corpus-only")) or first
    if real is not None:
        about = (
            f"From {real.path.name}: reads, cleans and tokenizes all text, and trains nothing. A whole run of the "
            "same configuration finds what this made."
        )
        parameters = of(real.run, until="tokenize")
        tags = ("onward", "corpus")
        yield Wanted(pretrain, "corpus-only", about, parameters, real.source, real.digest, "cpu", tags)
    yield _evaluation(home, _kept(home, given, sources.get("evaluate/model")) or first)
    trials = _kept(home, given, sources.get("tune/trials")) or first
    if trials is not None:
        about = (
            f"From {trials.path.name}: a grid of short trials of this configuration, compared on held-out text, and the "
            "command that goes on with the best of them. What a trial trained, the real run does not train again."
        )
        values = form_values({"config": plain(trials.run, home)}, form_schema(tune))
        tags = ("onward", "training")
        yield Wanted(tune, "trials", about, values, trials.source, trials.digest, pool(), tags)
    night = _nightly(given, _kept(home, given, sources.get(f"pretrain/{NIGHTLY}")), of)
    if night is None:
        say(f"passed over: pretrain/{NIGHTLY}: there is no configuration demo")
    else:
        yield night


def _kept(home: Path, given: Sequence[Given], source: str | None) -> Given | None:
    """The configuration that a deployment came from: one of those given, or read anew; None if there is no file."""
    if not source:
        return None
    for one in given:
        if one.source == source:
            return one
    path = home / source
    with contextlib.suppress(ConfigError, OSError):
        return _given(load_config(path), path) if path.is_file() else None
    return None


def _evaluation(home: Path, real: Given | None) -> Wanted:
    parameters: dict[str, Any] = {"store": str(home / "store")}
    source, digest = "", "none"
    if real is not None:
        run = plain(real.run, home)
        source, digest = real.source, real.digest
        parameters = {
            "store": run["store"],
            "benchmark_files": run["benchmark_files"],
            "benchmarks": run["evaluation"],
            "sequence_length": run["packing"]["sequence_length"],
            "seed": run["seed"],
        }
    about = (
        "A given model on the benchmarks: one of the store (the beginning of its key), a local directory, or one of "
        "the hub; with the name of a run, on that run's held-out text too. What was measured before is found."
    )
    values = form_values(parameters, form_schema(evaluate))
    return Wanted(evaluate, "model", about, values, source, digest, pool(), ("onward", "evaluation"))


def _nightly(given: Sequence[Given], kept: Given | None, of: Callable[..., dict[str, Any]]) -> Wanted | None:
    shipped = ROOT / "configs" / "demo.yaml"
    demo = kept or next((one for one in given if one.run.name == "demo"), None)
    if demo is None and not shipped.is_file():
        return None
    demo = demo or _given(load_config(shipped), shipped)
    run = demo.run.model_copy(update={"name": NIGHTLY, "store": f"stores/{NIGHTLY}"})
    zone = timezone()
    about = (
        f"Is this machine still sound: each night at 03:00 ({zone}) the demo, every stage made again in a store of its "
        "own and compared with what it gave before. It fails where a byte differs, and names the stage."
    )
    night = DeploymentScheduleCreate(schedule=CronSchedule(cron=_NIGHT, timezone=zone), active=True)
    parameters = of(run, force=["all"])
    tags = ("onward", "health")
    return Wanted(
        pretrain, NIGHTLY, about, parameters, demo.source, demo.digest, "cpu", tags, NIGHT_QUEUE, [night]
    )


def pool() -> str:
    """The work pool for training runs: `ONWARD_POOL`, else `gpu` if this machine has an NVIDIA GPU, else `cpu`."""
    return os.environ.get("ONWARD_POOL") or ("gpu" if gpus() else "cpu")


def timezone() -> str:
    """The machine's time zone by its IANA name (from `TZ` or the target of /etc/localtime), or UTC."""
    localtime = Path("/etc/localtime")
    linked = str(localtime.resolve()).partition("zoneinfo/")[2] if localtime.exists() else ""
    for name in (os.environ.get("TZ", "").removeprefix(":"), linked):
        try:
            if name and ZoneInfo(name):
                return name
        except (ValueError, OSError):  # no such zone
            continue
    return "UTC"


def plain(run: RunConfig, home: Path) -> dict[str, Any]:
    """The configuration as plain JSON with absolute paths, because a worker may start in any directory."""
    raw: dict[str, Any] = run.model_dump(mode="json")
    raw["store"] = str(home / run.store)
    if run.benchmark_files is not None:
        raw["benchmark_files"] = str(home / run.benchmark_files)
    for source in raw["corpus"]["sources"]:
        if source["files"] is not None:
            source["files"] = [str(home / pattern) for pattern in source["files"]]
    for own in raw["evaluation"]["own"]:
        if own["file"] is not None:
            own["file"] = str(home / own["file"])
    if isinstance(run.model.base, str) and (home / run.model.base).is_dir():
        raw["model"]["base"] = str(home / run.model.base)
    return raw
