"""Every family that can be trained: logits of packed documents beside those alone, and losses beside a plain loop's.

    python -m benchmarks.families [--steps 20]

A tiny model of each family with random weights (tests/support/training/families.py), in fp32 on a CPU. *Packed*: the
largest difference of a logit between a document in a row of others, as the trainer computes it, and alone in plain
transformers, beside the largest logit; documents are longer than the windows. *Loss*: the largest difference between
the trainer's losses and those of a loop in plain PyTorch over the same documents, in nats per token, over all steps.
*Rounding*: the same between that loop and itself with another attention of transformers' own (eager): how far rounding
alone leads two trainings apart. *Learned*: the trainer's loss at the first and last step. Exits with 1 where packed is
more than rounding, or the loss is further off than ten times what rounding does.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import torch
import transformers

from tasks.training.attention import RowDocuments
from tests.support.training.families import of_every_family
from tests.support.training.packed import load
from tests.support.training.plain_loop import plain_loop
from tests.support.training.world import VOCABULARY, World, make_world, run, save_model

LENGTHS = (11, 3, 1, 40, 7, 9, 3)
MOST_PACKED, MOST_LOSS, TIMES_ROUNDING = 1e-5, 1e-5, 10
SCHEDULE = {"kind": "wsd", "peak": 2e-3, "warmup_steps": 3, "decay_from": None, "decay_to": None}


def packed_against_alone(world: World, directory: Path) -> float:
    """The largest difference of a logit, beside the largest logit."""
    model = load(world, directory)
    ids = torch.randint(VOCABULARY, (sum(LENGTHS),), generator=torch.Generator().manual_seed(1))
    positions = torch.cat([torch.arange(length) for length in LENGTHS])
    plain = transformers.AutoModelForCausalLM.from_pretrained(directory).eval()
    with torch.no_grad():
        packing = RowDocuments.of(LENGTHS, torch.device("cpu"))
        packed = model.head(model.hidden(ids[None], positions[None], packing)).float()
        alone = torch.cat([plain(part[None], use_cache=False).logits[0] for part in ids.split(list(LENGTHS))])
    return float((packed - alone).abs().max() / alone.abs().max())


def losses(world: World, work: Path, steps: int) -> tuple[list[float], list[float], list[float]]:
    """The losses of the trainer, of a plain loop, and of a plain loop with eager attention."""
    run(world, work, identity__last_step=steps, identity__schedule=SCHEDULE)
    found = pq.read_table(work / "journal" / "journal.parquet")["loss"].to_pylist()
    plain, eager = (
        plain_loop(world, work, steps, attention, identity__schedule=SCHEDULE)[0]
        for attention in (None, "eager")
    )
    return found, plain, eager


def apart(some: list[float], others: list[float]) -> float:
    """The largest difference of two rows of losses."""
    return max(abs(one - other) for one, other in zip(some, others, strict=True))


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    bad = []
    print(
        f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}\n"
    )
    print(
        f"| family | packed | loss, {steps} steps | rounding | learned |\n| --- | ---: | ---: | ---: | ---: |"
    )
    with tempfile.TemporaryDirectory() as name:
        world = make_world(Path(name) / "world")
        for family, made in of_every_family().items():
            root = Path(name) / family
            packed = packed_against_alone(world, save_model(made(), root / "spread", spread=4.0))
            trained = replace(world, export=save_model(made(), root / "model"))
            found, plain, eager = losses(trained, root / "work", steps)
            loss, rounding = apart(found, plain), apart(eager, plain)
            learned = f"{found[0]:.3f} → {found[-1]:.3f}"
            print(f"| {family} | {packed:.1e} | {loss:.1e} | {rounding:.1e} | {learned} |", flush=True)
            if packed > MOST_PACKED or loss > max(MOST_LOSS, TIMES_ROUNDING * rounding):
                bad.append(family)
    if bad:
        print(f"\nmore than rounding: {', '.join(bad)}")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
