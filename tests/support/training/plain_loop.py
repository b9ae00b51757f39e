"""A plain loop in PyTorch: what the trainer must do, written out. Documents one by one, whole logits, torch's own AdamW."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from tasks.training.data import Corpus
from tasks.training.read_spec import parse_spec
from tasks.training.update.optimizer import split_parameters
from tasks.training.update.schedule import learning_rate
from tests.support.training.world import PER_STEP, VOCABULARY, World


def plain_loop(
    world: World, work: Path, steps: int, attention: str | None = None, **changes: Any
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The losses of so many steps over the world, in nats per token, and the weights after them.

    `attention`: another than transformers chooses, by its name there. `changes`: of the specification, as in `World.spec`.
    """
    spec = parse_spec(world.spec(work, identity__last_step=steps, **changes))
    corpus = Corpus.open(spec.identity, spec.paths, VOCABULARY)
    model = AutoModelForCausalLM.from_pretrained(world.export, attn_implementation=attention)
    model.get_input_embeddings().padding_idx = None  # a document's token like any other
    decayed, plain = split_parameters(model)
    groups = [
        {"params": [p for _, p in decayed], "weight_decay": 0.1},
        {"params": [p for _, p in plain], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    losses = []
    for step in range(1, steps + 1):
        total = torch.zeros(())
        for batch in corpus.micro_batches(step, PER_STEP):
            documents = list(batch.documents)
            for x, y in zip(batch.inputs[0].split(documents), batch.targets.split(documents), strict=True):
                logits = model(x[None], use_cache=False).logits[0]
                total = total + torch.nn.functional.cross_entropy(logits, y, reduction="sum")
        loss = total / corpus.targets(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(spec.identity.schedule, step)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, model.state_dict()
