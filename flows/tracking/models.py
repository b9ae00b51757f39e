"""Models in MLflow: a LoggedModel for each exported model, and versions of a registered model with aliases.

The weights stay in the store. A LoggedModel holds a pointer with the digest of each file, and what MLflow needs to load
them from there (loadable.py); `onward export` writes the files. For one stage key, an experiment gets one model, and a
registered model gets one version.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from flows.tracking.champion import Standing, choose, standing_of
from flows.tracking.loadable import FORMAT, LOADS, write_loadable
from flows.tracking.onward_model import POINTER
from storage.artifact import Artifact
from storage.provenance import host_name

CHAMPION = "champion"
WHY = "champion"
"""Tag of a version: why it is or is not the champion."""
_MADE_BY = re.compile(r" Made by \[this run in Prefect\]\(([^)\s]+)\)")
_WHY_MARK = "\n\n**Champion?** "


@dataclass(frozen=True)
class Exported:
    """A model to be published: its artifact, the MLflow run of its stage, and its name in the run that made it."""

    artifact: Artifact
    run: str
    name: str
    tokens: int
    store: Path
    params: Mapping[str, str]

    @property
    def key(self) -> str:
        """Its stage key."""
        return self.artifact.key

    @property
    def digest(self) -> str:
        """Digest of the files that `from_pretrained` loads."""
        return self.artifact.part("export").digest

    @property
    def place(self) -> str:
        """Its directory, relative to the store."""
        return f"{self.artifact.stage}/{self.key[:16]}"

    def tags(self) -> dict[str, str]:
        """Tags for the LoggedModel and each version of it."""
        return {
            "stage": self.artifact.stage,
            "stage_key": self.key,
            "digest": self.digest,
            "tokens": str(self.tokens),
            "store": str(self.store),
            "path": f"{self.place}/export",
        }

    def marks(self) -> dict[str, str]:
        """Tags for a version: what Onward needs to find it again. The rest stands in its description."""
        return {name: value for name, value in self.tags().items() if name != "path"}

    def pointer(self) -> dict[str, Any]:
        """The file that MLflow holds instead of the model's files."""
        part = self.artifact.manifest.parts["export"]
        files = [{"path": f.path, "bytes": f.bytes, "sha256": f.sha256} for f in part.files]
        return {
            **self.tags(),
            "host": host_name(),
            "files": files,
            "export": self._command("export", _directory(self.name)),
        }

    def words(self, results: str = "", origin: Mapping[str, str] | None = None) -> str:
        """A description for people, in Markdown: its results, where its files are, and commands that run as they stand."""
        files = self.store / self.place / "export"
        url = (origin or {}).get("prefect.url")
        parts = [
            f"{self.name}: {self.tokens:,} tokens."
            + (f" Made by [this run in Prefect]({url})." if url else ""),
            results,
            f"Files: `{files}`, digest `{self.digest}`. To export them, and to see what they are made of:",
            f"```sh\n{self._command('export', _directory(self.name))}\n{self._command('lineage')}\n```",
        ]
        return "\n\n".join(part for part in parts if part)

    def _command(self, name: str, *more: str) -> str:
        return shlex.join([_program(), name, self.key[:16], *more, "--store", str(self.store)])


@cache
def _program() -> str:
    """The command of this installation: by its whole path, where a shell would not find it."""
    own = Path(sys.executable).parent / "onward"
    return "onward" if shutil.which("onward") or not own.exists() else str(own)


