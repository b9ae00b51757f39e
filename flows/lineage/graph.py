"""The way from a model (or any artifact) back to its source files, as a graph, as text and as Mermaid.

Read only from the manifests of the store. Each names the parts, with digests, that its artifact was made from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from storage.artifact import Artifact
from storage.errors import DamagedArtifact, OnwardError
from storage.runs import references
from storage.store import Store
from tasks.pages.blocks import Block, Row, Table, Text

SHORT = 16


@dataclass(frozen=True)
class Edge:
    """A part of one artifact that another artifact was made from. Its digest was in the other's key."""

    source: str
    part: str
    digest: str
    target: str


@dataclass(frozen=True)
class Outside:
    """An external input of an artifact. `kind` is file, package, model, benchmark or classifier.

    `digest` is a sha256, a package version or a commit, as `scheme` says. `group` is its source, or its location.
    """

    kind: str
    group: str
    name: str
    scheme: str
    digest: str
    bytes: int | None = None
    facts: Mapping[str, Any] = field(default_factory=dict, compare=False, hash=False)


@dataclass(frozen=True)
class Registered:
    """A version of a registered model. `uri` is the address of the MLflow server or database, without secrets."""

    name: str
    version: str
    asked: str
    uri: str
    created: int
    run: str | None = None


@dataclass
class Graph:
    """Artifacts by key, each after all of its inputs. The last one is `target`."""

    target: Artifact
    nodes: dict[str, Artifact]
    edges: list[Edge]
    outside: dict[str, list[Outside]]
    missing: list[Edge]
    """Edges from artifacts that no longer exist in the store."""
    broken: list[str] = field(default_factory=list)
    """Why the chain does not hold: artifacts that are damaged, or have other bytes than those that were read."""
    registered: Registered | None = None

    def made_of(self, key: str) -> list[Edge]:
        """Edges into an artifact."""
        return [edge for edge in self.edges if edge.target == key]

    @property
    def sources(self) -> list[Outside]:
        """All external inputs, each once, by kind, group and name."""
        found = {one for group in self.outside.values() for one in group}
        return sorted(found, key=lambda one: (one.kind, one.group, one.name, one.digest))


def must_hold(graph: Graph) -> None:
    """Raise OnwardError if an artifact is damaged, or has other bytes than those that another was made from."""
    if graph.broken:
        target = f"{graph.target.stage}/{graph.target.key[:SHORT]}"
        raise OnwardError(
            f"what {target} was made of is not in the store any more as it was: {'; '.join(graph.broken[:5])}. "
            "Start the run that made it again: it makes anew what does not hold"
        )


def graph_of(store: Store, artifact: Artifact) -> Graph:
    """The graph of everything that an artifact was made from, by the digests that each manifest recorded."""
    nodes: dict[str, Artifact] = {}
    edges: list[Edge] = []
    missing: list[Edge] = []
    outside: dict[str, list[Outside]] = {}
    broken: dict[str, None] = {}
    waiting: list[tuple[Artifact, bool]] = [(artifact, False)]
    entered: set[str] = set()
    while waiting:
        one, done = waiting.pop()
        if done:
            nodes[one.key] = one
            continue
        if one.key in entered:
            continue
        entered.add(one.key)
        waiting.append((one, True))
        outside[one.key] = list(_outside(one))
        for edge in _edges(one):
            known = Edge(edge["key"], edge["part"], edge["digest"], one.key)
            try:
                before = store.look(edge["stage"], edge["key"])
            except DamagedArtifact as error:
                broken.setdefault(f"damaged: {error}")
                continue
            if before is None:
                missing.append(known)
                continue
            part = before.manifest.parts.get(edge["part"])
            if part is None or part.digest != edge["digest"]:
                broken.setdefault(
                    f"{one.stage}/{one.key[:SHORT]} was made of {edge['part']} {edge['digest'][:12]} of "
                    f"{edge['stage']}/{edge['key'][:SHORT]}, which now is {part.digest[:12] if part else 'not there'}"
                )
            edges.append(known)
            waiting.append((before, False))
    return Graph(artifact, nodes, edges, outside, missing, list(broken))


def _edges(artifact: Artifact) -> list[dict[str, Any]]:
    """The references of an artifact, without duplicates."""
    found = {(edge["stage"], edge["key"], edge["part"]): edge for edge in references(artifact)}
    return list(found.values())


