"""Checks for a GPU before its figures count: exact masking, exact resume, predicted memory, a run that survives a
kill.

    python benchmarks/gpu_checks.py --out DIR                      # on a GPU: about eight minutes
    python benchmarks/gpu_checks.py --device cpu --shape tiny --length 64 --batch-tokens 512 --seconds 30   # a rehearsal

masking  In bf16 and float32, with rows as they are, of a fixed size, and compiled, for four model families: the logits of
         a packed document equal those of the document alone under transformers' own attention, and other documents
         change no bit of them.
resume   With deterministic kernels, compiled on a GPU, a run is killed by SIGKILL twice and restarted. Each start
         compiles anew (an empty cache), and the vocabulary is odd, so that nothing is chosen by chance or by timing.
         Its weights, moments and journal equal those of an undisturbed run, bit for bit.
run      The shape trains on this machine's Python sources (real text, by bytes) until it has seen `--tokens` or
         `--seconds` are over, and is killed by SIGKILL at a third. Steps must rise without a gap, and the loss must go
         on where it was and fall. The peak memory is shown beside the rule's prediction.
profile  One step of that shape under torch.profiler, as a table by kernel. Only if it is asked for.

At the end of its time the run gets SIGTERM, and the trainer leaves with a checkpoint. Prints a line and a JSON line
for each check. Each check stands alone: one that breaks is reported with its error and the end of its trainer's log,
and the next one follows. `--out DIR` keeps, as soon as a check ends, its JSON line, the trainers' logs, journal and
loss curve (loss.csv, loss.svg). Exits with 1 if a check fails.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.training import machine  # noqa: E402
from benchmarks.training_world import SHAPES, Plan, config_of, make_world  # noqa: E402
from tasks.training.attention import VARLEN, RowDocuments  # noqa: E402
from tasks.training.device import memory  # noqa: E402
from tasks.training.device.activations import counter  # noqa: E402
from tasks.training.model import LanguageModel, load_model, quiet, read_config, shape_of  # noqa: E402
from tasks.training.read_spec import parse_spec  # noqa: E402

CHECKS = ("masking", "resume", "run", "profile")
TOLERANCE = {"fp32": 2e-3, "bf16": 8e-2}
"""Share of the largest logit. TF32 is off; bf16 has 8 bits of mantissa, through a few layers."""


def masking(plan: Plan) -> dict[str, Any]:
    """Check every attention path of this device, for four model families."""
    worst: dict[str, float] = {}
    for family, config in _families().items():
        for precision in ("fp32", "bf16"):
            for path in ("as it is", "fixed size", "compiled"):
                with tempfile.TemporaryDirectory() as directory:
                    worst[f"{family}, {precision}, {path}"] = _masked(
                        plan, Path(directory), config, precision, path
                    )
    limits = {name: TOLERANCE[name.split(", ")[1]] for name in worst}
    return {
        "passed": all(worst[name] <= limits[name] for name in worst),
        "varlen": VARLEN is not None and plan.device != "cpu",
        "worst_of_largest_logit": {name: round(value, 6) for name, value in worst.items()},
    }


def _masked(plan: Plan, start: Path, config: Any, precision: str, path: str) -> float:
    """Largest difference from documents alone, as a share of the largest logit; inf if other documents change a bit."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
    with quiet():
        model.save_pretrained(start)
    spec = json.loads(plan.path("spec.json").read_text(encoding="utf-8"))
    spec["identity"]["precision"] = precision
    identity = parse_spec(spec).identity
    compiled = path == "compiled"  # as by rule on a GPU: q, k and v are one product, and gate and up
    execution = {
        "device": plan.device,
        "compile": compiled,
        "fuse_products": compiled,
        "gradient_checkpointing": "none",
    }
    torch.compiler.reset()
    ours = load_model(start, read_config(start, replace(identity, sequence_length=64)), identity, execution)
    lengths = (31, 1, 64, 17, 8, 7)
    ids = torch.randint(1, 256, (sum(lengths),))
    packed = _logits(ours, ids, lengths, path)
    other = ids.clone()
    other[:31] = (other[:31] + 1) % 256
    other[96:] = (other[96:] + 1) % 256
    changed = _logits(ours, other, lengths, path)
    if not torch.equal(packed[31:96], changed[31:96]):
        return math.inf
    model = model.float().eval()
    with torch.no_grad():
        alone = torch.cat([model(part[None], use_cache=False).logits[0] for part in ids.split(list(lengths))])
    return float((packed - alone).abs().max() / alone.abs().max())


