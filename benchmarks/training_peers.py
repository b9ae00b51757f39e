"""One trainer of the comparison, in its own process, warmed up. It takes steps on command.

    python benchmarks/training_peers.py PEER PLAN.json

Standard input: a number of steps per line. Standard output: a JSON line after warming up, and one for each input
line. All peers get the same packed sequences, AdamW (fused, the same two groups), constant rate, clipping norm and
precision. They differ only in what is measured.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.training_world import OPTIMIZER, RATE, Plan, sequences_of
from tasks.training.attention import register
from tasks.training.read_spec import parse_spec
from tasks.training.update.optimizer import split_parameters

WARM_UP = 2
"""Steps before anything is measured. They compile, load and allocate everything."""


class Gate:
    """Lets a training loop step on command. `passed()` is called after each step."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._left = WARM_UP
        self._began = time.perf_counter()
        self._cpu = time.process_time()
        self._steps = WARM_UP
        self.first_loss: float | None = None

    def passed(self) -> bool:
        """Count a step. After the last step of a round, answer and wait for the next round. True: it is over."""
        self._left -= 1
        if self._left > 0:
            return False
        cuda = self._plan.device.startswith("cuda")
        if cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - self._began
        answer = {
            "seconds": seconds,
            "cpu_seconds": time.process_time() - self._cpu,
            "steps": self._steps,
            "first_loss": self.first_loss,
            "peak_memory": torch.cuda.max_memory_allocated()
            if cuda
            else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "compiled": _compiled(),
        }
        print(json.dumps(answer), flush=True)
        line = sys.stdin.readline()
        if not line.strip():
            return True
        self._left = self._steps = int(line)
        self._began, self._cpu = time.perf_counter(), time.process_time()
        return False


def onward(plan: Plan, gate: Gate, **changes: Any) -> None:
    """`train` itself, as `python -m tasks.training` calls it, with journal and checks.

    It asks before each step whether to stop; the gate holds it there.
    """
    from tasks.training.loop import train

    spec = json.loads(plan.path("spec.json").read_text(encoding="utf-8"))
    spec["execution"] |= changes
    if changes:  # more than one of its kind may be among the peers
        spec["paths"]["work"] += f"-{sys.argv[1]}"
    work = Path(spec["paths"]["work"])
    work.mkdir(exist_ok=True)
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        if asked == 2:
            gate.first_loss = json.loads((work / "journal.jsonl").read_text(encoding="utf-8"))["loss"]
        return asked > 1 and gate.passed()

    train(parse_spec(spec), stop, lambda line: print(line, file=sys.stderr))


def onward_compiled(plan: Plan, gate: Gate) -> None:
    """The same with `execution.compile: true`, which `auto` does not choose for a run this short on a CPU."""
    onward(plan, gate, compile=True)


def onward_together(plan: Plan, gate: Gate) -> None:
    """Compiled, with q, k and v as one product, and gate and up: on a GPU it is so by rule."""
    onward(plan, gate, compile=True, fuse_products=True)


def onward_apart(plan: Plan, gate: Gate) -> None:
    """Compiled, with these products apart: on a CPU it is so by rule."""
    onward(plan, gate, compile=True, fuse_products=False)


def onward_tuned(plan: Plan, gate: Gate) -> None:
    """Compiled, with each kernel chosen by its timing: training.py sets the environment for it."""
    onward(plan, gate, compile=True, deterministic=False)


