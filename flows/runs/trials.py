"""`onward tune`: a grid of short trials, each an ordinary run of a first budget, and the page of all of them.

A trial is the beginning of the real run: the winner's trunk goes on to the real budgets, and nothing of it is trained
again. With several budgets only the better part of the trials goes on from one to the next (successive halving; Jamieson &
Talwalkar 2016, arXiv:1502.07943).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.config import RunConfig
from flows.runs.names import run_id
from storage.atomic import write_bytes
from storage.counts import count_text
from storage.errors import ConfigError
from storage.store import Store
from tasks.pages.blocks import Picture
from tasks.pages.canvas import save
from tasks.pages.html import html_of
from tasks.pages.markdown import markdown_of
from tasks.pages.report.cost import results_in
from tasks.pages.report.tuning import Standing, TuningFacts, pareto_figure, standing_of, tuning_blocks

REPLAY = "replay"
"""In place of a key: the share of all replay sources together, from 0 to below 1."""
MOST = 200
_SHARED = ("training.token_budgets", "store", "name", "seed")


@dataclass(frozen=True)
class Trial:
    """One point of the grid: what it sets, as written, and the overrides of the file that do it."""

    values: dict[str, str]
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        """`learning_rate 1e-3 · replay 0.1`."""
        return " · ".join(f"{key.rpartition('.')[2]} {value}" for key, value in self.values.items())


def grid(run: RunConfig, vary: Sequence[str]) -> list[Trial]:
    """Every combination of `key=value,value,…`, in order. Raises ConfigError if one is not of that form."""
    axes: dict[str, list[str]] = {}
    for text in vary:
        key, equals, values = (part.strip() for part in text.partition("="))
        found = _split(values)
        if not equals or not key or not all(found) or len(set(found)) < len(found):
            raise ConfigError(f"--vary {text[:200]!r}: write key=value,value,… with different values")
        if key in axes or key in _SHARED or key.startswith(("training.execution", "corpus.execution")):
            why = "is varied twice" if key in axes else "is the same in all trials"
            raise ConfigError(f"--vary {key}: {why}")
        axes[key] = found
    if not axes:
        raise ConfigError(
            "tune: nothing is varied; name what is, such as --vary training.learning_rate=1e-3,2e-3"
        )
    count = math.prod(len(values) for values in axes.values())
    if count > MOST:
        raise ConfigError(f"tune: {count:,} trials are more than {MOST}; vary less")
    trials = []
    for point in itertools.product(*axes.values()):
        chosen = dict(zip(axes, point, strict=True))
        overrides = [one for key, value in chosen.items() for one in _overrides(run, key, value)]
        trials.append(Trial(chosen, tuple(overrides)))
    return trials


def _split(text: str) -> list[str]:
    """The values between commas that no bracket encloses."""
    found, depth = [""], 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            found.append("")
        else:
            found[-1] += character
    return [value.strip() for value in found]


def _overrides(run: RunConfig, key: str, value: str) -> list[str]:
    if key != REPLAY:
        return [f"{key}={value}"]
    try:
        share = float(value)
    except ValueError:
        share = -1.0
    sources = list(enumerate(run.corpus.sources))
    sums = {
        role: sum(source.weight for _, source in sources if source.role == role)
        for role in ("domain", "replay")
    }
    if not 0 <= share < 1:
        raise ConfigError(f"--vary {REPLAY}={value}: a share from 0 to below 1")
    if not all(sums.values()):
        raise ConfigError(f"--vary {REPLAY}: needs sources of both roles with a weight")
    annealed = any(source.decay_weight is not None for _, source in sources)
    total = (
        sum(sums.values()) if annealed else 1.0
    )  # a decay_weight stands beside the weights, on their scale
    shares = {"domain": total * (1 - share), "replay": total * share}
    return [
        f"corpus.sources[{place}].weight={source.weight / sums[source.role] * shares[source.role]:.12g}"
        for place, source in sources
        if source.weight
    ]


def rungs_of(run: RunConfig, asked: Sequence[int]) -> list[int]:
    """The trials' budgets, rising. Without any: a tenth of the first budget. Raises ConfigError."""
    first = run.training.token_budgets[0]
    rungs = list(asked) or [max(first // 10, run.training.batch_tokens)]
    if any(one <= 0 for one in rungs) or any(a >= b for a, b in itertools.pairwise(rungs)):
        raise ConfigError("--budgets must be positive and rise")
    if rungs[-1] > run.training.token_budgets[-1]:
        raise ConfigError(
            f"--budgets: {count_text(rungs[-1])} is more than the run's last budget, "
            f"{count_text(run.training.token_budgets[-1])}"
        )
    return rungs


def budgets_override(budgets: Sequence[int]) -> str:
    """The override with these budgets."""
    return f"training.token_budgets=[{', '.join(count_text(one) for one in budgets)}]"


def of_a_trial(*, benchmarks: bool) -> list[str]:
    """Overrides of every trial: unless asked for, no benchmarks and no samples, since held-out text says more of so little
    training."""
    none = ("domain=[]", "general=[]", "own=[]", "sample_tokens=0")
    return [] if benchmarks else [f"evaluation.{one}" for one in none]


def next_command(
    config: Path, run: RunConfig, given: Sequence[str], trial: Trial, rungs: Sequence[int]
) -> tuple[list[str], str]:
    """(overrides, command) of the real run that goes on from the trial: its budgets, then those of the file beyond."""
    budgets = [*rungs, *(one for one in run.training.token_budgets if one > rungs[-1])]
    overrides = [*given, *trial.overrides, budgets_override(budgets)]
    sets = " ".join(f"--set {shlex.quote(one)}" for one in overrides)
    return overrides, f"onward run {shlex.quote(str(config))} {sets}"


def standing_in(run: RunConfig, report: str) -> Standing:
    """What a trial's report says of its last model. `report` is the report's path relative to the store."""
    roles = {source.name: source.role for source in run.corpus.sources}
    return standing_of(results_in(Store(run.store_path).root / report), roles)


def directory_of(run: RunConfig, asked: Sequence[object]) -> Path:
    """Where the page of a tuning lies. `asked`: plain data of all that is tried, so that each tuning has its own."""
    text = json.dumps([run_id(run), *asked])
    digits = hashlib.sha256(text.encode()).hexdigest()[:6]
    return Store(run.store_path).root / "runs" / f"tune-{run.name}-{digits}"


def write_config(directory: Path, run: RunConfig) -> Path:
    """Write the keys that were set of a configuration as a file that `onward run` reads (JSON is YAML). Returns its path.
    A configuration holds no password."""
    raw = run.model_dump(mode="json", exclude_unset=True)
    path = directory / "config.yaml"
    directory.mkdir(parents=True, exist_ok=True)
    write_bytes(path, (json.dumps(raw, indent=1) + "\n").encode())
    return path


def write_page(directory: Path, run: RunConfig, facts: TuningFacts) -> Path:
    """Write tune.md, tune.html, tune.json and the figure below the store's runs/. Returns their directory."""
    (directory / "figures").mkdir(parents=True, exist_ok=True)
    save(lambda tips: pareto_figure(facts, tips), directory / "figures", "pareto")
    caption = (
        "The change of held-out loss of each trial of the last budget, with 95 % intervals; blue: the best, dashed: the "
        "front."
    )
    blocks = tuning_blocks(facts, run.name, [Picture("pareto", caption)])
    (directory / "tune.md").write_text(markdown_of(blocks), encoding="utf-8")
    (directory / "tune.html").write_text(html_of(blocks, directory), encoding="utf-8")
    (directory / "tune.json").write_text(json.dumps(facts.to_json(), indent=1) + "\n", encoding="utf-8")
    return directory
