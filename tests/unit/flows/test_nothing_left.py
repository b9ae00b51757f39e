"""A source of which nothing is left: the message says where its rows went, and the page about the data is made."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from flows.config import CorpusConfig, RunConfig
from flows.dag.pretrain import adapt
from flows.dag.requests import Requests
from flows.dag.slices import NothingLeft, SliceReader
from flows.dag.state import Outcome
from flows.runs.names import run_id
from flows.ui.console import counts
from storage.artifact import Artifact
from storage.errors import ConfigError
from storage.settings import identity_of
from storage.store import Making, Request, Store

PROSE = "The cart with number {n} was driven to the mill and back, and nobody had seen it on the road since then. "


def run_of(home: Path, shared_data: Path, texts: list[str], **corpus: Any) -> RunConfig:
    rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (home / "notes.jsonl").write_text(rows)
    source = {"name": "notes", "role": "domain", "weight": 1, "files": [str(home / "notes.jsonl")]}
    return RunConfig.model_validate(
        {
            "name": "nothing",
            "store": str(home / "store"),
            "corpus": {"sources": [source], "slice_bytes": "1M", "holdout_fraction": 0, **corpus},
            "model": {"base": str(shared_data / "models" / "stories260K-hf")},
            "packing": {"sequence_length": 64, "window_tokens": 4096},
            "training": {"token_budgets": ["4K"], "batch_tokens": 256, "learning_rate": 1e-3},
        }
    )


def failed(run: RunConfig) -> tuple[str, Outcome, dict[str, Artifact]]:
    """The message, the results, and the artifacts by stage."""
    store, outcome, made = Store(run.store_path), Outcome(), dict[str, Artifact]()

    def build(request: Request, **_: Any) -> Artifact:
        made[request.stage] = store.ensure(request, Making()).artifact
        return made[request.stage]

    with pytest.raises(NothingLeft) as failure:
        adapt(Requests(run, store, warn=print), build, outcome=outcome)
    return str(failure.value), outcome, made


OPEN = {"language": "any", "gopher": False, "c4": False, "fineweb": False, "pii": "off"}


def test_where_all_is_filtered_the_commonest_reasons_and_the_page(tmp_path: Path, shared_data: Path) -> None:
    texts = [f"too few words {n}" for n in range(20)] + [f"{n} {{ " + PROSE.format(n=n) * 3 for n in range(5)]
    message, outcome, made = failed(run_of(tmp_path, shared_data, texts, filter={"language": "any"}))
    reasons = made["filter"].stats["dropped_by_reason"]
    assert sum(reasons.values()) == 25
    for reason, count in sorted(reasons.items(), key=lambda entry: -entry[1])[:3]:
        assert f"{reason} {count}" in message
        assert f"{reason} {count}" in counts(made["filter"].stats)
    assert (
        "Of its 25 rows: filter dropped 25 (" in message
        and "To keep more, loosen corpus.filter (corpus.filter.thresholds: {" in message
    )
    assert outcome.data is not None and outcome.data.stats["left"] == 0
    page = next(path for path in outcome.data.part("page").paths if path.name == "data.md").read_text()
    assert "Of 25 documents that were read" in page and "0 (0 %) are left" in page


def test_where_all_is_held_out_it_says_so(tmp_path: Path, shared_data: Path) -> None:
    texts = [PROSE.format(n=0) * 3]
    message, outcome, _ = failed(run_of(tmp_path, shared_data, texts, filter=OPEN, holdout_fraction=0.49))
    assert "Of its 1 rows: 1 are held out. To keep more, lower corpus.holdout_fraction" in message
    assert outcome.data is not None


def tried(run: RunConfig) -> tuple[list[str], list[str], ConfigError | None]:
    """Warnings, the stages that were made up to packing, and the refusal."""
    store, said, made = Store(run.store_path), list[str](), list[str]()

    def build(request: Request, **_: Any) -> Artifact:
        made.append(request.stage)
        return store.ensure(request, Making()).artifact

    try:
        adapt(Requests(run, store, warn=said.append), build, until="pack")
    except ConfigError as error:
        return said, made, error
    return said, made, None


@pytest.mark.parametrize(
    ("limits", "passed"),
    [
        ({}, None),
        ({"max_epochs": 100}, "corpus.max_epochs 100"),
        ({"max_epochs": 1000}, None),
        ({"max_epochs": 100, "of_source": 1000}, None),
        ({"max_epochs": 1000, "of_source": 2}, "max_epochs of source notes 2"),
    ],
)
def test_a_note_that_would_be_read_hundreds_of_times_is_told_or_refused_before_anything_is_packed(
    tmp_path: Path, shared_data: Path, limits: dict[str, float], passed: str | None
) -> None:
    """At the first budget, because of the last one. No limit is in a key."""
    run = run_of(tmp_path, shared_data, [PROSE.format(n=0) * 3], filter=OPEN)
    source = run.corpus.sources[0].model_copy(update={"max_epochs": limits.pop("of_source", None)})
    corpus = run.corpus.model_copy(update={"sources": (source,), **limits})
    training = run.training.model_copy(update={"token_budgets": (256, 51_200)})
    plain = run.model_copy(update={"training": training})
    limited = plain.model_copy(update={"corpus": corpus})
    said, made, refusal = tried(limited)
    lines = [line for line in said if line.startswith("corpus.sources: notes has about")]
    if passed is None:
        assert refusal is None and made.count("pack") == 2
        assert len(set(lines)) == 1 and "Four readings are nearly as good" in lines[0]
    else:
        assert refusal is not None and "pack" not in made and not lines
        assert f"more than {passed} allows" in str(refusal)
    assert identity_of(limited) == identity_of(plain) and run_id(limited) == run_id(plain)


def held_out(run: RunConfig) -> tuple[int, str]:
    """Documents of the source that are held out, and what is said of it."""
    store, said = Store(run.store_path), list[str]()

    def build(request: Request, **_: Any) -> Artifact:
        return store.ensure(request, Making()).artifact

    reader = SliceReader(
        Requests(run, store, warn=said.append), build, tokenizer=lambda _: pytest.fail("none is asked for")
    )
    reader.all("decontaminate", None)
    said.clear()
    held = reader.holdouts(reader.slices)
    return held["notes"].stats["documents_held_out"] if held else 0, "".join(said)


@pytest.mark.parametrize("fraction", [0.01, 0.1])
def test_who_holds_out_as_much_as_the_warning_says_is_not_warned_again(
    tmp_path: Path, shared_data: Path, fraction: float
) -> None:
    texts = [PROSE.format(n=n) * 3 + f"It is number {n * 7919} of them." for n in range(90)]
    near = {"minhash": None}
    run = run_of(tmp_path, shared_data, texts, filter=OPEN, dedup=near, holdout_fraction=fraction)
    count, said = held_out(run)
    assert count < 20 and said.endswith("or give it more documents")
    advised = re.search(r"; raise corpus\.holdout_fraction to ([0-9.]+), or", said)
    assert advised is not None, said
    again = run_of(tmp_path, shared_data, texts, filter=OPEN, dedup=near, holdout_fraction=float(advised[1]))
    count, said = held_out(again)
    assert count >= 20 and said == ""


def test_a_first_slice_of_few_documents_is_said_to_be_too_small(tmp_path: Path, shared_data: Path) -> None:
    """No share of it is enough; of a source that has no more, neither is a larger slice."""
    texts = [PROSE.format(n=n) * 3 + f"It is number {n * 7919} of them." for n in range(90)]
    small: dict[str, Any] = {"filter": OPEN, "dedup": {"minhash": None}, "holdout_fraction": 0.3}
    count, said = held_out(run_of(tmp_path, shared_data, texts, **small, slice_bytes="5K"))
    assert 0 < count < 20 and said.endswith(
        "; raise corpus.slice_bytes, as they are of its first slice alone"
    )
    count, said = held_out(run_of(tmp_path, shared_data, texts, **small, slice_bytes="1M"))
    assert count >= 20 and said == ""
    count, said = held_out(run_of(tmp_path, shared_data, texts[:12], **small))
    assert 0 < count < 20 and said.endswith("; give it more documents")


def test_a_line_gives_reasons_only_where_nearly_nothing_is_left() -> None:
    stats = {"documents_in": 30, "documents_out": 3, "dropped_by_reason": {"a": 20, "b": 4, "c": 2, "d": 1}}
    assert counts(stats) == "30 → 3 documents (a 20, b 4, c 2 and 1 more reason)"
    assert counts({**stats, "documents_out": 4}) == "30 → 4 documents"
    assert counts({"documents_in": 0, "documents_out": 0, "dropped_by_reason": {}}) == "0 → 0 documents"


def test_a_source_of_weight_zero_is_measured_and_not_trained_on(tmp_path: Path, shared_data: Path) -> None:
    """One slice of it is read, its held-out texts are kept out of training, and no sequence is of it."""
    texts = [PROSE.format(n=n) * 3 + f"It is number {n * 7919} of them." for n in range(60)]
    other = [PROSE.format(n=n) * 3 + f"But {n * 104_729} was another." for n in range(900, 960)]
    near: dict[str, Any] = {
        "filter": OPEN,
        "dedup": {"exact": False, "minhash": None},
        "holdout_fraction": 0.2,
    }
    run = run_of(tmp_path, shared_data, [*texts, *other], **near, slice_bytes="12K")
    (tmp_path / "other.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in other))
    first = run.corpus.sources[0].model_copy(update={"order": "as_given"})
    files = (str(tmp_path / "other.jsonl"),)
    with pytest.raises(ValidationError, match="one source at least needs a weight above 0"):
        CorpusConfig(sources=(first.model_copy(update={"weight": 0.0}),))
    measured = first.model_copy(update={"name": "other", "role": "replay", "weight": 0.0, "files": files})
    corpus = run.corpus.model_copy(update={"sources": (first, measured)})
    run = run.model_copy(update={"corpus": corpus})
    store, packed = Store(run.store_path), list[Artifact]()

    def build(request: Request, **_: Any) -> Artifact:
        made = store.ensure(request, Making()).artifact
        if request.stage == "pack":
            packed.append(made)
        return made

    reader = SliceReader(
        Requests(run, store, warn=print), build, tokenizer=lambda _: pytest.fail("none is asked for")
    )
    reader.all("decontaminate", None)
    assert [one.source for one in reader.slices].count("other") == 1 and reader.slices[1].source == "other"
    assert set(reader.holdouts(reader.slices)) == {"notes", "other"}
    lost = sum(
        one.artifacts["decontaminate"].stats["dropped_by_reason"].get("held_out_overlap", 0)
        for one in reader.slices[2:]
    )
    assert lost  # the same texts come later in `notes`
    adapt(Requests(run, store, warn=print), build, until="pack", outcome=Outcome())
    assert len(packed) == 1
    tokens = {name: entry["tokens"] for name, entry in packed[0].stats["sources"].items()}
    assert tokens["notes"] > 3000 and tokens["other"] == 0


def of_three(home: Path, shared_data: Path, decay_weight: float | None) -> RunConfig:
    """Two sources that are trained on, and one for branches alone, where it has a decay_weight."""
    run = run_of(home, shared_data, [], filter=OPEN, slice_bytes="2K")
    sources = []
    for number, (name, weight) in enumerate({"a": 0.55, "b": 0.45, "end": 0.0}.items()):
        texts = [PROSE.format(n=n) * 3 + f"It is {number} and {n * 7919}." for n in range(60)]
        (home / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        more = {"files": (str(home / f"{name}.jsonl"),), "name": name, "weight": weight}
        more["decay_weight"] = decay_weight if name == "end" else None
        sources.append(run.corpus.sources[0].model_copy(update=more))
    training = run.training.model_copy(update={"token_budgets": (2_048, 8_192)})
    corpus = run.corpus.model_copy(update={"sources": tuple(sources)})
    return run.model_copy(update={"corpus": corpus, "training": training})


def test_what_branches_alone_take_changes_no_turn_of_the_others(tmp_path: Path, shared_data: Path) -> None:
    def order(decay_weight: float | None) -> list[str]:
        run = of_three(tmp_path, shared_data, decay_weight)
        store = Store(run.store_path)

        def build(request: Request, **_: Any) -> Artifact:
            return store.ensure(request, Making()).artifact

        reader = SliceReader(Requests(run, store, warn=print), build, tokenizer=lambda _: pytest.fail("none"))
        reader.all("ingest", None)
        return [one.source for one in reader.slices]

    without, beside = order(None), order(1.0)
    assert without.count("end") == 1 and len(set(without)) == 3
    assert beside[: len(without)] == without and set(beside[len(without) :]) == {"end"}


def test_up_to_packing_the_same_slices_are_read_as_by_the_whole_run(
    tmp_path: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two budgets with a mixture of their own at the end: the second round reads on behind what the first branch read."""
    run = of_three(tmp_path, shared_data, 1.0)
    store = Store(run.store_path)

    def read(until: str) -> list[tuple[str, str]]:
        def build(request: Request, **_: Any) -> Artifact:
            return store.ensure(request, Making()).artifact

        outcome = adapt(Requests(run, store, warn=print), build, until=until, outcome=Outcome())
        return [(one.source, one.artifacts["tokenize"].key) for one in outcome.slices]

    monkeypatch.setattr("flows.dag.pretrain._train", lambda ask, build, line, *rest: (line, None))
    assert read("pack") == read("train")
    assert len({source for source, _ in read("pack")}) == 3