def hf_trainer(plan: Plan, gate: Gate) -> None:
    """transformers' Trainer as examples/pytorch/language-modeling/run_clm.py sets it up: default collator, sdpa.

    Documents are separated by restarting `position_ids` without an attention mask. transformers makes a block mask
    for sdpa from them (DataCollatorWithFlattening relies on this; here for rows of one length each).
    """
    from transformers import Trainer, TrainerCallback, TrainingArguments, default_data_collator

    class Sequences(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __init__(self) -> None:
            self.rows = sequences_of(plan, 0, plan.steps * plan.sequences_per_step)

        def __len__(self) -> int:
            return len(self.rows["inputs"])

        def __getitem__(self, index: int) -> dict[str, Tensor]:
            targets = self.rows["targets"][index]
            return {
                "input_ids": self.rows["inputs"][index],
                "position_ids": self.rows["positions"][index],
                "labels": targets,
                "shift_labels": targets,  # already shifted by one
            }

    class InOrder(Trainer):
        def _get_train_sampler(self, *_: Any) -> Any:  # in the order of the other peers
            return torch.utils.data.SequentialSampler(self.train_dataset)

        def compute_loss(self, *arguments: Any, **options: Any) -> Any:
            loss = super().compute_loss(*arguments, **options)
            if self.state.global_step == 0:
                value = loss[0] if isinstance(loss, tuple) else loss
                gate.first_loss = (gate.first_loss or 0.0) + float(value.detach())
            return loss

    class Held(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
            control.should_training_stop = gate.passed()
            return control

    model = _model(plan, "sdpa")
    model.config.use_cache = False
    optimizer = _optimizer(model)
    arguments = TrainingArguments(
        output_dir=str(plan.path("hf")),
        per_device_train_batch_size=plan.peer_micro_batch,
        gradient_accumulation_steps=plan.sequences_per_step // plan.peer_micro_batch,
        max_steps=plan.steps,
        max_grad_norm=OPTIMIZER["clip"],
        bf16=plan.precision == "bf16",
        use_cpu=plan.device == "cpu",
        report_to=[],
        save_strategy="no",
        remove_unused_columns=False,  # shift_labels is an argument of the loss, not of forward
        disable_tqdm=True,
        dataloader_pin_memory=plan.device != "cpu",
    )
    constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    trainer = InOrder(
        model=model,
        args=arguments,
        train_dataset=Sequences(),
        data_collator=default_data_collator,
        optimizers=(optimizer, constant),
        callbacks=[Held()],
    )
    trainer.train()


def plain_loop(plan: Plan, gate: Gate) -> None:
    """A short loop like nanoGPT's: whole logits, autocast, fused AdamW, clipping, compiled on a GPU; no journal.

    Rows [sequences, length] with a boolean mask over documents, through sdpa.
    """
    model = _model(plan, "sdpa")
    forward: Any = torch.compile(model) if plan.compile else model

    def losses(row: dict[str, Tensor]) -> Tensor:
        documents = row["documents"]
        causal = torch.ones(plan.length, plan.length, dtype=torch.bool, device=documents.device).tril()
        mask = (documents[:, None, :, None] == documents[:, None, None, :]) & causal
        logits = forward(
            input_ids=row["inputs"], position_ids=row["positions"], attention_mask=mask, use_cache=False
        ).logits
        return functional.cross_entropy(
            logits.flatten(0, 1).float(), row["targets"].flatten(), reduction="sum"
        )

    _loop(plan, gate, model, losses, _rows(plan))


def plain_apart(plan: Plan, gate: Gate) -> None:
    """The same loop with this project's attention by document. It shows what the rest of the trainer adds or saves."""
    from tasks.training.feed import DeviceBatch

    model = _language_model(plan)

    def losses(row: DeviceBatch) -> Tensor:
        logits = model.head(model.hidden(row.inputs, row.positions, row.packing))
        return functional.cross_entropy(logits.float(), row.targets, reduction="sum")

    _loop(plan, gate, model.whole, losses, _packed(plan, plan.peer_micro_batch))


def raw(plan: Plan, gate: Gate) -> None:
    """The limit: forward and backward of one step's rows, repeated. No data, optimizer, clipping or journal."""
    model = _language_model(plan)
    resolved = plan.path("work") / "execution.json"
    chunk = json.loads(resolved.read_text(encoding="utf-8"))["loss_chunk"] if resolved.exists() else 1024
    per_step = plan.sequences_per_step // plan.micro_batch
    packed = _packed(plan, plan.micro_batch)
    rows = [next(packed) for _ in range(per_step)]
    targets = sum(int((row.targets >= 0).sum()) for row in rows)
    while True:
        total = 0.0
        for row in rows:
            with model.autocast():
                hidden = model.hidden(row.inputs, row.positions, row.packing)
            parts = zip(hidden.detach().split(chunk), row.targets.split(chunk), strict=True)
            found = [model.loss.backward(part, target, targets) for part, target in parts]
            total += (
                float(sum(losses.sum() for losses, _ in found)) / targets if gate.first_loss is None else 0.0
            )
            gradients = [gradient for _, gradient in found]
            torch.autograd.backward(hidden, torch.cat(gradients))
        gate.first_loss = gate.first_loss or total
        for parameter in model.whole.parameters():
            parameter.grad = None
        if gate.passed():
            return


def _loop(plan: Plan, gate: Gate, model: Any, losses: Callable[[Any], Tensor], rows: Iterator[Any]) -> None:
    optimizer = _optimizer(model)
    parts = plan.sequences_per_step // plan.peer_micro_batch
    for step in range(plan.steps):
        row = next(rows)
        targets = plan.sequences_per_step * plan.length
        total = 0.0
        for part in range(parts):
            with _autocast(plan):
                loss = losses(row) / targets
            if part + 1 < parts:
                row = next(rows)
            loss.backward()
            if step == 0:
                total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER["clip"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step == 0:
            gate.first_loss = total * targets / _targets(plan)
        if gate.passed():
            return


def _rows(plan: Plan) -> Iterator[dict[str, Tensor]]:
    rows = sequences_of(plan, 0, plan.steps * plan.sequences_per_step)
    for first in range(0, len(rows["inputs"]), plan.peer_micro_batch):
        part = {name: tensor[first : first + plan.peer_micro_batch] for name, tensor in rows.items()}
        if plan.device != "cpu":
            part = {name: t.pin_memory().to(plan.device, non_blocking=True) for name, t in part.items()}
        yield part


def _packed(plan: Plan, micro_batch: int) -> Iterator[Any]:
    from tasks.training.data import Corpus
    from tasks.training.feed import Feed, FixedSize

    spec = parse_spec(json.loads(plan.path("spec.json").read_text(encoding="utf-8")))
    plan.path("packed").mkdir(exist_ok=True)
    paths = spec.paths.__class__(**{**vars(spec.paths), "work": plan.path("packed")})
    corpus = Corpus.open(spec.identity, paths, 1 << 30)
    most = corpus.most_documents(0, plan.steps, micro_batch)
    feed = Feed(
        corpus,
        torch.device(plan.device),
        micro_batch=micro_batch,
        share=(0, plan.sequences_per_step),
        last_step=plan.steps,
        fixed=FixedSize(plan.length, most) if plan.compile else None,
    )
    for step in range(1, plan.steps + 1):
        yield from feed.rows(step)
    feed.close()


def _targets(plan: Plan) -> int:
    rows = sequences_of(plan, 0, plan.sequences_per_step)
    return int((rows["targets"] >= 0).sum())


def _model(plan: Plan, attention: str) -> Any:
    from transformers import AutoModelForCausalLM

    loader: Any = AutoModelForCausalLM
    model = loader.from_pretrained(plan.path("model"), attn_implementation=attention, dtype=torch.float32)
    return model.to(plan.device).train()


def _language_model(plan: Plan) -> Any:
    from tasks.training.model import load_model, read_config

    register(plan.compile)
    identity = parse_spec(json.loads(plan.path("spec.json").read_text(encoding="utf-8"))).identity
    execution = {
        "device": plan.device,
        "compile": plan.compile,
        "fuse_products": plan.device != "cpu",
        "gradient_checkpointing": "none",
    }
    start = plan.path("model")
    return load_model(start, read_config(start, identity), identity, execution)


def _optimizer(model: Any) -> torch.optim.AdamW:
    decayed, plain = split_parameters(model)
    groups = [
        {"params": [parameter for _, parameter in decayed], "weight_decay": OPTIMIZER["weight_decay"]},
        {"params": [parameter for _, parameter in plain], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=RATE, betas=OPTIMIZER["betas"], eps=OPTIMIZER["eps"], fused=True)


def _autocast(plan: Plan) -> AbstractContextManager[Any]:
    if plan.precision == "bf16":
        return torch.autocast(torch.device(plan.device).type, dtype=torch.bfloat16)
    return nullcontext()


def _compiled() -> int:
    """Number of frames that torch.compile has compiled in this process so far."""
    if "torch._dynamo.utils" not in sys.modules:
        return 0
    counters: Any = sys.modules["torch._dynamo.utils"].counters
    return int(counters["frames"]["total"])


PEERS: dict[str, Callable[[Plan, Gate], None]] = {
    "onward": onward,
    "onward_compiled": onward_compiled,
    "onward_together": onward_together,
    "onward_apart": onward_apart,
    "onward_tuned": onward_tuned,
    "hf_trainer": hf_trainer,
    "plain_loop": plain_loop,
    "plain_apart": plain_apart,
    "raw": raw,
}


def main() -> None:
    plan = Plan(**json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    torch.set_num_threads(plan.threads)
    PEERS[sys.argv[1]](plan, Gate(plan))


if __name__ == "__main__":
    main()
