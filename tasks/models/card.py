"""The card of an exported model: its origin, its training data, its scores.

It is made from manifests only, so every number is next to the key of its artifact, and the card of an older model can
be written again. The card is not part of any artifact: scores can be added later without changing the weights' digest.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from storage.artifact import Artifact
from storage.catalog import Catalog
from storage.counts import rounded_count
from tasks.corpus.tokens.begin import BOS, EOS, Begin, ends_of
from tasks.models.form import GGUF, Form
from tasks.models.licences import hub_licence
from tasks.models.source import chat_template

_FILES_LISTED = 20
"""Maximum number of files listed per source. The manifests of `ingest` list all."""

Scores = dict[tuple[str, str], Artifact]


@dataclass(frozen=True)
class Measured:
    """A perplexity of the weights beside the card, where they are not those of the store, and that of the store's."""

    source: str
    documents: int
    perplexity: float
    of_store: float


@dataclass(frozen=True)
class About:
    """What a card says that no artifact behind the model knows.

    bases: licences of the bases behind it, by their keys. chats: keys of those whose difference was added
    (`merge.instruct`). licences: of the text, by source. report: the content of a report.json that has the model.
    measured: of the rounded weights beside the card.
    """

    bases: Mapping[str, str] = field(default_factory=dict)
    chats: frozenset[str] = frozenset()
    licences: Mapping[str, str] = field(default_factory=dict)
    report: Mapping[str, Any] | None = None
    measured: Sequence[Measured] = ()


