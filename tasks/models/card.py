"""The card of an exported model: its origin, its training data, its scores.

It is made from manifests only, so every number is next to the key of its artifact, and the card of an older model can
be written again. The card is not part of any artifact: scores can be added later without changing the weights' digest.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from storage.artifact import Artifact
from storage.catalog import Catalog
from storage.counts import rounded_count
from tasks.corpus.tokens.begin import BOS, EOS, Begin, ends_of
from tasks.models.form import GGUF, Form

_FILES_LISTED = 20
"""Maximum number of files listed per source. The manifests of `ingest` list all."""

Scores = dict[tuple[str, str], Artifact]


def model_card(catalog: Catalog, model: Artifact, form: Form | None = None) -> str:
    """README.md of an exported model (`base`, `train` or `decay` with the part `export`), in the hub's format.

    A pure function of the store and of the form of the files beside it: a card written later includes later measurements.
    """
    form = form or Form()
    made = _made_of(catalog, model)
    segments = _segments(made)
    adapted = _adapted(segments)
    before = _start_of(adapted[0], made) if adapted else None
    base = next((one for one in made if one.stage == "base"), model)
    blocks = [
        _front_matter(base, form),
        f"# {base.stats.get('architecture', 'Language model')}, {_parameters(base)} parameters",
        f"{_what(model, base, adapted)} {_loading(form)}",
        _weights(form),
        "## Scores",
        *_scores(catalog, model, before),
        "## Training",
        *_training(segments, made),
        "## Data",
        *_data(made),
        "## Where it comes from",
        *_lineage(model, made, form),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _made_of(catalog: Catalog, model: Artifact) -> list[Artifact]:
    found = (catalog.store.lookup(row["stage"], row["key"]) for row in catalog.upstream(model.key))
    return [artifact for artifact in found if artifact is not None]


def _segments(made: list[Artifact]) -> list[Artifact]:
    """The trainings, in their order."""
    return sorted((one for one in made if one.stage in ("train", "decay")), key=lambda one: _place(one, made))


def _adapted(segments: list[Artifact]) -> list[Artifact]:
    return [one for one in segments if one.manifest.config["kind"] != "pretrain"]


def before_training(catalog: Catalog, model: Artifact) -> Artifact | None:
    """The model from which continued pre-training began. None if the model is such a one itself."""
    made = _made_of(catalog, model)
    adapted = _adapted(_segments(made))
    return _start_of(adapted[0], made) if adapted else None


def begun_with(catalog: Catalog, model: Artifact) -> Begin:
    """What documents began with where the model was trained; for a base, what its tokenizer begins a text with."""
    made = _made_of(catalog, model)
    packed = [one.manifest.config["packing"].get("begin", EOS) for one in made if one.stage == "pack"]
    if packed:
        return BOS if BOS in packed else EOS
    ends = ends_of(model.path / "export")
    return BOS if ends is not None and ends.added else EOS


def _place(segment: Artifact, made: list[Artifact]) -> tuple[int, int]:
    """Sort key: segments of one line are ordered by their steps; a line begins at an export."""
    line, at = 0, segment
    while (start := _start_of(at, made)) is not None:
        if at.manifest.inputs["start"]["part"] == "export":
            line += 1
        at = start
    return line, int(segment.manifest.config["first_step"])


def _start_of(segment: Artifact, made: list[Artifact]) -> Artifact | None:
    start = segment.manifest.inputs.get("start")
    return next((one for one in made if start and one.key == start["key"]), None)


def _front_matter(base: Artifact, form: Form) -> str:
    """The YAML front matter that the hub's pages read. JSON strings are valid YAML."""
    library = "gguf" if form.format == GGUF else "transformers"
    lines = [f"library_name: {library}", "pipeline_tag: text-generation"]
    origin = base.manifest.inputs.get("origin", {})
    if "hub" in origin:
        lines.append(f"base_model: {json.dumps(origin['hub'])}")
    return "\n".join(["---", *lines, "---"])


def _parameters(base: Artifact) -> str:
    count = int(base.stats.get("parameters", 0))
    return rounded_count(count) if count >= 1e6 else f"{count:,}"