def _directory(name: str) -> str:
    """A directory's name for a model: its own name, as far as a shell takes it without quotes."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-") or "model"


def alias_of(name: str) -> str:
    """`base`, or `tokens-400m` for the budget `400M`. MLflow accepts letters, digits, _ and -."""
    return name if name == "base" else f"tokens-{name.lower().replace('.', '-')}"


_FRESH_SECONDS = 5.0
"""How long what was read of the registry counts: other runs register models too."""


@dataclass
class _Version:
    """A version as the registry has it."""

    number: str
    tags: dict[str, str]
    description: str


@dataclass
class _Registered:
    """A registered model as it was read at the time `read`: its versions by number, oldest first, and its aliases."""

    read: float
    versions: dict[str, _Version]
    aliases: dict[str, str]


class Models:
    """Models of one experiment. Raises MLflow's exceptions. Every operation may be repeated."""

    def __init__(self, client: Any, experiment: str) -> None:
        self._client = client
        self._experiment = experiment
        self._known: dict[str, Any] = {}
        self._registered: dict[str, _Registered] = {}

    def logged(self, model: Exported, told: Sequence[str] = ()) -> str:
        """The id of the model's LoggedModel. It is created and finalised if it does not exist.

        `told`: the outputs of the run that made it. That of a whole model is there already.
        """
        if len(told) == 1:
            return told[0]
        return str(self._entity(model).model_id)

    def _entity(self, model: Exported) -> Any:
        if model.key in self._known:
            return self._known[model.key]
        found = self._client.search_logged_models([self._experiment], f"tags.stage_key = '{model.key}'")
        first = min(found, key=lambda one: (one.creation_timestamp, one.model_id), default=None)
        if first is None:
            first = self._client.create_logged_model(
                self._experiment,
                name=_plain(f"{model.name}-{model.key[:6]}"),
                source_run_id=model.run,
                tags=model.tags(),
                params={name: value[:500] for name, value in model.params.items()},
                model_type="causal-lm",
            )
        ready = str(first.status) == "READY"
        if not ready or first.tags.get(LOADS) != FORMAT:  # models of before had the pointer alone
            self._point(first.model_id, model)
            self._client.set_logged_model_tags(first.model_id, {LOADS: FORMAT})
        if not ready:
            self._client.finalize_logged_model(first.model_id, "READY")
        self._known[model.key] = first
        return first

    def _point(self, model_id: str, model: Exported) -> None:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / POINTER
            path.write_text(json.dumps(model.pointer(), indent=1) + "\n", encoding="utf-8")
            export = model.store / model.place / "export"
            write_loadable(
                Path(directory), export, model_id, {"stage_key": model.key, "digest": model.digest}
            )
            self._client.log_model_artifacts(model_id, directory)

    def input(self, run: str, model_id: str) -> None:
        """Record that a run measured a model."""
        from mlflow.entities import LoggedModelInput

        inputs = self._client.get_run(run).inputs
        if model_id not in {one.model_id for one in (inputs.model_inputs if inputs else ())}:
            self._client.log_inputs(run, models=[LoggedModelInput(model_id)])

    def version(
        self, registered: str, model: Exported, tags: Mapping[str, str], *, whole: bool = True
    ) -> str:
        """The version for the model's stage key in the registered model. Created, with `tags` too, if it does not exist.

        `whole`: a version that exists was led to before.
        """
        there = self._registry(registered)
        known = [one.number for one in there.versions.values() if one.tags.get("stage_key") == model.key]
        loads = bool(known) and there.versions[known[0]].tags.get(LOADS) == FORMAT
        if loads and whole:
            return known[0]
        entity = self._entity(model)
        if known and not loads:  # of before: its files are there now
            self._client.set_model_version_tag(registered, known[0], LOADS, FORMAT)
            there.versions[known[0]].tags[LOADS] = FORMAT
        if not known:
            made = self._client.create_model_version(
                registered,
                entity.artifact_location,  # the process would look for `models:/…` at its own address
                run_id=model.run,
                tags={
                    **model.marks(),
                    "source_run": tags.get("source_run", ""),
                    "model_id": entity.model_id,
                    LOADS: FORMAT,
                },
                description=model.words(origin=tags),
                await_creation_for=0,
                model_id=entity.model_id,
            )
            known = [str(made.version)]
            there.versions[known[0]] = _version_of(made)
        self._lead(entity.model_id, registered, known[0])
        return known[0]

    def _lead(self, model_id: str, registered: str, version: str) -> None:
        """Link the LoggedModel to its versions. MLflow's server does this by itself, a database does not."""
        from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

        known = self._client.get_logged_model(model_id).tags.get(MLFLOW_MODEL_VERSIONS)
        versions = json.loads(known) if known else []
        if not any((one["name"], str(one["version"])) == (registered, version) for one in versions):
            versions.append({"name": registered, "version": version})
            self._client.set_logged_model_tags(model_id, {MLFLOW_MODEL_VERSIONS: json.dumps(versions)})

    def _registry(self, registered: str) -> _Registered:
        """The registered model as it is now, or was a moment ago. It is created if it does not exist."""
        known = self._registered.get(registered)
        if known is None or time.monotonic() - known.read > _FRESH_SECONDS:
            known = self._registered[registered] = self._read(registered)
        return known

    def _read(self, registered: str) -> _Registered:
        from mlflow.exceptions import MlflowException

        try:
            model = self._client.get_registered_model(registered)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            model = self._client.create_registered_model(registered, description=_REGISTERED)
        aliases = {str(alias): str(version) for alias, version in (model.aliases or {}).items()}
        token, found = None, []
        while True:
            page = self._client.search_model_versions(f"name = '{registered}'", page_token=token)
            found += list(page)
            if not (token := page.token):
                break
        versions = {str(one.version): _version_of(one) for one in sorted(found, key=lambda v: int(v.version))}
        return _Registered(time.monotonic(), versions, aliases)

    def describe(
        self, registered: str, version: str, model: Exported, results: str, origin: Mapping[str, str]
    ) -> None:
        """Set the description of a version, but for the run that made it, and why it is or is not the champion."""
        before = self._registry(registered).versions[version].description
        _, mark, why = before.partition(_WHY_MARK)
        made_by = {"prefect.url": known[1]} if (known := _MADE_BY.search(before)) else origin
        self._describe(registered, version, f"{model.words(results, made_by)}{mark}{why}")

    def _describe(self, registered: str, version: str, text: str) -> None:
        known = self._registry(registered).versions[version]
        if known.description != text:
            self._client.update_model_version(registered, version, text)
            known.description = text

    def _tag(self, registered: str, version: str, name: str, value: str) -> None:
        known = self._registry(registered).versions[version]
        if known.tags.get(name) != value:
            self._client.set_model_version_tag(registered, version, name, value)
            known.tags[name] = value

    def alias(self, registered: str, alias: str, version: str) -> None:
        """Set the alias to the version."""
        there = self._registry(registered)
        if there.aliases.get(alias) != version:
            self._client.set_registered_model_alias(registered, alias, version)
            there.aliases[alias] = version

    def crown(self, registered: str, standings: Mapping[str, Standing]) -> str | None:
        """Tag versions (by number) with their standing, and set `champion` to the best one. Returns its number.

        Versions of other runs take part if they were measured in the same way. Why a version is or is not the champion
        stands on its page. The alias moves only to a version that is clearly better.
        """
        for version, one in standings.items():
            for name, value in one.tags().items():
                self._tag(registered, version, name, value)
        there = self._registry(registered)
        everyone = {
            number: known
            for number, one in there.versions.items()
            if (known := standing_of(one.tags)) is not None
        }
        measures = {one.measure for one in standings.values()}
        if len(measures) != 1:
            return None
        choice = choose(everyone, measures.pop(), there.aliases.get(CHAMPION))
        for number, reason in choice.reasons.items():
            if there.versions[number].tags.get(WHY) != reason:
                words = there.versions[number].description.split(_WHY_MARK)[0]
                self._describe(registered, number, f"{words}{_WHY_MARK}{reason}.")
                self._tag(registered, number, WHY, reason)
        if choice.champion is not None:
            self.alias(registered, CHAMPION, choice.champion)
        return choice.champion


def _version_of(one: Any) -> _Version:
    return _Version(str(one.version), dict(one.tags or {}), str(one.description or ""))


_REGISTERED = (
    "Models of Onward: `base`, one alias for each token budget, and `champion`, which moves only to a model that is "
    "clearly better in the domain and not clearly worse in general than its base; each version's page says why."
)


def _plain(name: str) -> str:
    return "".join("-" if character in "/:.%\"'" else character for character in name)
