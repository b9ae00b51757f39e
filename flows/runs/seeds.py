"""`onward run --seeds N`: one configuration with N training seeds, and a page of their combined results.

The first run is the configuration itself. The others differ from it only in `training.seed`: the order of sequences,
dropout, a new model's initial weights. Reading, holdouts and questions do not depend on it and are found in the store.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from flows.config import RunConfig
from storage.store import Store
from tasks.pages.html import html_of
from tasks.pages.markdown import markdown_of
from tasks.pages.report.cost import results_in
from tasks.pages.report.seeds import SeedsFacts, seeds_blocks, seeds_facts


def seeds_of(run: RunConfig, count: int) -> list[int]:
    """The training seeds: the configuration's own and the following ones."""
    first = run.seed if run.training.seed is None else run.training.seed
    return list(range(first, first + count))


def override_of(run: RunConfig, seed: int) -> list[str]:
    """The overrides for this seed; empty for the configuration's own."""
    return [] if seed == seeds_of(run, 1)[0] else [f"training.seed={seed}"]


def summarise(run: RunConfig, run_id: str, reports: Mapping[int, str]) -> tuple[Path, SeedsFacts]:
    """Write seeds.md, seeds.html and seeds.json below the store's runs/. Returns their directory and the facts.

    `reports` are the reports' paths relative to the store, by seed.
    """
    store = Store(run.store_path)
    facts = seeds_facts({seed: results_in(store.root / path) for seed, path in reports.items()})
    blocks = seeds_blocks(facts, run.name)
    directory = store.root / "runs" / f"seeds-{run.name}-{run_id}-{len(reports)}"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "seeds.md").write_text(markdown_of(blocks), encoding="utf-8")
    (directory / "seeds.html").write_text(html_of(blocks, directory), encoding="utf-8")
    (directory / "seeds.json").write_text(json.dumps(facts.to_json(), indent=1) + "\n", encoding="utf-8")
    return directory, facts
