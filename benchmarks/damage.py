"""Flips bytes in every kind of file of a small finished store, runs it again each time, and prints what became of them.

Usage: python benchmarks/damage.py HOME [SEED [ROUNDS]]     (HOME: a new directory)
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.campaign import Campaign
from tests.support.small import environment, write_config


def main() -> None:
    home = Path(sys.argv[1]).resolve()
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 0
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    home.mkdir(parents=True, exist_ok=True)
    config = write_config(home)
    command = [sys.executable, "-m", "tests.support.driver", str(config)]
    subprocess.run(command, env=environment(home), cwd=home, check=True, stdout=subprocess.DEVNULL)
    os.environ["ONWARD_HOME"] = str(home)
    os.chdir(home)
    campaign = Campaign(home, config, seed)
    for _ in range(rounds):
        for kind, paths in campaign.kinds().items():
            outcome = campaign.strike(kind, campaign.random.choice(paths))
            print(f"{outcome.what:<9} {kind:<44} {outcome.said[:120]}", flush=True)
    print(f"seed {seed}: {campaign.figures()}")


if __name__ == "__main__":
    main()