def model_card(
    catalog: Catalog, model: Artifact, form: Form | None = None, about: About | None = None
) -> str:
    """README.md of an exported model, in the hub's format.

    A pure function of the store, of the form of the files beside it, and of `about`: a card written later includes later
    measurements.
    """
    form, about = form or Form(), about or About()
    made = _made_of(catalog, model)
    segments = _segments(made)
    adapted = _adapted(segments)
    before = _start_of(adapted[0], made) if adapted else None
    base = before if before is not None and before.stage == "base" else _first_base(made, model)
    bases = [base, *(one for one in made if one.stage == "base" and one.key != base.key)]
    blocks = [
        _front_matter(bases, form, about),
        f"# {base.stats.get('architecture', 'Language model')}, {_parameters(base)} parameters",
        f"{_what(model, base, adapted, made)} {_loading(form)}",
        _weights(form, about),
        *_rounded(about),
        _chat(base, model),
        "## Scores",
        *(_of_report(model, about.report) or _scores(catalog, model, before)),
        "## Training",
        *_training(segments, made),
        "## Data",
        *_data(made, about),
        "## Licence",
        _licences(made, bases, about),
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


def _front_matter(bases: Sequence[Artifact], form: Form, about: About) -> str:
    """The YAML front matter that the hub's pages read. JSON is valid YAML.

    It has one licence only, so it names one only where that of all bases is the same.
    """
    library = "gguf" if form.format == GGUF else "transformers"
    lines = [f"library_name: {library}", "pipeline_tag: text-generation"]
    origins = (base.manifest.inputs.get("origin", {}) for base in bases)
    if hubs := [origin["hub"] for origin in origins if "hub" in origin]:
        lines.append(f"base_model: {json.dumps(hubs if len(hubs) > 1 else hubs[0])}")
    stated = {hub_licence(about.bases[one.key]) if one.key in about.bases else None for one in bases}
    if len(stated) == 1 and (licence := stated.pop()) is not None:
        lines.append(f"license: {json.dumps(licence[0])}")
        if licence[1] is not None:
            lines.append(f"license_name: {json.dumps(licence[1])}")
    return "\n".join(["---", *lines, "---"])


def _parameters(base: Artifact) -> str:
    count = int(base.stats.get("parameters", 0))
    return rounded_count(count) if count >= 1e6 else f"{count:,}"


def _first_base(made: list[Artifact], model: Artifact) -> Artifact:
    return next((one for one in made if one.stage == "base"), model)


def training_of(catalog: Catalog, model: Artifact) -> Mapping[str, Any]:
    """The configuration of the training that a model's weights are from: its own, or the last one that it was made of."""
    own = model.manifest.config
    if "precision" in own or model.stage == "base":
        return own
    segments = _segments(_made_of(catalog, model))
    return segments[-1].manifest.config if segments else own


def _what(model: Artifact, base: Artifact, adapted: list[Artifact], made: list[Artifact]) -> str:
    source = _named(base)
    if not adapted:
        return f"The base: {source}."
    seen = int(model.stats["tokens_seen"])
    trained = f"Continued pre-training of {source}: {seen:,} tokens seen, the text and the steps below."
    if model.has("trunk") and not model.has("export"):
        return (
            f"{trained} It is the trunk before its rate decays: for further training, such as fine-tuning, a "
            "better start than "
            "a model whose rate has decayed (arXiv 2603.16127); to be used as it is, the model of a budget is better."
        )
    if model.stage == "decay":
        trained += (
            " For further training, such as fine-tuning, its trunk before the decay is the better start (arXiv "
            "2603.16127): "
            f"`onward export {_start(model)} DIR`."
        )
    if model.stage != "merge":
        return trained
    value = float(model.stats["value"])
    if model.stats["kind"] == "interpolate":
        return (
            f"{trained} Its weights lie between the two: {1 - value:g} × those of the base + {value:g} × those after "
            "training, as what is between forgets less (arXiv 2109.01903)."
        )
    if model.stats["kind"] == "average":
        return (
            f"{trained} Its weights are the mean of the last {value:g} checkpoints of the trunk, in place of a "
            "decay of the "
            "rate (arXiv 2507.17634)."
        )
    chat = next((one for one in made if one.key == model.manifest.inputs["models"][1]["part"]["key"]), base)
    return (
        f"{trained} To its weights {value:g} × the difference between {_named(chat)} and the base was added, so that it "
        "answers in a chat as that model does (arXiv 2410.10739); ask it with the chat template, which is that model's."
    )


def _start(model: Artifact) -> str:
    return str(model.manifest.inputs["start"]["key"][:12])


def imported(base: Artifact) -> bool:
    """Whether a base was made elsewhere."""
    return "init" not in base.manifest.inputs.get("origin", {})


def _named(base: Artifact) -> str:
    """A base by where it is from."""
    origin = base.manifest.inputs.get("origin", {})
    if "hub" in origin:
        return f"`{origin['hub']}` at commit `{origin['commit'][:12]}`"
    if "init" in origin:
        return "a model that was initialised anew"
    return f"a local model (digest `{str(origin.get('local', ''))[:12]}`)"


def _loading(form: Form) -> str:
    if form.format == GGUF:
        return (
            f'llama.cpp runs it (`llama-cli -m {form.file} -no-cnv -p "Once"`), and Ollama '
            '(`ollama create NAME -f Modelfile`, then `ollama run NAME "Once"`).'
        )
    return "It loads with `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` on this directory."


def _weights(form: Form, about: About) -> str:
    if form == Form():
        return ""
    return (
        f"The weights here are {form.said}, made from those of the store. The scores below were measured on those of the "
        "store, as their stages say."
    )


def _rounded(about: About) -> Iterator[str]:
    """What rounding changed, if it was measured."""
    if not about.measured:
        return
    rows = [
        (
            one.source,
            f"{one.documents:,}",
            f"{one.of_store:.3f}",
            f"{one.perplexity:.3f}",
            f"{100 * (one.perplexity / one.of_store - 1):+.2f} %".replace("-", "−"),
        )
        for one in about.measured
    ]
    yield _table(
        ("held-out text", "documents", "perplexity in the store", "of the weights here", "change"), rows
    )


def _of_report(model: Artifact, report: Mapping[str, Any] | None) -> list[str]:
    """The scores as a report has them, with intervals and tests; empty if it does not have the model."""
    if report is None:
        return []
    base = str(report["models"][0]["name"])
    rows, name = report, next((one["name"] for one in report["models"] if one["key"] == model.key), None)
    if name is None and (merges := report.get("merges")):
        rows, name = merges, next((one["name"] for one in merges["points"] if one["key"] == model.key), None)
    if name is None:
        return []
    found = {one["benchmark"]: one for one in report.get("contamination", ())}
    blocks = []
    scored = [
        (
            _label(row),
            str(row.get("metric", "")),
            f"{row['questions']:,}" if "questions" in row else "",
            *_shown(row, base, name, 100, 1),
            f"{100 * row['chance']:.1f}" if row["chance"] else "",
            _in_corpus(row, found),
        )
        for row in (*rows["benchmarks"], *rows["groups"])
        if name in row["models"]
    ]
    if scored:
        before = ("before, %",) if name != base else ()
        change = ("change, points",) if name != base else ()
        head = (
            "benchmark",
            "metric",
            "questions",
            *before,
            "this model, %",
            *change,
            "chance, %",
            "in the text",
        )
        blocks.append(_table(head, scored))
        blocks.append(
            "In brackets the 95 % interval over questions; a verdict is after correction for their number. In the text: "
            "questions found in what was read, of those looked for; their documents were dropped before training unless it "
            "says kept."
        )
    texts = [
        (row["source"], f"{row['documents']:,}", *_shown(row, base, name, 1, 2))
        for row in rows["perplexity"]
        if name in row["models"]
    ]
    if texts:
        before = ("before",) if name != base else ()
        change = ("change, %",) if name != base else ()
        blocks.append(_table(("perplexity on held-out", "documents", *before, "this model", *change), texts))
    return blocks


def _label(row: Mapping[str, Any]) -> str:
    return str(row["benchmark"]) if "benchmark" in row else f"mean, {row['group']}"


def _shown(row: Mapping[str, Any], base: str, name: str, scale: float, digits: int) -> tuple[str, ...]:
    """The base's value, the model's and the change, each with its interval; of the base its value alone."""

    def of(one: Mapping[str, Any], value: float, scale: float, digits: int, sign: str = "") -> str:
        text = _number(scale * value, digits, sign)
        if one.get("low") is not None and one.get("high") is not None:
            text += f" [{_number(scale * one['low'], digits)}, {_number(scale * one['high'], digits)}]"
        return text

    own = [row["models"].get(model) for model in dict.fromkeys((base, name))]
    values = [of(one, one.get("score", one.get("perplexity")), scale, digits) if one else "" for one in own]
    if name == base:
        return tuple(values)
    change = next((one for one in row["changes"] if (one["from"], one["to"]) == (base, name)), None)
    told = "" if change is None else f"{of(change, change['value'], 100, 1, '+')}: {change['verdict']}"
    return (*values, told)


def _number(value: float, digits: int, sign: str = "") -> str:
    """With the typographic minus; what rounds to zero has no sign."""
    text = format(value, f"{sign}.{digits}f")
    return text.lstrip("+-") if float(text) == 0 else text.replace("-", "−")


def _in_corpus(row: Mapping[str, Any], found: Mapping[str, Mapping[str, Any]]) -> str:
    name = str(row.get("benchmark", ""))
    one = found.get(name) or found.get(name.removesuffix("_continuation"))
    if one is None:
        return "" if "group" in row and "benchmark" not in row else "not looked for"
    kept = ", kept" if one.get("afterwards") and one["questions_found"] else ""
    return f"{one['questions_found']:,} of {one['questions'] - one['unchecked']:,}{kept}"


def _licences(made: list[Artifact], bases: Sequence[Artifact], about: About) -> str:
    """The licence of each base and of each source; what is not known is said."""
    lines = [
        f"- {'chat model' if one.key in about.chats else 'base'}, {_named(one)}: {about.bases.get(one.key, 'not stated')}"
        for one in bases
        if imported(one)
    ]
    sources = sorted({str(one.stats["source"]) for one in made if one.stage == "ingest"})
    lines += [f"- text of {source}: {about.licences.get(source, 'not stated')}" for source in sources]
    return "\n".join(lines) or "Nothing was used that has one."


def _chat(base: Artifact, model: Artifact) -> str:
    """What is to be said of a model whose base is a chat model."""
    if chat_template(base.path / "export") is None or model.stage in ("base", "merge"):
        return ""
    return (
        "The base is a chat model, and its chat template is kept here. Continued pre-training on plain text "
        "wears the chat away: "
        "try it before you rely on it."
    )


def _scores(catalog: Catalog, model: Artifact, before: Artifact | None) -> Iterator[str]:
    """The scores, with those of the model before training if both were measured in the same way."""
    own, others = measurements(catalog, model), measurements(catalog, before) if before else {}
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


def measurements(catalog: Catalog, model: Artifact) -> Scores:
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


def _data(made: list[Artifact], about: About) -> Iterator[str]:
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
    yield from _ledger(about.report)
    for source, made_of in sorted(named.items()):
        yield _files_of(source, made_of)


def _ledger(report: Mapping[str, Any] | None) -> Iterator[str]:
    """What became of the documents, stage by stage, and how often the text was read, as a report has it."""
    if report is None:
        return
    rows = []
    for one in report.get("data", {}).get("sources", ()):
        for stage in one["stages"]:
            counts = (stage.get(name) for name in ("documents_in", "documents_dropped", "documents_held_out"))
            reasons = sorted(stage.get("dropped_by_reason", {}).items(), key=lambda item: (-item[1], item[0]))
            rows.append(
                (
                    one["source"],
                    stage["stage"],
                    *("" if count is None else f"{count:,}" for count in counts),
                    ", ".join(f"{reason} {count:,}" for reason, count in reasons[:4] if count),
                )
            )
    if rows:
        yield _table(("source", "stage", "documents in", "dropped", "held out", "mostly for"), rows)
    if packing := report.get("packing"):
        read = [
            f"{one['source']} {one['epochs']:.2f} times"
            for one in packing[-1]["sources"]
            if one.get("epochs") is not None
        ]
        if read:
            yield f"The text was read: {', '.join(read)}."


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
    part = model.manifest.parts["export" if model.has("export") else "trunk"]
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
