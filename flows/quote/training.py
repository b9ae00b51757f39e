"""What each training stage of a plan would need from a device: micro-batch, checkpointing, tokens per second, hours.

The memory side is the trainer's own rule (tasks/training/device/memory.py), so it equals what a run would choose. The
rate is the median that the store recorded for the same shape on the same device. Without one, the rate is computed and
called an estimate: operations per token over the data sheet's peak times `ASSUMED_MFU`, less the cost of checkpointing
and small micro-batches. It needs the model's configuration but no weights. Torch is imported only if there is a stage
to estimate.
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flows.config import RunConfig
from flows.dag.plan import PlanRow
from flows.dag.rounds import round_zero, rounds_of
from storage.artifact import Artifact
from storage.counts import rounded_count
from storage.errors import ConfigError
from storage.paths import home
from storage.store import Store
from tasks import stages
from tasks.corpus.packing.budgets import sequences_per_step
from tasks.models.base import InitConfig
from tasks.models.config import resolve_precision
from tasks.training.spec import SegmentSpec, WsdSchedule

ASSUMED_MFU = 0.4
"""Share of a GPU's peak that a step reaches. llm.c and nanochat report 0.40 to 0.41 on H100 for GPT-2 124M."""
CPU_FLOPS = {"fp32": 80e9, "bf16": 150e9, "bf16_weights": 150e9}
"""Operations per second that one core reaches in a step.

Measured: a Llama of 8.9M parameters made 1,563 (fp32) and 2,857 (bf16) tokens per core-second on an EPYC.
"""
SMALLEST = 5_000_000
"""Parameters in matrix products. Below this number, launching the operations takes longer than computing them, so there
is no estimate.
"""
_SHAPE = ("model_type", "vocab_size", "hidden_size", "n_embd", "num_hidden_layers", "n_layer", "num_attention_heads",
          "n_head", "num_key_value_heads", "intermediate_size", "ffn_dim", "n_inner")  # fmt: skip


@dataclass(frozen=True)
class Target:
    """The device to estimate for. `memory` is in bytes; `name` is torch's name or a short one (H100)."""

    kind: str
    memory: int
    name: str | None
    cores: int = 1


def target_of(run: RunConfig, memory: int | None, name: str | None) -> Target:
    """This machine's device as the run would choose it, or a GPU with this memory (bytes) and name."""
    from tasks.training.device import execution

    device = execution.device_of(run.training.execution.device if memory is None and name is None else "auto")
    kind = "cuda" if device.startswith("cuda") else "cpu"
    if memory is None and name is None:
        here = execution.memory_of(device, run.training.execution.device_memory)
        return Target(kind, here, execution.device_name(device), execution.usable_cores())
    if memory is None:
        raise ConfigError(f"--device-name {name}: give its memory too, such as --memory 80G")
    if name is not None and name.lower() == "cpu":
        return Target("cpu", memory, execution.device_name("cpu"), execution.usable_cores())
    own = execution.device_name(device) if kind == "cuda" else None
    return Target("cuda", memory, name or own)


def with_estimates(
    run: RunConfig, rows: list[PlanRow], memory: int | None = None, name: str | None = None
) -> list[PlanRow]:
    """The rows, with `training` filled for each training stage that is to be made. Raises ConfigError."""
    waiting = [row for row in rows if row.stage in stages.TRAINING and row.state != "cached"]
    if not waiting:
        return rows
    model = _model_config(run, rows)
    if model is None:
        return [replace(row, training=_OPEN) if row in waiting else row for row in rows]
    estimate = _Estimator(run, model, target_of(run, memory, name))
    return [replace(row, training=estimate(row)) if row in waiting else row for row in rows]


def compiled_by_rule(run: RunConfig, rows: list[PlanRow]) -> dict[str, bool]:
    """Whether `compile: auto` compiles the longest segment of each training stage: on a CPU that depends on its steps.

    Empty where it does not, and where the model is not known.
    """
    model = _model_config(run, rows)
    if model is None or run.training.execution.compile != "auto":
        return {}
    return _Estimator(run, model, target_of(run, None, None)).compiled(rows)


_OPEN = {"line": "memory and speed: open until the base model is imported"}