def _outside(artifact: Artifact) -> Iterator[Outside]:
    inputs = artifact.manifest.inputs
    if artifact.stage in ("extract", "ingest"):
        yield from _text(str(artifact.manifest.config["name"]), inputs)
    elif artifact.stage == "base":
        yield from _base(inputs.get("origin", {}))
    elif artifact.stage == "decontaminate":
        for one in inputs.get("benchmarks") or ():
            yield Outside("benchmark", one["benchmark"], one["file"], "sha256", one["sha256"])
    elif artifact.stage == "contamination" and (one := inputs.get("benchmark")):
        yield Outside("benchmark", one["benchmark"], one["file"], "sha256", one["sha256"])
    elif artifact.stage == "evaluate":
        yield from _questions(str(artifact.manifest.config["benchmark"]), inputs)
    elif artifact.stage == "filter" and isinstance(inputs.get("classifier"), str):
        yield Outside("classifier", "education", "classifier", "sha256", inputs["classifier"])


def _text(source: str, inputs: Mapping[str, Any]) -> Iterator[Outside]:
    hub = inputs.get("hub")
    for file in inputs.get("files") or ():
        facts = {"hub": hub} if hub else {}
        yield Outside("file", source, file["name"], "sha256", str(file["sha256"]), file["bytes"], facts)
    for name, version in (inputs.get("distributions") or {}).items():
        yield Outside("package", source, name, "version", str(version))


def _questions(benchmark: str, inputs: Mapping[str, Any]) -> Iterator[Outside]:
    """The question files that an evaluation scored, and the harness version that scored them.

    Sizes are left out, so that the entries equal those of decontamination. The key does not hold the name of a user's
    single file; `questions` stands for it.
    """
    for file in inputs.get("files") or ():
        yield Outside(
            "benchmark", benchmark, str(file.get("name", "questions")), "sha256", str(file["sha256"])
        )
    if version := inputs.get("harness"):
        yield Outside("package", "evaluation", "lm_eval", "version", str(version))


def _base(origin: Mapping[str, Any]) -> Iterator[Outside]:
    if "hub" in origin:
        yield Outside("model", "hub", str(origin["hub"]), "commit", str(origin["commit"]))
    elif "local" in origin:
        yield Outside("model", "local", "base model", "sha256", str(origin["local"]))


def find_artifact(store: Store, given: str) -> Artifact:
    """Find an artifact by key, stage and key, the beginning of one, or a path in the store. Raises OnwardError."""
    from storage.catalog import Catalog

    found = Catalog(store).find(given)
    artifact = store.lookup(found["stage"], found["key"])
    if artifact is None:
        raise OnwardError(f"{found['path']} is gone from {store.root}")
    return artifact


def as_text(graph: Graph) -> str:
    """Artifacts, the target first, each with its used parts and their digests; then the external inputs."""
    lines = []
    if (one := graph.registered) is not None:
        lines.append(f"{one.asked} is version {one.version} of {one.name} in MLflow ({one.uri})")
    depth = _depths(graph)
    for artifact in reversed(list(graph.nodes.values())):
        lines.append(f"{'  ' * min(depth[artifact.key], 12)}{artifact.stage}/{artifact.key[:SHORT]}")
        for part, digest in _used(graph, artifact):
            lines.append(f"{'  ' * min(depth[artifact.key], 12)}    {part} sha256 {digest}")
    for edge in graph.missing:
        lines.append(f"gone from the store: part {edge.part} sha256 {edge.digest} of {edge.source[:SHORT]}")
    lines.append("")
    lines.append("from outside:" if graph.sources else "from outside: nothing")
    for source in graph.sources:
        size = f"  {source.bytes:,} bytes" if source.bytes is not None else ""
        lines.append(
            f"  {source.kind} {source.group} · {source.name}{size}  {source.scheme} {source.digest}{_hub(source)}"
        )
    return "\n".join(lines) + "\n"


