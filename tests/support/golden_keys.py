"""The golden keys: the key, and what it is made of, of every stage of the shipped configurations over fixed inputs.

The requests are the real ones: the DAG asks `Requests` for each, and gets an artifact with fixed digests and statistics
instead of one that was made. So no bytes are needed, and a key that changes does not change those after it: the
configuration, the stage and the field at fault are named. Nothing here depends on this machine, on the network or on
what is installed.

`tests/contracts/golden_keys.json` holds what version 0.1.0 made of them. A change in it means that users make these
artifacts again. To see what differs, and to write the file anew where that is meant (docs/upgrades.md):

    python -m tests.support.golden_keys            # show the differences; exit 1 where there are any
    python -m tests.support.golden_keys --renew    # write the file
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_type_hints
from unittest import mock

from flows.config import RunConfig, load_config
from flows.dag.pretrain import adapt
from flows.dag.requests import Requests
from flows.runs.names import run_id
from storage.artifact import Artifact
from storage.keys import canonical_json, difference, stage_key
from storage.manifest import FileEntry, Manifest, Part
from storage.settings import Section, before_of, identity_of, is_section, role_of, since_of, types_of
from storage.store import Request, Store
from tasks.corpus.reading import python_docs
from tasks.corpus.reading.hub import HubFile, remembered_in
from tasks.evaluation.catalog import BENCHMARKS
from tasks.stages import TABLE

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "tests" / "contracts" / "golden_keys.json"
SHIPPED = ("demo", "edu-125m", "edu-pythia-160m", "edu-smollm2-135m")
OTHER = "edu-125m with other options"
"""So that every stage, and the sections that the shipped configurations leave out, are guarded too."""
OTHER_OPTIONS = (
    "corpus.sources=[{name: educational, role: domain, weight: 0.9, files: ['data/edu/*'], text_field: body, "
    "order: as_given}, {name: general, role: replay, weight: 0.1, files: ['data/general/*']}]",
    "corpus.dedup={exact: false, minhash: null, paragraphs: {min_characters: 40}}",
    "corpus.filter={language: de, gopher: false, c4_end_punctuation: true, min_edu_score: 3, pii: 'off', "
    "thresholds: {c4_curly_brackets: null}}",
    "corpus.decontaminate.benchmarks=[arc_easy]",
    "training.schedule={kind: rewarm, warmup_tokens: 8M, final_fraction: 0.2}",
    "training.optimizer={states: 8bit, pull_to_base: 0.1, stochastic_rounding: true}",
    "training.precision=bf16_weights",
    "training.average={checkpoints: 3, every_tokens: 8M}",
    "training.keep_every_tokens=200M",
    "training.seed=5",
    "model.dropout=0.1",
    "evaluation={domain: [arc_easy, sciq], general: [piqa], limit: 100, checkpoints: true, "
    "prompts: [Once], own: [{name: mine, file: data/mine.jsonl}]}",
    "merge={interpolate: [0.5], average: 2}",
)
COMMIT = "c0ffee" * 6 + "c0ff"
HARNESS = "0.4.13"
Golden = dict[str, Any]


def golden_keys() -> Golden:
    """Of the code as it is: `keys` by configuration and artifact, `runs` with the run ids, and which fields there are:
    `fields` that are in every key, and `later` ones with the value that means "as before"."""
    found: Golden = {"fields": key_fields(), "later": later_fields(), "runs": {}, "keys": {}}
    chosen: list[tuple[str, str, tuple[str, ...]]] = [(name, name, ()) for name in SHIPPED]
    for name, shipped, overrides in [*chosen, (OTHER, "edu-125m", OTHER_OPTIONS)]:
        with world() as home:
            run = load_config(ROOT / "configs" / f"{shipped}.yaml", [*overrides, "store=store"])
            found["runs"][name] = {"id": run_id(run), "identity": _plain(identity_of(run))}
            found["keys"][name] = keys_of(run, home)
    return found


def keys_of(run: RunConfig, home: Path) -> dict[str, Any]:
    """Of each artifact of a run, by its label (`train · round 1 · 400M`), the key and its payload."""
    return {label: {"key": request.key, **_payload(request)} for label, request in requests_of(run, home)}


def requests_of(run: RunConfig, home: Path) -> list[tuple[str, Request]]:
    """Each artifact of a run with its label, as the DAG asks for it over fixed inputs."""
    store = Store(run.store_path)
    remember_hub(run, store.root)
    build = Fixed(run, home / "made")
    adapt(Requests(run, store, warn=lambda message: None), build)
    return build.requests


def key_fields() -> dict[str, list[str]]:
    """What stands in every key, by stage: `config.…` for the identity fields of its configuration, `inputs.…`.

    Fields that came after 0.1.0 say `since`, and are not among them.

    `run` is the whole configuration: what a run's id is made of.
    """
    found = {"run": [f"config.{name}" for name in sorted(identity_fields(RunConfig))]}
    for stage in TABLE:
        module = importlib.import_module(stage.module)
        hints = get_type_hints(module.run)
        asked = {f"config.{one}" for one in identity_fields(hints["config"])}
        for one in fields(hints["inputs"]):
            if one.metadata.get("in_key", True) and "since" not in one.metadata:
                asked.add(f"inputs.{one.name}")
        found[module.STAGE] = sorted(asked)
    return dict(sorted(found.items()))


def later_fields() -> dict[str, Any]:
    """The fields that came after 0.1.0, by stage, with the value at which each is in no key."""
    found: dict[str, Any] = {"run": dict(_later(RunConfig))}
    for stage in TABLE:
        module = importlib.import_module(stage.module)
        hints = get_type_hints(module.run)
        found[module.STAGE] = dict(_later(hints["config"]))
        for one in fields(hints["inputs"]):
            if "since" in one.metadata:
                default = one.default if one.default is not MISSING else one.default_factory()
                found[module.STAGE][f"inputs.{one.name}"] = default
    return {stage: _plain(entry) for stage, entry in sorted(found.items()) if entry}


def _later(model: type[Section], prefix: str = "config.") -> Iterator[tuple[str, Any]]:
    for name, kind in types_of(model).items():
        if role_of(model, name) != "identity":
            continue
        if since_of(model, name) is not None:
            yield prefix + name, before_of(model, name)
        for below in _sections(kind):
            yield from _later(below, f"{prefix}{name}.")


def identity_fields(model: type[Section]) -> Iterator[str]:
    """Dotted names of the identity fields of a section and of those below it, without those that came later."""
    for name, kind in types_of(model).items():
        if role_of(model, name) != "identity" or since_of(model, name) is not None:
            continue
        yield name
        for below in _sections(kind):
            yield from (f"{name}.{one}" for one in identity_fields(below))


def _sections(annotation: Any) -> Iterator[type[Section]]:
    if is_section(annotation):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _sections(argument)


def _payload(request: Request) -> dict[str, Any]:
    payload: dict[str, Any] = _plain(request.identity)
    assert stage_key(**payload) == request.key
    return payload


def _plain(value: Any) -> Any:
    """As JSON gives it back: tuples are lists."""
    return json.loads(canonical_json(value))


# ---- fixed inputs ---------------------------------------------------------------------------------------------------


@contextmanager
def world() -> Iterator[Path]:
    """A home with the files that the shipped configurations name, and fixed versions of what is installed."""
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory).resolve()
        for folder in ("edu", "general"):
            for number in range(4):
                _write(home / "data" / folder / f"{number}.jsonl", f'{{"text": "{folder} {number}"}}\n')
        _write(
            home / "data" / "mine.jsonl", '{"question": "Is it?", "choices": ["no", "yes"], "answer": 1}\n'
        )
        for benchmark in BENCHMARKS.values():
            for place in ("data/benchmarks", "store/.cache/benchmarks"):
                rows = f'{{"question": "a question of {benchmark.files}"}}\n'
                _write(home / place / benchmark.files / f"{benchmark.split}.jsonl", rows)
        with (
            mock.patch.dict(os.environ, {"ONWARD_HOME": str(home)}),
            mock.patch.object(python_docs, "groups", _groups),
            mock.patch.object(python_docs, "python_version", lambda: "3.12.0"),
        ):
            yield home


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _groups(kind: str) -> dict[str, python_docs.Group]:
    name = "torch" if kind == "domain" else "python"
    return {
        f"{name}/{number:03d}": python_docs.Group(name, "2.0.0", Path("/"), (f"{number}.py",), 1_000_000)
        for number in range(4)
    }


def remember_hub(run: RunConfig, store: Path) -> None:
    """What the hub would tell of the models and datasets that a configuration names."""
    remembered = remembered_in(store)
    if isinstance(run.model.base, str):
        remembered.remember(COMMIT, "commit", "model", run.model.base, run.model.revision)
    for hub in (source.hub for source in run.corpus.sources if source.hub):
        remembered.remember(COMMIT, "commit", "dataset", hub.dataset, hub.revision)
        files = [
            HubFile(f"sample/{number:03d}.parquet", 2_000_000_000, hashlib.sha256(b"%d" % number).hexdigest())
            for number in range(3)
        ]
        answer = [vars(file) for file in files]
        remembered.remember(answer, "files", hub.dataset, hub.name, hub.split, COMMIT)
        for file in files:
            survey = {"kind": "parquet", "estimates": [200_000_000] * 4}
            remembered.remember(survey, "survey", hub.dataset, COMMIT, file.path, "text")


TOKENIZER = {"model": {"type": "BPE", "vocab": {"<|endoftext|>": 0}, "merges": []}, "added_tokens": []}
_PARTS = {
    "ingest": ("documents", "dropped", "cursor"),
    "dedup": ("documents", "dropped", "signatures"),
    "filter": ("documents", "dropped"),
    "decontaminate": ("documents", "dropped", "hits", "known"),
    "tokenize": ("tokens",),
    "tokenizer": ("tokenizer",),
    "base": ("export", "tokenizer"),
    "pack": ("manifest", "state"),
    "train": ("trunk", "journal"),
    "decay": ("export", "journal"),
    "checkpoint": ("export",),
    "merge": ("export",),
    "evaluate": ("scores", "questions"),
    "perplexity": ("scores", "documents"),
    "samples": ("samples",),
    "questions": ("questions",),
    "contamination": ("hits",),
    "data": ("page",),
    "report": ("report",),
}


@dataclass
class Fixed:
    """Stands for all that makes artifacts: answers each request by an artifact whose digests are its label's."""

    run: RunConfig
    directory: Path
    requests: list[tuple[str, Request]] = field(default_factory=list)
    _labels: dict[str, int] = field(default_factory=dict)

    def __call__(
        self, request: Request, *, slice: int | None = None, round: int | None = None, item: str | None = None
    ) -> Artifact:
        """The artifact; what is asked for is kept in `requests`."""
        if getattr(request.inputs, "harness", None) is not None:
            request = replace(request, inputs=replace(request.inputs, harness=HARNESS))
        words = [f"slice {slice}" if slice else "", f"round {round}" if round is not None else "", item or ""]
        label = " · ".join([request.stage, *(word for word in words if word)])
        self._labels[label] = self._labels.get(label, 0) + 1
        if self._labels[label] > 1:  # a checkpoint of the way, measured as the round's model is
            label += f" · {self._labels[label]}"
        self.requests.append((label, request))
        stats = self._stats(request)
        manifest = Manifest(
            request.stage, 0, f"key of {label}", {}, {}, self._parts(request, label, stats), stats=stats
        )
        return Artifact(self.directory / label, manifest)

    def _parts(self, request: Request, label: str, stats: Mapping[str, Any]) -> dict[str, Part]:
        names = {name: (f"{name}.file",) for name in _PARTS[request.stage]}
        if request.stage == "ingest":
            self._write_cursor(request, label)
            names["cursor"] = ("cursor.json",)
        if "tokenizer" in names:
            names["tokenizer"] = ("tokenizer.json", "tokenizer_config.json")
            _write(self.directory / label / "tokenizer.json", json.dumps(TOKENIZER))
        if stats.get("documents_held_out"):
            names["holdout"] = ("holdout.parquet",)
        if request.stage == "train" and request.config.kind in ("pretrain", "rewarm"):
            names["export"] = ("export/model.safetensors",)
        if request.stage == "train" and (every := request.config.keep_every_tokens):
            begun = stats["tokens_seen"] - stats["tokens"]
            places = range(every * (begun // every + 1), stats["tokens_seen"] + 1, every)
            names["kept"] = tuple(f"kept/tokens-{tokens:015d}/model.safetensors" for tokens in places)
        return {
            name: Part(f"{name} of {label}", tuple(FileEntry(path, 1, "") for path in files))
            for name, files in names.items()
        }

    def _write_cursor(self, request: Request, label: str) -> None:
        """As ingest leaves it, one unit further than the slice before: an estimate may have been too low by much."""
        inputs = request.inputs
        sha256 = {file["name"]: {"sha256": file["sha256"]} for file in inputs.files}
        files = [{**entry, **sha256.get(entry["name"], {})} for entry in inputs.reading["files"]]
        unit = inputs.reading["begin"]["unit"] + 1
        cursor = {
            "slice": 1,
            "exhausted": False,
            "position": {"unit": unit, "row": 0, "offset": 0, "bytes": 0},
            "files": files,
            **({"hub": inputs.hub} if inputs.hub else {}),
        }
        _write(self.directory / label / "cursor.json", json.dumps(cursor))

    def _stats(self, request: Request) -> dict[str, Any]:
        config, total = request.config, self.run.training.token_budgets[-1]
        match request.stage:
            case "ingest":
                return {"source": config.name, "documents_in": 100, "documents_out": 99, "exhausted": False}
            case "dedup" | "filter":
                return {"documents_in": 99, "documents_out": 98}
            case "decontaminate":
                held = 7 if request.inputs.first_of_source else 0
                return {"documents_in": 98, "documents_out": 90, "documents_held_out": held}
            case "tokenize":
                return {"documents_in": 90, "documents_out": 90, "tokens": total // 2}
            case "pack":
                length = config.packing.sequence_length
                weights = sum(source.weight for source in config.sources)
                shares = {s.name: int(config.sequences * length * s.weight / weights) for s in config.sources}
                taken = {name: {"tokens": tokens} for name, tokens in shares.items()}
                return {
                    "first_sequence": config.first_sequence,
                    "sequences": config.sequences,
                    "sources": taken,
                }
            case "train" | "decay":
                step = config.sequences_per_step * config.sequence_length
                return {
                    "tokens": (config.last_step - config.first_step) * step,
                    "tokens_seen": config.last_step * step,
                }
            case "merge":
                return {"kind": config.kind, "value": config.value, "tokens_seen": total, "parameters": 1}
            case "evaluate":
                return {"metrics": {"acc": 0.5}}
            case "perplexity":
                return {"perplexity": 20.0}
        return {}


# ---- comparing and writing ------------------------------------------------------------------------------------------


def changes(before: Golden, after: Golden) -> list[str]:
    """A line for each field in which keys differ: the configuration, the artifact, the field, before → after."""
    lines = []
    for name in [*before["keys"], *(name for name in after["keys"] if name not in before["keys"])]:
        one, other = before["keys"].get(name, {}), after["keys"].get(name, {})
        for label in [*one, *(label for label in other if label not in one)]:
            if label not in other or label not in one:
                lines.append(f"{name}: {label}: {'is new' if label in other else 'is asked for no longer'}")
            else:
                lines += _lines(f"{name}: {label}", one[label], other[label])
    for name in {**before["runs"], **after["runs"]}:
        lines += _lines(f"{name}: the run's id", before["runs"].get(name), after["runs"].get(name))
    return lines


def _lines(where: str, before: Any, after: Any) -> list[str]:
    found = difference(before, after)
    fields_ = [one for one in found if one.path not in ("key", "id")]
    return [f"{where}: {one}" for one in fields_ or found]


def read() -> Golden:
    """The committed file."""
    return dict(json.loads(FILE.read_text(encoding="utf-8")))


def write(golden: Golden) -> None:
    """An artifact on a line, so that a difference of the file shows which."""
    lines = ["{"]
    for number, (section, entries) in enumerate(golden.items()):
        lines.append(f' "{section}": {{')
        for name, entry in entries.items():
            last = "" if name == list(entries)[-1] else ","
            if section == "keys":
                rows = [
                    f"   {json.dumps(label, ensure_ascii=False)}: {_line(one)}"
                    for label, one in entry.items()
                ]
                lines += [f"  {json.dumps(name)}: {{", ",\n".join(rows), f"  }}{last}"]
            else:
                lines.append(f"  {json.dumps(name)}: {_line(entry)}{last}")
        lines.append(" }" + ("" if number == len(golden) - 1 else ","))
    FILE.write_text("\n".join([*lines, "}"]) + "\n", encoding="utf-8")
    assert read() == golden


def _line(entry: Any) -> str:
    return json.dumps(entry, sort_keys=True, ensure_ascii=False)


def main() -> None:
    """Show what differs from the committed file (exit 1), or write it anew."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--renew", action="store_true", help="write the file as the code is")
    renew = parser.parse_args().renew
    now = golden_keys()
    found = changes(read(), now) if FILE.exists() else ["there is no file yet"]
    sys.stdout.write("".join(f"{line}\n" for line in found))
    if renew:
        write(now)
    elif found:
        sys.exit(1)


if __name__ == "__main__":
    main()
