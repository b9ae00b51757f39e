"""Whether a trunk ends before its budget, decided by the losses on held-out text that were measured so far.

What must stay true: the decision is a function of the rule and of the measured losses in their order. Measurements fall
where the tokens seen pass a multiple of the rule's spacing, whatever the budgets are. Its state is in every checkpoint,
so a resumed trunk ends where one that was never killed does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.training.spec import Stop

BEST = "best"
"""The directory of the states with the lowest losses: `best/step-00000100`."""
TEXT, LINES = "stop.json", "stop.jsonl"
"""The held-out tokens, and what was measured of them."""


@dataclass
class Stopping:
    """The rule, and what was measured so far. Losses are in nats per token, tokens count what the model has seen."""

    rule: Stop
    tokens: int
    """At the last measurement that counts."""
    lowest: float | None = None
    """The last loss that was lower by more than `min_delta` than all before it, the earlier trunks' included."""
    lowest_tokens: int = 0
    best: float | None = None
    """The same of this segment alone: the state that the trunk ends with if it is stopped."""
    best_tokens: int = 0
    best_step: int = 0

    @classmethod
    def begun(cls, rule: Stop, tokens: int) -> Stopping:
        """Before the first measurement of a segment that begins with `tokens` seen."""
        before = tokens if rule.lowest is None else rule.lowest_tokens
        return cls(rule, before, rule.lowest, before)

    @classmethod
    def restored(cls, rule: Stop, state: Mapping[str, Any]) -> Stopping:
        """As `state` wrote it."""
        return cls(rule, **state)

    @property
    def state(self) -> dict[str, Any]:
        """Everything but the rule, for a checkpoint."""
        return {name: value for name, value in vars(self).items() if name != "rule"}

    def due(self, before: int, after: int) -> bool:
        """Whether a multiple of the spacing lies in (before, after]."""
        return before // self.rule.every_tokens != after // self.rule.every_tokens

    def add(self, loss: float | None, step: int, tokens: int, *, counts: bool = True) -> bool:
        """Take a measurement; None: it was not finite. Returns whether it is this segment's lowest.

        One that does not count, as it lies between the multiples of the spacing, says only which state can be gone back to.
        """
        if counts:
            self.tokens = tokens
        if loss is None:
            return False
        if counts and (self.lowest is None or loss < self.lowest - self.rule.min_delta):
            self.lowest, self.lowest_tokens = loss, tokens
        if self.best is not None and loss >= self.best - self.rule.min_delta:
            return False
        self.best, self.best_tokens, self.best_step = loss, tokens, step
        return True

    @property
    def over(self) -> bool:
        """Whether the trunk ends here."""
        return self.best is not None and self.tokens - self.lowest_tokens >= self.rule.patience_tokens

    @property
    def facts(self) -> dict[str, Any]:
        """For the result of the segment. `stopped`: only if it ends here; then `step` is where its trunk stands."""
        found: dict[str, Any] = {
            "source": self.rule.source,
            "lowest": self.lowest,
            "lowest_tokens": self.lowest_tokens,
        }
        if self.over:
            found["stopped"] = {"step": self.best_step, "tokens": self.best_tokens, "loss": self.best}
        return found


def stopped_of(result: Mapping[str, Any]) -> dict[str, Any] | None:
    """Of the result of a trunk that was stopped: step, tokens and loss of the state that it ends with; else None."""
    found: dict[str, Any] | None = (result.get("stopping") or {}).get("stopped")
    return found


def best_directory(step: int) -> str:
    """Where the state of a step is kept, relative to the work directory."""
    return f"{BEST}/step-{step:08d}"


def digests_file(step: int) -> str:
    """The digests of that state's files. They lie beside it, so that the trunk it becomes holds only what a trunk does."""
    return f"{BEST}/digests-{step:08d}.json"


def no_longer_needed(work: Path, *resumed: int) -> list[int]:
    """Steps of the kept states that training from none of the steps `resumed` could go back to: all but the newest up to
    each. Later ones are made again on the way.
    """
    there = sorted(int(path.name.removeprefix("step-")) for path in (work / BEST).glob("step-*"))
    kept = {max((step for step in there if step <= at), default=None) for at in resumed}
    return [step for step in there if step not in kept]


def lowest_of(stopping: Mapping[str, Any]) -> tuple[int, float]:
    """Of the facts of a stopped trunk: tokens and loss of the lowest of all, which an earlier trunk may have had."""
    own = stopping["stopped"]
    if stopping["lowest"] is not None and stopping["lowest"] < own["loss"]:
        return int(stopping["lowest_tokens"]), float(stopping["lowest"])
    return int(own["tokens"]), float(own["loss"])
