"""The card of a model that leaves: scores as the report has them, licences as the run states them, and roundings."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from flows.inspect.about import about_of
from flows.inspect.push import unstated
from storage.artifact import Artifact, Input
from storage.catalog import Catalog
from storage.draft import Draft
from storage.runs import RunRecord, write_record
from storage.settings import Settings, identity
from storage.store import Store
from storage.testing import artifact_of
from tasks.models import merge
from tasks.models.card import About, Measured, _of_report, model_card
from tasks.models.form import Form
from tasks.pages.report import report
from tests.support.base_model import import_base, small_model
from tests.support.pages.report_world import SECTION, World


def test_a_card_has_the_reports_intervals_and_the_runs_licences(tmp_path: Path) -> None:
    world = World(tmp_path)
    outcome = world.outcome()
    base = outcome.models[0].export
    made = artifact_of(report, *report.report_request(SECTION, outcome), tmp_path / "store")
    store = Store(tmp_path / "store")
    config = {
        "model": {"licence": "Apache-2.0"},
        "corpus": {"sources": [{"name": "edu", "licence": "CC-BY-4.0"}, {"name": "general"}]},
    }
    write_record(store, RunRecord("a-123456", "a", config, ((base.stage, base.key), (made.stage, made.key))))
    about = about_of(store, base)
    assert about.bases == {base.key: "Apache-2.0"} and about.licences == {"edu": "CC-BY-4.0"}
    assert about.report is not None and about.report["models"][0]["key"] == base.key
    card = model_card(Catalog(store), base, about=about)
    assert card.startswith(
        '---\nlibrary_name: transformers\npipeline_tag: text-generation\nlicense: "apache-2.0"\n---\n'
    )
    assert "| sciq | acc | 20 | 10.0 [" in card and "| 25.0 | 4 of 900 |" in card
    assert "| edu | 12 | 20.09 [" in card
    assert "- base, a local model (digest ``): Apache-2.0" in card


def test_the_adapted_model_is_set_beside_its_base(tmp_path: Path) -> None:
    world = World(tmp_path)
    outcome = world.outcome()
    made = artifact_of(report, *report.report_request(SECTION, outcome), tmp_path / "store")
    facts = json.loads((made.path / "report.json").read_bytes())
    last = next(one for one in facts["models"] if one["name"] == "20K")
    model = SimpleNamespace(key=last["key"])
    blocks = _of_report(model, facts)  # type: ignore[arg-type]
    assert (
        "| benchmark | metric | questions | before, % | this model, % | change, points | chance, % | in the text |"
        in blocks[0]
    )
    [sciq] = [line for line in blocks[0].splitlines() if line.startswith("| sciq ")]
    assert "+70.0 [" in sciq and ": improved" in sciq
    assert "−63.2 [" in blocks[2] and blocks[2].splitlines()[0].endswith(
        "| before | this model | change, % |"
    )


def test_what_rounding_changed_stands_in_the_card(tmp_path: Path) -> None:
    world = World(tmp_path)
    base = world.outcome().models[0].export
    about = About(measured=[Measured("edu", 12, 13.15, 13.1), Measured("plain", 9, 20.0, 20.2)])
    card = model_card(Catalog(Store(tmp_path / "store")), base, Form("gguf", "q4_0"), about)
    assert "| edu | 12 | 13.100 | 13.150 | +0.38 % |" in card and "−0.99 %" in card
    assert "not stated" in card and "license:" not in card


class Segment(Settings):
    """Of a training what a card reads."""

    kind: str = identity("adapt", description="as the stage has it")
    first_step: int = identity(0, description="as the stage has it")
    last_step: int = identity(4, description="as the stage has it")
    sequences_per_step: int = identity(2, description="as the stage has it")
    sequence_length: int = identity(8, description="as the stage has it")
    schedule: dict[str, Any] = identity(
        default_factory=lambda: {"kind": "wsd", "peak": 0.1}, description="as the stage has it"
    )
    precision: str = identity("fp32", description="as the stage has it")
    optimizer: dict[str, Any] = identity(default_factory=dict, description="as the stage has it")


@dataclass(frozen=True)
class Begun:
    start: Input


def trained(config: Segment, inputs: Begun, draft: Draft) -> dict[str, Any]:
    export = draft.path / "export"
    export.mkdir()
    for path in inputs.start.paths:
        (export / path.name).write_bytes(path.read_bytes())
    draft.part("export", "export")
    return {"tokens": 64, "tokens_seen": 64}


def run_with_chat_model(home: Path) -> tuple[Artifact, Artifact, Artifact]:
    """A base, its chat model, and what was made of the two: as a run leaves them in `home`/store."""
    small_model(home / "base")
    small_model(home / "chat", rope_theta=20_000.0)
    base, chat = (import_base(home / name, home / "store") for name in ("base", "chat"))
    train = SimpleNamespace(STAGE="train", VERSION=1, run=trained)
    adapted = artifact_of(train, Segment(), Begun(base.part("export")), home / "store")
    models = tuple(merge.Source(one.part("export")) for one in (base, chat, adapted))
    config = merge.MergeConfig(kind="instruct", value=1)
    return base, chat, artifact_of(merge, config, merge.MergeInputs(models), home / "store")


def test_each_base_has_its_own_licence(tmp_path: Path) -> None:
    base, chat, merged = run_with_chat_model(tmp_path)
    store = Store(tmp_path / "store")
    catalog = Catalog(store)
    artifacts = tuple((row["stage"], row["key"]) for row in catalog.upstream(merged.key))
    assert {(one.stage, one.key) for one in (base, chat)} < set(artifacts)

    def told(model: Artifact, merge: dict[str, str]) -> tuple[str, str, str | None]:
        config = {"model": {"licence": "Apache 2.0"}, "merge": merge}
        write_record(store, RunRecord("a-123456", "a", config, artifacts))
        about = about_of(store, model)
        behind = [store.lookup(row["stage"], row["key"]) for row in catalog.upstream(model.key)]
        head, _, rest = model_card(catalog, model, about=about).removeprefix("---\n").partition("---\n")
        licences = rest.partition("## Licence\n\n")[2].partition("\n\n")[0]
        return head, licences, unstated(about, [one for one in behind if one is not None])

    def line(what: str, one: Artifact, licence: str) -> str:
        return f"- {what}, a local model (digest `{one.manifest.inputs['origin']['local'][:12]}`): {licence}"

    of_base, of_chat = line("base", base, "Apache 2.0"), line("chat model", chat, "not stated")
    head, licences, warning = told(merged, {})
    assert licences.splitlines() == [of_base, of_chat] and "license" not in head
    assert warning is not None and "no licence for: merge.licence." in warning
    head, licences, warning = told(chat, {})
    assert licences == of_chat and "license" not in head and warning is not None
    head, licences, warning = told(base, {})
    assert licences == of_base and 'license: "apache-2.0"\n' in head and warning is None

    head, licences, warning = told(merged, {"licence": "Llama 9"})
    assert licences.splitlines() == [of_base, line("chat model", chat, "Llama 9")]
    assert "license" not in head and warning is None
    head, _, _ = told(chat, {"licence": "Llama 9"})
    assert head.endswith('license: "other"\nlicense_name: "llama-9"\n')
    head, _, _ = told(merged, {"licence": "apache-2.0"})
    assert 'license: "apache-2.0"\n' in head
