"""How often a change of perplexity is called clear although nothing changed: `python -m benchmarks.verdicts`.

Two models are measured on the same held-out documents. The loss of each document differs by chance alone, alike in
both directions; so every verdict is a wrong one. Documents are of one length or of unlike lengths; differences are
normal or have heavy tails (Student's t with 2 degrees of freedom: no variance). Beside the project's verdict stands
what the paired bootstrap (scipy's BCa), which versions before 0.2 used, would have said. `skewed`: differences
lean to one side around a mean of zero, which no test of few documents survives; it is shown, not promised.
"""

from __future__ import annotations

import argparse
import warnings

import numpy as np
import pyarrow as pa

from tasks.evaluation.compare import document_scores, judged, perplexity_change

COUNTS = (2, 3, 5, 8, 10, 12, 16, 20)


def documents(
    generator: np.random.Generator, count: int, tails: str, lengths: str
) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, difference of loss in nats) of each document."""
    tokens = (
        np.full(count, 500) if lengths == "alike" else (np.exp(generator.normal(6, 1, count)) + 2).astype(int)
    )
    drawn = {
        "normal": lambda: generator.normal(0, 1, count),
        "t2": lambda: generator.standard_t(2, count),
        "skewed": lambda: generator.exponential(1, count) - 1,
    }[tails]()
    return tokens, 0.02 * drawn * tokens


def _verdict(tokens: np.ndarray, changes: np.ndarray) -> str:
    before = 3.0 * tokens
    tables = {
        name: pa.table({"id": range(len(tokens)), "nll": nll, "tokens": tokens})
        for name, nll in (("a", before), ("b", before + changes))
    }
    found = document_scores(tables, "held out")
    return judged([perplexity_change(found["a"], found["b"])])[0].verdict


def false_verdicts(count: int, tails: str, lengths: str, tries: int = 400, seed: int = 0) -> float:
    """The share of comparisons of unchanged models that get a verdict."""
    generator = np.random.default_rng([seed, count])
    wrong = 0
    for _ in range(tries):
        wrong += _verdict(*documents(generator, count, tails, lengths)) in ("improved", "worse")
    return wrong / tries


def false_bootstraps(count: int, tails: str, lengths: str, tries: int = 200, seed: int = 0) -> float:
    """The share whose bootstrap interval of the mean, by scipy, leaves zero out."""
    from scipy import stats

    generator = np.random.default_rng([seed, count])
    wrong = 0
    for _ in range(tries):
        tokens, changes = documents(generator, count, tails, lengths)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ends = stats.bootstrap(
                (changes, tokens),
                lambda nll, size, axis: nll.sum(axis) / size.sum(axis),
                paired=True,
                n_resamples=1000,
                rng=generator,
            ).confidence_interval
        wrong += bool(ends.low > 0 or ends.high < 0)
    return wrong / tries


def main() -> None:
    """Print a table: wrong verdicts in percent, and wrong bootstrap intervals in brackets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=1000)
    tries = parser.parse_args().tries
    print("documents        " + "".join(f"{count:>14}" for count in COUNTS))
    for tails in ("normal", "t2", "skewed"):
        for lengths in ("alike", "unlike"):
            cells = [
                f"{100 * false_verdicts(count, tails, lengths, tries):.1f} "
                f"({100 * false_bootstraps(count, tails, lengths, max(100, tries // 5)):.1f})"
                for count in COUNTS
            ]
            print(f"{tails:<8}{lengths:<9}" + "".join(f"{cell:>14}" for cell in cells))


if __name__ == "__main__":
    main()
