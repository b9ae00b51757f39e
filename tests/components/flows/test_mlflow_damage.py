"""One flipped byte in MLflow's database, or in an account of what it was told: said with the way out, or harmless.

Some kinds of places are tried here; all of them by `benchmarks/damage.py mlflow`.
"""

from __future__ import annotations

import shutil
import time

import pytest

from storage.store import Store
from tests.support.campaign import figures
from tests.support.campaign_mlflow import TrackingCampaign
from tests.support.made import Made

KINDS = (
    "header",
    "free",
    "alembic_version, its cells",
    "runs, its head",
    "metrics, its cells",
    "experiments, its head",
    "model_versions, its head",
    "inner and leaf pages",
)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_flipped_byte_stops_no_run_and_the_way_out_leads_to_all_of_it(made, tmp_path, monkeypatch):
    monkeypatch.setenv("ONWARD_HOME", str(tmp_path))
    store = tmp_path / "store"
    shutil.copytree(made.store.root, store, symlinks=True, ignore=shutil.ignore_patterns(".tracking"))
    mine = Made(made.home, Store(store), made.artifacts, made.models, made.report, made.items)
    (tmp_path / "mlflow").mkdir()
    seed = time.time_ns() % 10**6
    campaign = TrackingCampaign(mine, tmp_path / "mlflow", seed)
    print(f"seed {seed}")
    places = campaign.places()
    for kind in KINDS:
        campaign.strike(kind, places[kind])
    campaign.strike_account()
    campaign.without_it()
    print(figures(campaign.outcomes))
    assert len(campaign.outcomes) == len(KINDS) + 1
