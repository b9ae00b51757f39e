"""The data that a stage read, as MLflow's dataset inputs: corpus, packing manifests, questions, held-out text.

A dataset's digest is the first 36 hex digits (MLflow's maximum) of the sha256 in the stage's key. Its source names the
artifacts of the store and the source files behind them, each with its full digest. No content is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from storage.artifact import Artifact
from storage.errors import OnwardError
from storage.runs import references
from storage.store import Store
from tasks import stages

DIGEST_CHARACTERS = 36
_SOURCE_CHARACTERS = 60_000
_TOKENS = [("long", "doc"), ("array", "tokens")]
_PIECES = [("long", "sequence"), ("long", "shard"), ("long", "offset"), ("long", "length")]
_DOCUMENTS = [("long", "id"), ("string", "source"), ("string", "text"), ("string", "meta")]


@dataclass(frozen=True)
class Data:
    """A dataset as MLflow shows it. `use` is its context: training, packing, evaluation or reading."""

    name: str
    digest: str
    use: str
    where: dict[str, Any]
    columns: list[tuple[str, str]] = field(default_factory=list)
    profile: dict[str, Any] = field(default_factory=dict)

    @property
    def reference(self) -> tuple[str, str]:
        """Name and digest, which tie metrics to the dataset."""
        return self.name, self.digest

    def entity(self) -> Any:
        """The dataset as MLflow's DatasetInput. `mlflow.data.get_source` reads its source as a local path."""
        from mlflow.entities import Dataset, DatasetInput, InputTag
        from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

        colspec = [{"type": kind, "name": name, "required": True} for kind, name in self.columns]
        dataset = Dataset(
            self.name,
            self.digest,
            "local",
            _within(self.where),
            json.dumps({"mlflow_colspec": colspec}) if colspec else None,
            json.dumps(self.profile) if self.profile else None,
        )
        return DatasetInput(dataset, [InputTag(MLFLOW_DATASET_CONTEXT, self.use)])


