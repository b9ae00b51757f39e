"""Flips bytes of a small finished run, runs or tells it again each time, and prints what became of them.

Usage: python benchmarks/damage.py store HOME [SEED [ROUNDS]]      every kind of file of the store
       python benchmarks/damage.py mlflow HOME [SEED [ROUNDS]]     every kind of place in MLflow's database, and accounts

HOME: a new directory. A round flips one byte of each kind. Ends with an error where bad bytes were kept, or where a
refusal did not say what to do.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.campaign import Campaign, Outcome, figures
from tests.support.campaign_mlflow import TrackingCampaign
from tests.support.made import opened
from tests.support.small import environment, write_config


def of_store(home: Path, config: Path, seed: int, rounds: int) -> Iterator[Outcome]:
    """Flips in the store's files."""
    campaign = Campaign(home, config, seed)
    for _ in range(rounds):
        for kind, paths in campaign.kinds().items():
            yield campaign.strike(kind, campaign.random.choice(paths))


def of_mlflow(home: Path, _: Path, seed: int, rounds: int) -> Iterator[Outcome]:
    """Flips in MLflow's database, and one in an account for each round."""
    os.environ["DO_NOT_TRACK"] = "true"
    directory = home / "mlflow"
    directory.mkdir()
    campaign = TrackingCampaign(opened(home, home / "store"), directory, seed)
    places = campaign.places()
    for _ in range(rounds):
        for kind, ranges in places.items():
            yield campaign.strike(kind, ranges)
        yield campaign.strike_account()
    campaign.without_it()


TARGETS = {"store": of_store, "mlflow": of_mlflow}


def main() -> None:
    target, home = TARGETS[sys.argv[1]], Path(sys.argv[2]).resolve()
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    rounds = int(sys.argv[4]) if len(sys.argv) > 4 else 1
    home.mkdir(parents=True, exist_ok=True)
    config = write_config(home)
    command = [sys.executable, "-m", "tests.support.driver", str(config)]
    subprocess.run(command, env=environment(home), cwd=home, check=True, stdout=subprocess.DEVNULL)
    os.environ["ONWARD_HOME"] = str(home)
    os.chdir(home)
    outcomes = []
    for outcome in target(home, config, seed, rounds):
        outcomes.append(outcome)
        print(f"{outcome.what:<9} {outcome.kind:<60} {outcome.said[:120]}", flush=True)
    print(f"{sys.argv[1]}, seed {seed}: {figures(outcomes)}")


if __name__ == "__main__":
    main()