class _Estimator:
    """Estimates each training stage of one run on one device."""

    def __init__(self, run: RunConfig, model: dict[str, Any], target: Target) -> None:
        from tasks.training.device import memory
        from tasks.training.device.activations import counter
        from tasks.training.model import read_config, shape_of

        self._run, self._model, self._target = run, model, target
        self._segment = _segment(run)
        with tempfile.TemporaryDirectory() as directory:
            (Path(directory) / "config.json").write_text(json.dumps(model), encoding="utf-8")
            config = read_config(Path(directory), self._segment)
        self._shape = shape_of(config)
        execution = run.training.execution
        count = execution.processes * execution.nodes
        threads = self._threads = execution.threads or max(1, target.cores // execution.processes)
        device = memory.Device(target.kind, target.memory, execution.processes, threads)
        step = memory.Step(
            self._shape,
            self._segment,
            device,
            counter(config, self._segment),
            count if execution.sharding == "full" else 1,
        )
        share = math.ceil(self._segment.sequences_per_step / count)
        self.mode, self.micro_batch = memory.choose(
            step, share, execution.gradient_checkpointing, execution.micro_batch
        )
        self._fits = step.peak(self.mode, self.micro_batch) <= device.usable
        self._peak = step.peak(self.mode, self.micro_batch)
        cost = memory.cost(self.mode, self.micro_batch * self._segment.sequence_length, target.kind)
        self.rate, self._why = self._rate(cost, count)

    def compiled(self, rows: list[PlanRow]) -> dict[str, bool]:
        """For each training stage, whether its longest segment is compiled; empty on a GPU."""
        from tasks.training.device.execution import compiles

        if self._target.kind != "cpu":
            return {}
        found = {}
        for stage in stages.TRAINING:
            steps = max((_steps(self._run, row) for row in rows if row.stage == stage), default=0)
            segment = replace(self._segment, last_step=steps)
            found[stage] = compiles("cpu", "sdpa", segment, self._shape, self._threads)
        return found

    def __call__(self, row: PlanRow) -> dict[str, Any]:
        tokens = batch_tokens_of(self._run, row)
        length, target = self._segment.sequence_length, self._target
        mode = "no checkpointing" if self.mode == "none" else f"{self.mode} checkpointing"
        said = [
            f"{rounded_count(self._shape.parameters)} at {length} in {target.memory / 1e9:.0f} GB: "
            f"micro-batch {self.micro_batch}",
            mode,
        ]
        hours = tokens / self.rate / 3600 if self.rate else None
        if self.rate and hours is not None:
            said += [f"about {_rounded(self.rate):,} tokens/s", f"about {_time(hours)} ({self._why})"]
        else:
            said.append(self._why)
        if not self._fits:
            said.append(f"needs about {self._peak / 1e9:.0f} GB: it will not fit")
        return {
            "line": ", ".join(said),
            "micro_batch": self.micro_batch,
            "gradient_checkpointing": self.mode,
            "parameters": self._shape.parameters,
            "peak_bytes": round(self._peak),
            "fits": self._fits,
            "tokens": tokens,
            "tokens_per_second": self.rate,
            "hours": hours,
            "rate_from": self._why,
        }

    def _rate(self, cost: float, count: int) -> tuple[float | None, str]:
        """(tokens per second of all processes, the source of the figure)."""
        recorded = self._recorded(count)
        if recorded is not None:
            return recorded, "as recorded in the store"
        from tasks.training.device.execution import known_peak

        if self._shape.products < SMALLEST:
            return None, "no estimate of tokens/s for a model this small"
        length, target = self._segment.sequence_length, self._target
        operations = self._shape.flops(length, length * length) / length
        if target.kind == "cpu":
            each = CPU_FLOPS[self._segment.precision]
            reached, how = each * target.cores, f"{each / 1e9:.0f} GFLOP/s on each of {target.cores} cores"
        else:
            peak = known_peak(target.name or "")
            if peak is None:
                return None, "tokens/s unknown: no peak is known for this device (--device-name H100)"
            slower = 2.0 if self._segment.precision == "fp32" else 1.0  # TF32 is half of bf16
            reached, how = (
                ASSUMED_MFU * peak / slower * count,
                f"{ASSUMED_MFU:.0%} of {peak / 1e12:.0f} TFLOP/s",
            )
        return reached / operations / cost, f"an estimate: {how}"

    def _recorded(self, count: int) -> float | None:
        """The recorded median of the newest segment of this shape, length, precision and device; None if there is none."""
        store, found = Store(self._run.store_path), []
        for stage in stages.TRAINING:
            for artifact in store.artifacts(stage):
                if self._alike(artifact, count):
                    found.append((artifact.manifest.provenance.get("started") or "", artifact))
        for _, artifact in sorted(found, key=lambda pair: pair[0], reverse=True):
            rate = _median_rate(artifact.path / "clock.parquet")
            if rate is not None:
                return rate
        return None

    def _alike(self, artifact: Artifact, count: int) -> bool:
        config = artifact.manifest.config
        settings = (config.get("sequence_length"), config.get("precision"))
        if settings != (self._segment.sequence_length, self._segment.precision):
            return False
        facts = _json(artifact.path / "execution.json")
        if self._target.name is None or facts.get("device_name") != self._target.name:
            return False
        models = (_json(artifact.path / part / "config.json") for part in ("export", "trunk"))
        alike = any(model and _bare(model) == _bare(self._model) for model in models)
        return alike and facts.get("processes") == count


def _segment(run: RunConfig) -> SegmentSpec:
    """The parts of a segment that memory depends on."""
    training, packing = run.training, run.packing
    return SegmentSpec(
        kind="trunk",
        seed=run.seed,
        sequence_length=packing.sequence_length,
        sequences_per_step=sequences_per_step(training.batch_tokens, packing.sequence_length),
        first_step=0,
        last_step=1,
        schedule=WsdSchedule(training.learning_rate, 0),
        optimizer=training.optimizer,
        precision=resolve_precision(training),
        document_masking=training.document_masking,
        dropout=run.model.dropout,
    )


def _model_config(run: RunConfig, rows: list[PlanRow]) -> dict[str, Any] | None:
    """The config.json of the base model; None if it is a hub model that is not imported yet."""
    imported = next((row for row in rows if row.stage == "base" and row.state == "cached"), None)
    if imported is not None and imported.key is not None:
        path = Store(run.store_path).path_of("base", imported.key)
        return _json(path / "export" / "config.json") or None
    base = run.model.base
    if not isinstance(base, InitConfig):
        return _json(home() / base / "config.json") or None
    return {
        "model_type": "llama",
        "vocab_size": base.tokenizer.vocabulary,
        "hidden_size": base.hidden_size,
        "intermediate_size": base.intermediate_size or math.ceil(base.hidden_size * 8 / 3 / 32) * 32,
        "num_hidden_layers": base.layers,
        "num_attention_heads": base.heads,
        "num_key_value_heads": base.kv_heads or base.heads,
        "max_position_embeddings": base.max_positions,
        "tie_word_embeddings": base.tie_embeddings,
    }


def batch_tokens_of(run: RunConfig, row: PlanRow) -> int:
    """Tokens of a training stage's batches, padding included."""
    return _steps(run, row) * run.training.batch_tokens


def _steps(run: RunConfig, row: PlanRow) -> int:
    if row.round == 0:
        assert isinstance(run.model.base, InitConfig)
        return round_zero(run, run.model.base.pretrain_tokens).last_step
    found = next(one for one in rounds_of(run) if one.number == row.round)
    if row.stage == "decay":
        return found.last_step - found.branch_step
    return found.branch_step - found.first_step


def _median_rate(path: Path) -> float | None:
    import pyarrow.parquet as parquet

    try:
        rates = parquet.read_table(path, columns=["tokens_per_second"]).column(0).drop_null().to_pylist()
    except (OSError, ValueError, KeyError):
        return None
    return statistics.median(rates) if rates else None


def _bare(model: dict[str, Any]) -> dict[str, Any]:
    return {name: model[name] for name in _SHAPE if model.get(name) is not None}


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _rounded(value: float) -> int:
    """Round to three figures from 100,000 upwards and to two below. The estimate is not more precise."""
    digits = 3 if value >= 1e5 else 2
    scale = 10 ** max(0, math.floor(math.log10(max(value, 1))) - digits + 1)
    return round(value / scale) * scale


def _time(hours: float) -> str:
    if hours >= 1:
        return f"{hours:.1f} h"
    return f"{hours * 60:.0f} min" if hours * 60 >= 1 else f"{hours * 3600:.0f} s"
