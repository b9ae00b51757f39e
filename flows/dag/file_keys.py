"""From a field of a stage's configuration to the key of the run's file that decides it.

A stage's configuration is made from the file's by `requests.py` and `rounds.py`. Where the value is the same, only the
name is told; where it is computed (steps from tokens), the stage's own name stands beside the key.
"""

from __future__ import annotations

import re

from storage.keys import Difference

_SAME = {
    "extract": {"": "corpus.sources"},
    "ingest": {
        "slice_bytes": "corpus.slice_bytes",
        "max_bad_fraction": "corpus.max_bad_fraction",
        "seed": "seed",
        "": "corpus.sources",
    },
    "dedup": {"": "corpus.dedup"},
    "filter": {"": "corpus.filter"},
    "decontaminate": {
        "holdout_fraction": "corpus.holdout_fraction",
        "holdout_piece": "corpus.holdout_piece",
        "copies": "corpus.dedup.exact",
        "seed": "seed",
        "": "corpus.decontaminate",
    },
    "contamination": {"": "corpus.decontaminate"},
    "tokenizer": {"": "model.base.init.tokenizer"},
    "pack": {"packing": "packing", "seed": "training.seed", "sources": "corpus.sources"},
    "train": {
        "schedule": "training.schedule",
        "schedule.peak": "training.learning_rate",
        "schedule.kind": "training.schedule.kind",
        "schedule.final_fraction": "training.schedule.final_fraction",
        "sequence_length": "packing.sequence_length",
        "seed": "training.seed",
        "dropout": "model.dropout",
        "average": "training.average",
        "optimizer": "training.optimizer",
        "precision": "training.precision",
        "document_masking": "training.document_masking",
        "keep_every_tokens": "training.keep_every_tokens",
        "stop": "training.stop",
    },
    "evaluate": {
        "limit": "evaluation.limit",
        "seed": "seed",
        "max_length": "packing.sequence_length",
        "begin": "packing.begin",
        "precision": "evaluation.precision",
    },
    "perplexity": {
        "max_length": "packing.sequence_length",
        "begin": "packing.begin",
        "precision": "evaluation.precision",
        "overlap": "evaluation.overlap",
    },
    "samples": {
        "prompts": "evaluation.prompts",
        "tokens": "evaluation.sample_tokens",
        "seed": "seed",
        "max_length": "packing.sequence_length",
        "begin": "packing.begin",
    },
    "questions": {"questions": "evaluation.own", "seed": "seed"},
    "data": {"filter": "corpus.filter", "seed": "seed"},
}
"""By stage: a field, or a section with all below it, and its key. "" stands for the whole configuration."""
_COMPUTED = {
    "likeness": {"names": "corpus.sources.like"},
    "pack": {"first_sequence": "training.token_budgets", "sequences": "training.token_budgets"},
    "train": {
        "sequences_per_step": "training.batch_tokens",
        "first_step": "training.token_budgets",
        "last_step": "training.token_budgets",
        "schedule.warmup_steps": "training.schedule.warmup_tokens",
        "schedule.decay_from": "training.schedule.decay_fraction",
        "schedule.decay_to": "training.token_budgets",
        "schedule.first_step": "training.token_budgets",
        "schedule.last_step": "training.token_budgets",
        "average.every_steps": "training.average.every_tokens",
        "stop.lowest": "training.stop",
        "stop.lowest_tokens": "training.stop",
    },
    "checkpoint": {"tokens": "training.keep_every_tokens"},
    "merge": {"kind": "merge", "value": "merge"},
    "report": {"benchmarks": "evaluation", "sources": "corpus.sources"},
}
for _tables in (_SAME, _COMPUTED):
    _tables["decay"] = _tables["train"]


_ORIGIN = re.compile(r"inputs\.origin\.(\w+)")


def file_key(stage: str, field: str) -> tuple[str, bool] | None:
    """(key of the file, whether the stage's value is computed from it) of a configuration's field, by its dotted path.

    None if the file has no key for it.
    """
    name = field.removeprefix("config.")
    computed = _COMPUTED.get(stage, {})
    known = {**_SAME.get(stage, {}), **computed}
    for own in sorted(known, key=len, reverse=True):
        if own == "" or name == own or name.startswith((f"{own}.", f"{own}[")):
            if own in computed:
                return known[own], True
            below = name if own == "" else name[len(own) :].lstrip(".")
            joint = "" if not below or below.startswith("[") else "."
            return f"{known[own]}{joint}{below}", False
    return None


def told(stage: str, one: Difference) -> str:
    """A difference in the words of the file: `training.learning_rate: 0.0005 → 0.001`."""
    if stage == "base" and (origin := _ORIGIN.match(one.path)):
        below = one.path[origin.end() :]
        key = {"seed": "training.seed", "init": f"model.base.init{below}"}.get(origin[1], "model.base")
        return f"{key}{str(one).removeprefix(one.path)}"
    if not one.path.startswith("config."):
        return str(one)
    found = file_key(stage, one.path)
    if found is None:
        return str(one)
    key, computed = found
    words = str(one).removeprefix(one.path)
    leaf = re.split(r"[.\[]", one.path)[-1]
    return f"{key} ({leaf.replace('_', ' ')}){words}" if computed else f"{key}{words}"