def _within(where: Mapping[str, Any]) -> str:
    """JSON within MLflow's length limit. List entries that do not fit are counted."""
    kept = dict(where)
    for name in ("files", "artifacts"):
        left_out = 0
        while len(json.dumps(kept)) > _SOURCE_CHARACTERS and kept.get(name):
            half = max(1, len(kept[name]) // 2)
            left_out += half
            kept[name] = kept[name][:-half]
            kept[f"{name}_left_out"] = left_out
    return json.dumps(kept)


def inputs_of(artifact: Artifact, store: Store, item: str | None = None) -> list[Data]:
    """The datasets that the artifact was made from; empty if its stage reads nothing that MLflow should show.

    `item` is the source whose held-out documents a perplexity was measured on.
    """
    made = artifact.manifest.inputs
    if artifact.stage == "ingest":
        return [_files_read(artifact, store)]
    if artifact.stage == "pack":
        return list(_corpus([artifact], store, "packing"))
    if artifact.stage in stages.TRAINING:
        packs = [found for one in made["manifests"] if (found := _lookup(store, one))]
        return [*_corpus(packs, store, "training"), *(_manifest(pack) for pack in packs)]
    if artifact.stage == "evaluate":
        return [_questions(artifact, store)]
    if artifact.stage == "perplexity":
        return [_held_out(artifact, store, item)]
    return []


def source_files(store: Store, artifacts: Iterable[Artifact]) -> list[dict[str, Any]]:
    """The source files behind the artifacts: source, name, bytes and sha256 of each, or a package and its version."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for one in _upstream(store, artifacts):
        if one.stage not in ("extract", "ingest"):
            continue
        source, inputs = str(one.manifest.config["name"]), one.manifest.inputs
        for file in inputs.get("files") or ():
            found[source, file["name"]] = {"source": source, **file}
        for name, version in (inputs.get("distributions") or {}).items():
            found[source, name] = {"source": source, "name": name, "version": version}
    return [found[key] for key in sorted(found)]


def _upstream(store: Store, artifacts: Iterable[Artifact]) -> Iterator[Artifact]:
    waiting, seen = list(artifacts), set[str]()
    while waiting:
        one = waiting.pop()
        if one.key in seen:
            continue
        seen.add(one.key)
        yield one
        waiting += [found for edge in references(one) if (found := _lookup(store, edge))]


def _lookup(store: Store, edge: Mapping[str, Any]) -> Artifact | None:
    """The artifact, or None if it is gone or damaged; MLflow then shows less."""
    try:
        return store.lookup(edge["stage"], edge["key"])
    except OnwardError:
        return None


def _corpus(packs: list[Artifact], store: Store, use: str) -> Iterator[Data]:
    """One dataset per source: the token shards that the manifests may refer to."""
    shards: dict[str, dict[str, dict[str, Any]]] = {}
    for pack in packs:
        for source, parts in pack.manifest.inputs["shards"].items():
            shards.setdefault(source, {}).update({part["digest"]: part for part in parts})
    for source, parts in shards.items():
        made = [found for part in parts.values() if (found := _lookup(store, part))]
        stats = [one.stats for one in made]
        yield Data(
            f"corpus/{source}",
            _digest_of(parts),
            use,
            _where(
                store, made, parts=list(parts.values()), files=source_files(store, _documents(store, made))
            ),
            _TOKENS,
            {
                "num_rows": sum(int(one.get("documents_out", 0)) for one in stats),
                "num_tokens": sum(int(one.get("tokens", 0)) for one in stats),
            },
        )


def _documents(store: Store, tokenized: list[Artifact]) -> list[Artifact]:
    """The tokenized documents, without the tokenizer, which may also be made from text."""
    edges = (one.manifest.inputs.get("documents") for one in tokenized)
    return [found for edge in edges if edge and (found := _lookup(store, edge))]


def _manifest(pack: Artifact) -> Data:
    part = pack.part("manifest")
    stats = pack.stats
    where = {"uri": str(part.only()), "artifacts": [_named(pack, "manifest", part.digest)]}
    profile = {
        "num_rows": int(stats["pieces"]),
        "sequences": int(stats["sequences"]),
        "first_sequence": int(stats["first_sequence"]),
        "num_tokens": int(stats["tokens"]),
    }
    return Data("packing manifest", _cut(part.digest), "training", where, _PIECES, profile)


def _files_read(artifact: Artifact, store: Store) -> Data:
    config, stats = artifact.manifest.config, artifact.stats
    files = source_files(store, [artifact])
    names = _names_read(artifact)
    if edge := artifact.manifest.inputs.get("extracted"):
        extracted = _lookup(store, edge)
        names |= _names_read(extracted) if extracted is not None else set()
    files = [one for one in files if one["name"] in names]
    where = {"uri": str(artifact.path), "files": files, "origin": artifact.manifest.inputs.get("hub")}
    profile = {"num_rows": int(stats["documents_in"]), "bytes": int(stats["bytes_out"])}
    digest = _digest_of(str(one.get("sha256", one.get("version"))) for one in files)
    return Data(
        f"files/{config['name']}",
        digest,
        "reading",
        {n: v for n, v in where.items() if v},
        _DOCUMENTS,
        profile,
    )


def _names_read(artifact: Artifact) -> set[str]:
    inputs = artifact.manifest.inputs
    return {file["name"] for file in inputs.get("files") or ()} | set(inputs.get("distributions") or {})


def _questions(artifact: Artifact, store: Store) -> Data:
    """The files that a benchmark's questions were read from. They do not depend on the model."""
    config, inputs, stats = artifact.manifest.config, artifact.manifest.inputs, artifact.stats
    own, files = inputs.get("own"), list(inputs.get("files") or ())
    digests = [own["digest"]] if own else [str(file.get("sha256")) for file in files]
    made = _lookup(store, own) if own else None
    where: dict[str, Any] = {"uri": str(made.path if made else artifact.path), "files": files}
    if own:
        where["artifacts"] = [own]
    name = f"benchmark/{config['benchmark']}"
    return Data(name, _digest_of(digests), "evaluation", where, profile={"num_rows": int(stats["questions"])})


def _held_out(artifact: Artifact, store: Store, item: str | None) -> Data:
    edge = artifact.manifest.inputs["holdout"]
    made = _lookup(store, edge)
    found = source_files(store, [made]) if made else []
    source = item or ", ".join(sorted({one["source"] for one in found}))
    where = {"uri": str(made.path if made else artifact.path), "artifacts": [edge], "files": found}
    stats = artifact.stats
    profile = {"num_rows": int(stats["documents"]), "num_tokens": int(stats["tokens"])}
    return Data(f"holdout/{source}", _cut(edge["digest"]), "evaluation", where, _DOCUMENTS, profile)


def _where(
    store: Store, made: list[Artifact], parts: list[dict[str, Any]], files: list[dict[str, Any]]
) -> dict[str, Any]:
    uri: Path = made[0].path if len(made) == 1 else store.root / "tokenize"
    return {"uri": str(uri), "artifacts": parts, "files": files}


def _named(artifact: Artifact, part: str, digest: str) -> dict[str, Any]:
    return {"stage": artifact.stage, "key": artifact.key, "part": part, "digest": digest}


def _digest_of(digests: Iterable[str]) -> str:
    """One digest for several, in order: the sha256 of their lines. A single digest stands for itself."""
    listed = list(digests)
    whole = listed[0] if len(listed) == 1 else hashlib.sha256("\n".join(listed).encode()).hexdigest()
    return _cut(whole)


def _cut(digest: str) -> str:
    return digest[:DIGEST_CHARACTERS]
