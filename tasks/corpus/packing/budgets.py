"""From token budgets to steps and sequences, and to the tokens that each source must provide.

A step has `batch_tokens / sequence_length` sequences, padding included. A round ends at step
`ceil(budget / batch_tokens)` of its line. Nothing here depends on later budgets.
"""

from __future__ import annotations

from collections.abc import Sequence

from storage.errors import ConfigError
from tasks.corpus.packing import interleave


def sequences_per_step(batch_tokens: int, sequence_length: int) -> int:
    """Sequences in a step.

    Raises ConfigError if the batch is not a whole number of sequences; the error names the nearest allowed values.
    """
    if batch_tokens > 0 and batch_tokens % sequence_length == 0:
        return batch_tokens // sequence_length
    below = batch_tokens // sequence_length * sequence_length
    allowed = [str(tokens) for tokens in (below, below + sequence_length) if tokens > 0]
    raise ConfigError(
        f"training.batch_tokens is {batch_tokens}, which is not a whole number of sequences of {sequence_length} "
        f"tokens (packing.sequence_length); the nearest allowed: {' or '.join(allowed)}."
    )


def steps_for(budget_tokens: int, batch_tokens: int) -> int:
    """The step at which a budget is reached: ceil(budget / batch)."""
    if budget_tokens <= 0 or batch_tokens <= 0:
        raise ConfigError(
            f"Budgets and batches must be positive, not {budget_tokens} and {batch_tokens} tokens."
        )
    return -(-budget_tokens // batch_tokens)


def sequences_for(budget_tokens: int, batch_tokens: int, sequence_length: int) -> int:
    """Sequences from the beginning of a line of rounds to the end of the round with this budget."""
    return steps_for(budget_tokens, batch_tokens) * sequences_per_step(batch_tokens, sequence_length)


def needed_tokens(
    weights: Sequence[interleave.Weight], sequences_total: int, sequence_length: int
) -> list[int]:
    """Tokens of each source (end-of-text included) that suffice for the first `sequences_total` sequences of a line.

    Full sequences are assumed; padding only leaves more tokens over. The flow reads slices until a source has this
    many tokens (plus what round 0 took of it), or is exhausted.
    """
    return [count * sequence_length for count in interleave.counts(weights, sequences_total)]