def _what(model: Artifact, base: Artifact, adapted: list[Artifact]) -> str:
    origin = base.manifest.inputs.get("origin", {})
    if "hub" in origin:
        source = f"`{origin['hub']}` at commit `{origin['commit'][:12]}`"
    elif "init" in origin:
        source = "a model that was initialised anew"
    else:
        source = f"a local model (digest `{str(origin.get('local', ''))[:12]}`)"
    if not adapted:
        return f"The base: {source}."
    seen = int(model.stats["tokens_seen"])
    return f"Continued pre-training of {source}: {seen:,} tokens seen, the text and the steps below."


def _loading(form: Form) -> str:
    if form.format == GGUF:
        return (
            f'llama.cpp runs it (`llama-cli -m {form.file} -no-cnv -p "Once"`), and Ollama '
            '(`ollama create NAME -f Modelfile`, then `ollama run NAME "Once"`).'
        )
    return "It loads with `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` on this directory."


def _weights(form: Form) -> str:
    if form == Form():
        return ""
    return (
        f"The weights here are {form.said}, made from those of the store. The scores below were measured on those of the "
        "store, as their stages say."
    )


def _scores(catalog: Catalog, model: Artifact, before: Artifact | None) -> Iterator[str]:
    """The scores, with those of the model before training if both were measured in the same way."""
    own, others = _measured(catalog, model), _measured(catalog, before) if before else {}
    if not own:
        yield "Not measured yet."
        return
    benchmarks = {measure: one for measure, one in own.items() if one.stage == "evaluate"}
    if benchmarks:
        rows = []
        for measure, one in sorted(benchmarks.items()):
            stats, other = one.stats, others.get(measure)
            main = stats["main"]
            rows.append(
                (
                    measure[0],
                    f"{int(stats['questions']):,}",
                    main,
                    _with_error(other.stats, main) if other else "",
                    _with_error(stats, main),
                    f"{100 * stats['chance']:.1f}" if stats.get("chance") is not None else "",
                )
            )
        yield _table(("benchmark", "questions", "metric", "before, %", "this model, %", "chance, %"), rows)
    texts = {measure: one for measure, one in own.items() if one.stage == "perplexity"}
    if texts:
        texts_rows = []
        for measure, one in sorted(texts.items()):
            other = others.get(measure)
            texts_rows.append(
                (
                    measure[0],
                    f"{int(one.stats['documents']):,}",
                    _both(other, one, "perplexity", ".2f"),
                    _both(other, one, "bits_per_byte", ".4f"),
                )
            )
        yield "Held-out documents, before → this model:"
        yield _table(("source", "documents", "perplexity", "bits per byte"), texts_rows)


def _measured(catalog: Catalog, model: Artifact) -> Scores:
    """The newest artifact for each measurement and its settings."""
    rows = catalog.sql(
        "select distinct a.stage, a.key, a.started from artifacts a join inputs i using (key) "
        "where i.from_key = ? and i.part = 'export' and a.stage in ('evaluate', 'perplexity') order by a.started",
        [model.key],
    )
    found: Scores = {}
    for row in rows:
        artifact = catalog.store.lookup(row["stage"], row["key"])
        if artifact is not None:
            found[_measure_of(catalog, artifact)] = artifact
    return found


def _measure_of(catalog: Catalog, one: Artifact) -> tuple[str, str]:
    """(name, settings). Two artifacts with the same pair are comparable."""
    config = dict(one.manifest.config)
    if one.stage == "perplexity":
        holdout = one.manifest.inputs["holdout"]
        return _source_of(catalog, holdout["key"]), json.dumps([config, holdout["digest"]], sort_keys=True)
    name = str(config.pop("benchmark"))
    questions = [one.manifest.inputs.get("own") and one.manifest.inputs["own"]["digest"]]
    return name, json.dumps([config, questions, one.manifest.inputs.get("files")], sort_keys=True)


def _source_of(catalog: Catalog, key: str) -> str:
    """The source of the documents in an artifact of a corpus stage."""
    sources = {
        json.loads(row["stats"])["source"]
        for row in catalog.sql(
            "with recursive way(key) as (select ?::varchar union select i.from_key from way join inputs i "
            "on i.key = way.key where i.part = 'documents') "
            "select a.stats from way join artifacts a using (key) where a.stage = 'ingest'",
            [key],
        )
    }
    return ", ".join(sorted(sources))


