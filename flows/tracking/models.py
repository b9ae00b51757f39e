"""Models in MLflow: a LoggedModel for each exported model, and versions of a registered model with aliases.

The files stay in the store. A LoggedModel holds a pointer with the digest of each file; `onward export` writes the
files. For one stage key, an experiment gets one model, and a registered model gets one version.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from flows.tracking.champion import Standing, choose, standing_of
from storage.artifact import Artifact

CHAMPION = "champion"
POINTER = "model.json"
WHY = "champion"
"""Tag of a version: why it is or is not the champion."""
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


def outputs_of(run: Any) -> set[str]:
    """Ids of the models that a run of MLflow's produced."""
    return {str(one.model_id) for one in (run.outputs.model_outputs if run.outputs else ())}


class Models:
    """Models of one experiment. Raises MLflow's exceptions. Every operation may be repeated."""

    def __init__(self, client: Any, experiment: str) -> None:
        self._client = client
        self._experiment = experiment
        self._known: dict[str, Any] = {}

    def logged(self, model: Exported) -> str:
        """The id of the model's LoggedModel. It is created and finalised if it does not exist."""
        if model.key in self._known:
            return str(self._known[model.key].model_id)
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
        if str(first.status) != "READY":
            self._point(first.model_id, model)
            self._client.finalize_logged_model(first.model_id, "READY")
        self._known[model.key] = first
        return str(first.model_id)

    def _point(self, model_id: str, model: Exported) -> None:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / POINTER
            path.write_text(json.dumps(model.pointer(), indent=1) + "\n", encoding="utf-8")
            self._client.log_model_artifact(model_id, str(path))

    def output(self, run: str, model_id: str, step: int, known: set[str]) -> None:
        """Record that a run produced a model, unless it is among the `known` ones."""
        from mlflow.entities import LoggedModelOutput

        if model_id not in known:
            self._client.log_outputs(run, [LoggedModelOutput(model_id, step)])

    def input(self, run: str, model_id: str) -> None:
        """Record that a run measured a model."""
        from mlflow.entities import LoggedModelInput

        inputs = self._client.get_run(run).inputs
        if model_id not in {one.model_id for one in (inputs.model_inputs if inputs else ())}:
            self._client.log_inputs(run, models=[LoggedModelInput(model_id)])

    def version(self, registered: str, model: Exported, tags: Mapping[str, str]) -> str:
        """The version for the model's stage key in the registered model. Created, with `tags` too, if it does not exist."""
        model_id = self.logged(model)
        found = self._versions(registered).get(model.key)
        if found is None:
            found = self._client.create_model_version(
                registered,
                self._known[
                    model.key
                ].artifact_location,  # the process would look for `models:/…` at its own address
                run_id=model.run,
                tags={**model.marks(), "source_run": tags.get("source_run", ""), "model_id": model_id},
                description=model.words(origin=tags),
                await_creation_for=0,
                model_id=model_id,
            )
        self._lead(model_id, registered, str(found.version))
        return str(found.version)

    def _lead(self, model_id: str, registered: str, version: str) -> None:
        """Link the LoggedModel to its versions. MLflow's server does this by itself, a database does not."""
        from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

        known = self._client.get_logged_model(model_id).tags.get(MLFLOW_MODEL_VERSIONS)
        versions = json.loads(known) if known else []
        if not any((one["name"], str(one["version"])) == (registered, version) for one in versions):
            versions.append({"name": registered, "version": version})
            self._client.set_logged_model_tags(model_id, {MLFLOW_MODEL_VERSIONS: json.dumps(versions)})

    def _versions(self, registered: str) -> dict[str, Any]:
        """The first version of each stage key."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.get_registered_model(registered)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            self._client.create_registered_model(registered, description=_REGISTERED)
        found: dict[str, Any] = {}
        for one in sorted(self._all_versions(registered), key=lambda one: int(one.version)):
            if key := one.tags.get("stage_key"):
                found.setdefault(key, one)
        return found

    def _all_versions(self, registered: str) -> list[Any]:
        token, found = None, []
        while True:
            page = self._client.search_model_versions(f"name = '{registered}'", page_token=token)
            found += list(page)
            if not (token := page.token):
                return found

    def describe(self, registered: str, version: str, words: str) -> None:
        """Set the description of a version, but for why it is or is not the champion."""
        before = str(self._client.get_model_version(registered, version).description or "")
        _, mark, why = before.partition(_WHY_MARK)
        if (text := f"{words}{mark}{why}") != before:
            self._client.update_model_version(registered, version, text)

    def alias(self, registered: str, alias: str, version: str) -> None:
        """Set the alias to the version."""
        self._client.set_registered_model_alias(registered, alias, version)

    def crown(self, registered: str, standings: Mapping[str, Standing]) -> str | None:
        """Tag versions (by number) with their standing, and set `champion` to the best one. Returns its number.

        Versions of other runs take part if they were measured in the same way. Why a version is or is not the champion
        stands on its page. The alias moves only to a version that is clearly better.
        """
        for version, one in standings.items():
            for name, value in one.tags().items():
                self._client.set_model_version_tag(registered, version, name, value)
        versions = {str(one.version): one for one in self._all_versions(registered)}
        everyone = {
            number: known for number, one in versions.items() if (known := standing_of(one.tags)) is not None
        }
        measures = {one.measure for one in standings.values()}
        if len(measures) != 1:
            return None
        holder = next((number for number, one in versions.items() if CHAMPION in (one.aliases or ())), None)
        choice = choose(everyone, measures.pop(), holder or self._holder(registered))
        for number, reason in choice.reasons.items():
            if versions[number].tags.get(WHY) != reason:
                self._client.set_model_version_tag(registered, number, WHY, reason)
                words = str(versions[number].description or "").split(_WHY_MARK)[0]
                self._client.update_model_version(registered, number, f"{words}{_WHY_MARK}{reason}.")
        if choice.champion is not None and choice.champion != holder:
            self._client.set_registered_model_alias(registered, CHAMPION, choice.champion)
        return choice.champion

    def _holder(self, registered: str) -> str | None:
        """The version that has the alias now."""
        aliases = self._client.get_registered_model(registered).aliases or {}
        found = aliases.get(CHAMPION)
        return None if found is None else str(found)


_REGISTERED = (
    "Models of Onward: `base`, one alias for each token budget, and `champion`, which moves only to a model that is "
    "clearly better in the domain and not clearly worse in general than its base; each version's page says why."
)


def _plain(name: str) -> str:
    return "".join("-" if character in "/:.%\"'" else character for character in name)