def blocks_of(graph: Graph) -> list[Block]:
    """The same for a terminal: tables with the first digits of each digest."""
    blocks: list[Block] = []
    if (one := graph.registered) is not None:
        about = f"{one.asked} is version {one.version} of {one.name} in MLflow ({one.uri})"
        blocks.append(Text(about, "findings"))
    depth = _depths(graph)
    rows: list[Row] = []
    for artifact in reversed(list(graph.nodes.values())):
        name = f"{' ' * min(depth[artifact.key], 12)}{artifact.stage}/{artifact.key[:12]}"
        parts = _used(graph, artifact)
        rows.append(
            (name, ", ".join(part for part, _ in parts), ", ".join(digest[:12] for _, digest in parts))
        )
    blocks.append(Table(("artifact", "parts that were used", "sha256"), tuple(rows), 1, 2))
    if graph.missing:
        gone = ((edge.source[:SHORT], edge.part, edge.digest[:12]) for edge in graph.missing)
        blocks.append(Table(("gone from the store", "part", "sha256"), tuple(gone), 1, 2))
    packages = Counter(source.group for source in graph.sources if source.kind == "package")
    many = {group: count for group, count in packages.items() if count > _FEW_PACKAGES}
    outside: tuple[Row, ...] = tuple(
        (
            f"{source.group} · {_short(source.name)}{_hub(source)}",
            source.kind,
            f"{source.bytes:,}" if source.bytes is not None else "",
            f"{source.scheme} {source.digest[:12]}",
        )
        for source in graph.sources
        if source.kind != "package" or source.group not in many
    )
    outside += tuple(
        (f"{group} · {count} of them", "package", "", "version") for group, count in many.items()
    )
    if not outside:
        return [*blocks, Text("from outside: nothing", "findings")]
    return [*blocks, Table(("from outside", "kind", "bytes", "digest"), outside, 2, 1)]


_FEW_PACKAGES = 8


def _short(name: str, most: int = 48) -> str:
    """A path without its middle, where it is long: its end tells more than its beginning."""
    return name if len(name) <= most else f"{name[: most // 3]}…{name[-(most - most // 3 - 1) :]}"


def _hub(source: Outside) -> str:
    hub = source.facts.get("hub")
    return f"  of {hub['dataset']} at commit {hub['commit']}" if hub else ""


def _used(graph: Graph, artifact: Artifact) -> list[tuple[str, str]]:
    """Parts that artifacts in the graph were made from; for the target, its export or all parts."""
    if artifact.key == graph.target.key:
        parts = artifact.manifest.parts
        return [(name, parts[name].digest) for name in (("export",) if "export" in parts else sorted(parts))]
    return sorted({(edge.part, edge.digest) for edge in graph.edges if edge.source == artifact.key})


def _depths(graph: Graph) -> dict[str, int]:
    """The longest path to the target, in edges."""
    depths = {graph.target.key: 0}
    for key in reversed(list(graph.nodes)):
        for edge in graph.made_of(key):
            depths[edge.source] = max(depths.get(edge.source, 0), depths[key] + 1)
    return depths


def as_mermaid(graph: Graph) -> str:
    """A flow chart from the files to the model. Implied edges are left out; full digests are in comments."""
    lines = ["flowchart LR"]
    names = {key: f"a{number}" for number, key in enumerate(graph.nodes)}
    for key, artifact in graph.nodes.items():
        parts = _used(graph, artifact)
        words = [f"{artifact.stage} · {key[:SHORT]}", *(f"{part} {digest[:12]}" for part, digest in parts)]
        lines.append(f'  {names[key]}["{_quoted(words)}"]')
        lines += [f"  %% {names[key]} {part} sha256 {digest}" for part, digest in parts]
    outside = {one: f"s{number}" for number, one in enumerate(graph.sources)}
    for one, name in outside.items():
        words = [f"{one.group} · {one.name}", f"{one.scheme} {one.digest[:12]}"]
        lines += [f'  {name}[("{_quoted(words)}")]', f"  %% {name} {one.scheme} {one.digest}"]
    for key, entered in graph.outside.items():
        lines += [f"  {outside[one]} --> {names[key]}" for one in dict.fromkeys(entered)]
    lines += [f"  {names[edge.source]} --> {names[edge.target]}" for edge in _telling(graph)]
    if (registered := graph.registered) is not None:
        words = [f"{registered.name} version {registered.version}", registered.asked]
        lines += [f'  registered(["{_quoted(words)}"])', f"  {names[graph.target.key]} --> registered"]
    lines.append(f"  style {names[graph.target.key]} stroke-width:3px")
    return "\n".join(lines) + "\n"


def _telling(graph: Graph) -> list[Edge]:
    """One edge for each pair of artifacts, without edges that a longer path implies (transitive reduction)."""
    before: dict[str, set[str]] = {}
    for key in graph.nodes:  # each after all that it is made of
        sources = {edge.source for edge in graph.made_of(key)}
        before[key] = sources.union(*(before[one] for one in sources))
    found = []
    for key in graph.nodes:
        direct = {edge.source: edge for edge in graph.made_of(key)}
        implied = set[str]().union(*(before[one] for one in direct))
        found += [edge for source, edge in direct.items() if source not in implied]
    return found


def _quoted(words: list[str]) -> str:
    """Text of a node. Characters that would end it become entities."""
    return "<br/>".join(
        word.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
        for word in words
    )