def _with_error(stats: Mapping[str, Any], metric: str) -> str:
    value = f"{100 * stats['metrics'][metric]:.1f}"
    error = stats.get("stderr", {}).get(metric)
    return f"{value} ± {100 * error:.1f}" if isinstance(error, int | float) else value


def _both(other: Artifact | None, one: Artifact, name: str, form: str) -> str:
    now = format(one.stats[name], form)
    return f"{format(other.stats[name], form)} → {now}" if other else now


def _training(segments: list[Artifact], made: list[Artifact]) -> Iterator[str]:
    rows = []
    for one in segments:
        config = one.manifest.config
        rows.append(
            (
                config["kind"],
                f"{config['first_step'] + 1} to {config['last_step']}",
                f"{int(one.stats['tokens']):,}",
                f"{config['sequences_per_step']} × {config['sequence_length']}",
                f"{config['schedule']['kind']}, {config['schedule']['peak']:g}",
                config["precision"],
                f"`{one.key[:12]}`",
            )
        )
    if not rows:
        yield "None here."
        return
    yield _table(("segment", "steps", "tokens", "batch", "schedule, peak", "precision", "key"), rows)
    yield f"AdamW, `{json.dumps(segments[-1].manifest.config['optimizer'], sort_keys=True)}`."
    if any(one.manifest.config["packing"].get("begin", EOS) != EOS for one in made if one.stage == "pack"):
        yield "Each document began with the begin-of-text token: put it before a text, as the scores above did."


def _data(made: list[Artifact]) -> Iterator[str]:
    packs = [one for one in made if one.stage == "pack"]
    if not packs:
        yield "None was used here."
        return
    placed: dict[str, int] = {}
    for pack in packs:
        for source, stats in pack.stats["sources"].items():
            placed[source] = placed.get(source, 0) + int(stats["tokens"])
    read: dict[str, list[Artifact]] = {}
    named: dict[str, list[Artifact]] = {}
    for one in made:
        if one.stage == "ingest":
            read.setdefault(str(one.stats["source"]), []).append(one)
        if one.stage in ("extract", "ingest"):
            named.setdefault(str(one.stats["source"]), []).append(one)
    rows = [
        (
            source,
            f"{len(slices)}",
            f"{sum(int(one.stats['documents_in']) for one in slices):,}",
            f"{placed.get(source, 0):,}",
        )
        for source, slices in sorted(read.items())
    ]
    yield _table(("source", "slices", "documents read", "tokens packed"), rows)
    for source, made_of in sorted(named.items()):
        yield _files_of(source, made_of)


def _files_of(source: str, made: list[Artifact]) -> str:
    files = {
        entry["sha256"]: entry["name"] for one in made for entry in one.manifest.inputs.get("files") or ()
    }
    packages = {
        name: version
        for one in made
        for name, version in (one.manifest.inputs.get("distributions") or {}).items()
    }
    listed = [f"`{name}` (sha256 `{digest[:12]}`)" for digest, name in list(files.items())[:_FILES_LISTED]]
    listed += [f"{name} {version}" for name, version in sorted(packages.items())]
    if len(files) > _FILES_LISTED:
        listed.append(f"{len(files) - _FILES_LISTED} more, named in the manifests of `{made[0].stage}`")
    return f"**{source}**: {', '.join(listed)}" if listed else ""


def _lineage(model: Artifact, made: list[Artifact], form: Form) -> Iterator[str]:
    part = model.manifest.parts["export"]
    of = "these files" if form == Form() else "the files in the store"
    yield (
        f"Stage `{model.stage}`, key `{model.key}`, digest of {of} `{part.digest}` "
        f"(this card is not among them). `onward lineage {model.key[:12]}` names all {len(made) - 1} artifacts behind it."
    )
    provenance = model.manifest.provenance
    libraries = provenance.get("libraries", {})
    versions = [f"{name} {libraries[name]}" for name in ("torch", "transformers") if name in libraries]
    yield f"Made with Python {provenance.get('python')}, {', '.join(versions)}; code `{provenance.get('code', '')[:12]}`."


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