def _logits(model: LanguageModel, ids: torch.Tensor, lengths: tuple[int, ...], path: str) -> torch.Tensor:
    positions = torch.cat([torch.arange(length) for length in lengths])
    device = model.device
    packing = RowDocuments.of(lengths, device)
    if path != "as it is":
        packing = RowDocuments.of_fixed_size(lengths, 12, 64).to(device)
    with torch.no_grad(), model.autocast():
        hidden = model.hidden(ids[None].to(device), positions[None].to(device), packing)
        logits: torch.Tensor = model.head(hidden)
    return logits.float().cpu()


def _families() -> dict[str, Any]:
    from transformers import GPT2Config, GPTNeoXConfig, LlamaConfig, OPTConfig

    small = {"vocab_size": 256, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return {
        "llama": LlamaConfig(
            **small, intermediate_size=128, num_key_value_heads=2, max_position_embeddings=64
        ),
        "gpt2": GPT2Config(vocab_size=256, n_embd=64, n_layer=2, n_head=4, n_positions=64),
        "neox": GPTNeoXConfig(**small, intermediate_size=128, max_position_embeddings=64),
        "opt": OPTConfig(**small, ffn_dim=128, max_position_embeddings=64, word_embed_proj_dim=64),
    }


def resume(plan: Plan) -> dict[str, Any]:
    """Compare an undisturbed run with one that is killed twice, with the device's deterministic kernels."""
    digests, kills = {}, 0
    for name in ("whole", "killed"):
        spec = json.loads(plan.path("spec.json").read_text(encoding="utf-8"))
        spec["paths"]["work"] = str(plan.path(name))
        spec["execution"] |= {"deterministic": True, "checkpoint_every": 1e-9, "fuse_products": plan.compile}
        plan.path(name).mkdir()
        path = plan.path(f"{name}.json")
        path.write_text(json.dumps(spec), encoding="utf-8")
        for at in (plan.steps // 3, 2 * plan.steps // 3) if name == "killed" else ():
            trainer = Trainer(path, plan.path(name), cache=plan.path(f"compiled-{name}-{at}"))
            trainer.until(lambda at=at, of=trainer: of.steps() >= at)  # type: ignore[misc]
            kills += trainer.end(signal.SIGKILL) == -signal.SIGKILL
        code = Trainer(path, plan.path(name), cache=plan.path(f"compiled-{name}-end")).wait()
        if code != 0:
            return {"passed": False, "why": f"{name} ended with {code}", "log": _tail(plan.path(name))}
        digests[name] = _digests(plan.path(name))
    same = digests["whole"] == digests["killed"]
    differ = [name for name in digests["whole"] if digests["whole"][name] != digests["killed"].get(name)]
    return {"passed": same and kills == 2, "kills": kills, "steps": plan.steps, "differ": differ}


def run(plan: Plan, seconds: float, out: Path | None) -> dict[str, Any]:
    """The longer run: killed at a third of its time, and stopped at its end."""
    work, spec_path = plan.path("work"), plan.path("spec.json")
    spec = _by_rule(plan)
    spec["execution"]["checkpoint_every"] = max(2.0, seconds / 12)
    spec_path.write_text(json.dumps(spec), encoding="utf-8")
    began = time.monotonic()
    trainer = Trainer(spec_path, work)
    trainer.until(lambda: time.monotonic() - began > seconds / 3 or 3 * trainer.steps() > plan.steps)
    reached, killed = trainer.steps(), trainer.end(signal.SIGKILL) == -signal.SIGKILL
    trainer = Trainer(spec_path, work)
    trainer.until(lambda: time.monotonic() - began > seconds)
    code = trainer.end(signal.SIGTERM)
    if not trainer.steps():
        return {"passed": False, "why": f"ended with {code} before its first step", "log": _tail(work)}
    lines = [json.loads(line) for line in (work / "journal.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [line["step"] for line in lines]
    losses = [line["loss"] for line in lines]
    rates = sorted(line["tokens_per_second"] for line in lines)
    waits = [line["data_wait"] for line in lines if line["seconds"] < 3 * lines[len(lines) // 2]["seconds"]]
    identity = parse_spec(spec).identity
    resolved = json.loads((work / "execution.json").read_text(encoding="utf-8"))
    shape = shape_of(config_of(plan.shape, plan.length))
    room = memory.Device(torch.device(plan.device).type, _device_memory(plan))
    rule = memory.Step(shape, identity, room, counter(config_of(plan.shape, plan.length), identity))
    tenth = max(1, len(losses) // 10)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "journal.jsonl").write_bytes((work / "journal.jsonl").read_bytes())
        rows = "\n".join(f"{line['tokens']},{line['loss']}" for line in lines)
        (out / "loss.csv").write_text(f"tokens,loss\n{rows}\n", encoding="utf-8")
        (out / "loss.svg").write_text(
            _curve([line["tokens"] for line in lines], losses, lines[min(reached, len(lines)) - 1]["tokens"]),
            encoding="utf-8",
        )
    return {
        "passed": killed
        and code in (0, 75)
        and steps == list(range(1, len(steps) + 1))
        and len(steps) > reached
        and sum(losses[-tenth:]) < sum(losses[:tenth]),
        "killed_at_step": reached,
        "ended_with": code,
        "steps": len(steps),
        "tokens": lines[-1]["tokens"],
        "first_loss": round(losses[0], 4),
        "last_losses": round(sum(losses[-tenth:]) / tenth, 4),
        "tokens_per_second": round(rates[len(rates) // 2]),
        "mfu": lines[-1]["mfu"],
        "data_wait": round(sorted(waits)[len(waits) // 2], 6),
        "execution": {
            name: resolved[name]
            for name in ("micro_batch", "gradient_checkpointing", "compile", "fuse_products", "attention")
        },
        "peak_memory": max(line["peak_memory"] for line in lines),
        "rule_says": round(rule.peak(resolved["gradient_checkpointing"], resolved["micro_batch"])),
        "log": _tail(work, 600),
    }


def _by_rule(plan: Plan) -> dict[str, Any]:
    """The specification with everything chosen by rule, as a run has it."""
    spec: dict[str, Any] = json.loads(plan.path("spec.json").read_text(encoding="utf-8"))
    chosen = ("micro_batch", "gradient_checkpointing", "compile", "fuse_products")
    spec["execution"] |= dict.fromkeys(chosen, "auto")
    return spec


def profile(plan: Plan) -> dict[str, Any]:
    """One step of the trainer under torch.profiler; the table by kernel is printed, and kept beside the logs."""
    from tasks.training.loop import train

    spec = _by_rule(plan)
    spec["paths"]["work"] = str(plan.path("profiled"))
    spec["identity"]["last_step"] = spec["identity"]["first_step"] + 5
    plan.path("profiled").mkdir()
    activity = torch.profiler.ProfilerActivity
    kinds = [activity.CPU] if plan.device == "cpu" else [activity.CPU, activity.CUDA]
    profiler = torch.profiler.profile(activities=kinds)
    asked = 0

    def stop() -> bool:  # asked before each step
        nonlocal asked
        asked += 1
        if asked == 4:
            profiler.start()
        elif asked == 5:
            profiler.stop()
        return asked == 5

    train(parse_spec(spec), stop, lambda line: print(line, file=sys.stderr))
    by = "self_cpu_time_total" if plan.device == "cpu" else "self_device_time_total"
    rows = profiler.key_averages()
    table = rows.table(sort_by=by, row_limit=30, max_name_column_width=70)
    plan.path("profile.log").write_text(table, encoding="utf-8")
    print(table, flush=True)
    return {"passed": bool(rows), "rows": len(rows)}


class Trainer:
    """`python -m tasks.training SPEC` as a process. `cache`: a directory of its own for what it compiles."""

    def __init__(self, spec: Path, work: Path, cache: Path | None = None) -> None:
        self._work = work
        caches = (
            {} if cache is None else {"TORCHINDUCTOR_CACHE_DIR": str(cache), "TRITON_CACHE_DIR": str(cache)}
        )
        work.mkdir(exist_ok=True)
        with (work.parent / f"{work.name}.log").open("a", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tasks.training", str(spec)],
                cwd=ROOT,
                stderr=log,
                stdout=log,
                env={**os.environ, "PYTHONPATH": str(ROOT), **caches},
            )

    def steps(self) -> int:
        """Number of lines in the journal so far."""
        path = self._work / "journal.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition is true or the process has ended."""
        while self._process.poll() is None and not condition():
            time.sleep(0.05)

    def end(self, how: signal.Signals) -> int:
        """Send a signal and wait. Returns the exit code."""
        if self._process.poll() is None:
            self._process.send_signal(how)
        return self._process.wait()

    def wait(self) -> int:
        """Wait. Returns the exit code."""
        return self._process.wait()


def _digests(work: Path) -> dict[str, str]:
    """Digests by name of everything that a run leaves, except clock readings."""
    parts = [path for part in ("trunk", "export", "journal") for path in sorted((work / part).rglob("*"))]
    return {
        str(p.relative_to(work)): hashlib.sha256(p.read_bytes()).hexdigest() for p in parts if p.is_file()
    }


def _tail(work: Path, characters: int = 2000) -> str:
    log = work.parent / f"{work.name}.log"
    return log.read_text(encoding="utf-8", errors="replace")[-characters:] if log.exists() else ""


def one_check(check: Callable[[], dict[str, Any]], plan: Plan, out: Path | None) -> dict[str, Any]:
    """A check's findings. An error in it is a finding too; the trainers' logs are copied out whatever happens."""
    try:
        return check()
    except Exception as error:
        traceback.print_exc()
        logs = sorted(Path(plan.root).glob("*.log"), key=lambda log: log.stat().st_mtime)
        tail = _tail(logs[-1].with_suffix("")) if logs else ""
        return {"passed": False, "why": f"{type(error).__name__}: {error}"[:500], "log": tail}
    finally:
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            for log in Path(plan.root).glob("*.log"):
                shutil.copy(log, out / log.name)


def _device_memory(plan: Plan) -> int:
    if plan.device != "cpu":
        return int(torch.cuda.get_device_properties(plan.device).total_memory)
    return memory.host_memory()


def _curve(tokens: list[int], losses: list[float], killed: int) -> str:
    """Draw the loss over tokens; a line marks the kill."""
    low, high = min(losses), max(losses)
    points = " ".join(
        f"{40 + 740 * t / tokens[-1]:.1f},{20 + 340 * (high - loss) / max(1e-9, high - low):.1f}"
        for t, loss in zip(tokens, losses, strict=True)
    )
    at = 40 + 740 * killed / tokens[-1]
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 800 400" font-family="sans-serif" font-size="12">'
        f'<polyline fill="none" stroke="#1f5fa8" points="{points}"/>'
        f'<line x1="{at:.1f}" x2="{at:.1f}" y1="20" y2="360" stroke="#b33" stroke-dasharray="4"/>'
        f'<text x="{at + 4:.1f}" y="32">SIGKILL</text><text x="2" y="24">{high:.2f}</text>'
        f'<text x="2" y="362">{low:.2f}</text><text x="690" y="380">{tokens[-1] / 1e6:.1f}M tokens</text></svg>'
    )


def main() -> int:
    """Run the checks asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=CHECKS[:3])
    parser.add_argument("--shape", choices=SHAPES, default="gpt2-124m")
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--batch-tokens", type=int, default=524_288)
    parser.add_argument(
        "--tokens", type=int, help="most tokens of the run; default 100 million, on CPU 200 steps"
    )
    parser.add_argument("--seconds", type=float, default=300.0, help="most seconds of the run")
    parser.add_argument(
        "--compile", action="store_true", help="compile on a CPU too, as a rehearsal of a GPU"
    )
    parser.add_argument("--threads", type=int, help="on a CPU; default 1")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    cuda = asked.device != "cpu"
    code = 0
    with tempfile.TemporaryDirectory(prefix="onward-gpu-checks-") as root:
        small = Plan(
            shape="llama-9m-odd" if cuda else "tiny-odd",
            length=512 if cuda else 64,
            sequences_per_step=16,
            micro_batch=8,
            peer_micro_batch=8,
            steps=24,
            precision="bf16",
            device=asked.device,
            compile=cuda or asked.compile,
            threads=asked.threads or (4 if cuda else 1),
            root=f"{root}/small",
        )
        most = asked.tokens or (100_000_000 if cuda else 200 * asked.batch_tokens)
        large = replace(
            small,
            shape=asked.shape,
            length=asked.length,
            sequences_per_step=asked.batch_tokens // asked.length,
            micro_batch=1,
            steps=math.ceil(most / asked.batch_tokens),
            text="sources",
            root=f"{root}/large",
        )
        checks: dict[str, tuple[Plan, Callable[[], dict[str, Any]]]] = {
            "masking": (small, lambda: masking(small)),
            "resume": (small, lambda: resume(small)),
            "run": (large, lambda: run(large, asked.seconds, asked.out)),
            "profile": (large, lambda: profile(large)),
        }
        for name in asked.only:
            began = time.monotonic()
            plan, check = checks[name]
            if not plan.path("spec.json").exists():
                make_world(plan)
            found = one_check(check, plan, asked.out)
            found |= {"check": name, "seconds": round(time.monotonic() - began, 1), **machine(small)}
            print(f"{name}: {'holds' if found['passed'] else 'FAILS'} ({found['seconds']} s)", flush=True)
            print(json.dumps(found), flush=True)
            if asked.out is not None:
                (asked.out / f"{name}.json").write_text(json.dumps(found) + "\n", encoding="utf-8")
            code |= not found["passed"]
    return code


if __name__ == "__main__":
    sys.exit(main())
