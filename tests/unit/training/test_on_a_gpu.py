"""What runs only on a GPU, on tensors without memory: every tensor is made on the device, and every kernel takes what it
is given.

A build of torch without CUDA computes shapes on a device that is called cuda:0, but cannot slice or differentiate there,
and has no autocast. So a body runs forward whose code slices nothing (GPT-2's), with bf16 weights; head, clipping and
update run on torch's device `meta`, which refuses a tensor of another device too. A build with CUDA takes the whole step
but for backward, with or without a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPT2Config, GPTNeoXConfig

from tasks.training.attention import RowDocuments, register
from tasks.training.fused import fuse_activations
from tasks.training.model import attention_of, causal_class, halves, quiet
from tasks.training.process.processes import ALONE
from tasks.training.process.sharding import clip_gradients
from tasks.training.read_spec import parse_spec
from tasks.training.recompute import to_train
from tasks.training.spec import Identity
from tasks.training.update.optimizer import make_optimizer, prepare_step
from tests.support.training.world import VOCABULARY, World, llama_config

LENGTHS = (17, 1, 22)
TOKENS, CHUNK, WIDTH = sum(LENGTHS), 16, 64
NO_DROPOUT = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
CUDA, META = torch.device("cuda:0"), torch.device("meta")


def configs() -> dict[str, Any]:
    ids = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}
    return {
        "gpt2": GPT2Config(**ids, n_embd=WIDTH, n_layer=2, n_head=4, n_positions=64, **NO_DROPOUT),
        "llama, grouped heads": llama_config(hidden_size=WIDTH, num_hidden_layers=2, num_key_value_heads=2),
        "neox": GPTNeoXConfig(
            **ids, hidden_size=WIDTH, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
        ),
    }


FAMILIES = tuple(configs())


def on(device: torch.device, whole: Any) -> None:
    """Put tensors without memory on the device in the place of each weight and buffer; what is tied stays tied."""
    made: dict[int, Tensor] = {}
    for module in whole.modules():
        for table in (module._parameters, module._buffers):
            for name, held in table.items():
                if held is not None:
                    like = torch.empty(held.shape, dtype=held.dtype, device=device)
                    own = nn.Parameter(like) if isinstance(held, nn.Parameter) else like
                    table[name] = made.setdefault(id(held), own)


def a_model(config: Any, device: torch.device, precision: str) -> Any:
    register(False)
    maker = causal_class(config)
    dtype = torch.bfloat16 if precision == "bf16_weights" else torch.float32
    with quiet():
        with META:
            whole = maker._from_config(config, attn_implementation=attention_of(maker, config), dtype=dtype)
        on(device, whole)
    fuse_activations(whole)
    model = halves(whole, device, precision)
    to_train(whole)
    return model


class Operations(TorchDispatchMode):
    """Names of the operations that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def fake() -> Iterator[None]:
    with FakeTensorMode():
        yield


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("fixed", [False, True])
def test_a_bodys_forward_stays_on_the_gpu_and_attends_by_the_kernel_for_documents(fixed: bool) -> None:
    model = a_model(configs()["gpt2"], CUDA, "bf16_weights")
    documents = 8 if fixed else len(LENGTHS)
    packing = RowDocuments(
        LENGTHS, torch.zeros(documents + 1, dtype=torch.int32, device=CUDA), max(LENGTHS), fixed
    )
    ids = torch.zeros((1, TOKENS), dtype=torch.int64, device=CUDA)
    with torch.no_grad(), Operations() as ran:
        hidden = model.hidden(ids, ids, packing)
    assert hidden.device == CUDA and hidden.shape == (TOKENS, WIDTH)
    kernels = [name for name in ran.names if "varlen" in name]
    assert len(kernels) == 2, "one call a layer"
    assert not [name for name in ran.names if "scaled_dot_product" in name or "repeat_interleave" in name]


@pytest.mark.usefixtures("fake")
def test_a_tensor_that_stayed_on_the_host_is_noticed() -> None:
    model = a_model(configs()["gpt2"], CUDA, "bf16_weights")
    packing = RowDocuments(LENGTHS, torch.zeros(4, dtype=torch.int32, device=CUDA), max(LENGTHS))
    ids = torch.zeros((1, TOKENS), dtype=torch.int64, device=CUDA)
    with pytest.raises(RuntimeError, match="device"), torch.no_grad():
        model.hidden(ids, ids.to("cpu"), packing)


@pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="this build of torch has no CUDA")
@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_with_cuda_forward_loss_clipping_and_the_fused_update_stay_on_the_gpu(
    family: str, fixed: bool
) -> None:
    model = a_model(configs()[family], CUDA, "bf16_weights")
    documents = 8 if fixed else len(LENGTHS)
    bounds = torch.zeros(documents + 1, dtype=torch.int32, device=CUDA)
    ids = torch.zeros((1, TOKENS), dtype=torch.int64, device=CUDA)
    with torch.no_grad(), Operations() as ran:
        hidden = model.hidden(ids, ids, RowDocuments(LENGTHS, bounds, max(LENGTHS), fixed))
    assert len([name for name in ran.names if "varlen" in name]) == 2
    assert not [name for name in ran.names if "repeat_interleave" in name], "grouped heads go to the kernel"
    losses, _ = model.loss.backward(hidden, ids[0], TOKENS)
    for weight in model.whole.parameters():
        if weight.grad is None:
            weight.grad = torch.empty_like(weight)
    norm = clip_gradients(model.whole.parameters(), 1.0, ALONE)
    optimizer = torch.optim.AdamW(model.whole.parameters(), lr=1e-3, fused=True)
    optimizer.step()
    moments = [state["exp_avg"] for state in optimizer.state.values()]
    assert {held.device for held in (losses, norm, *moments)} == {CUDA}


OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "moments of 8 bits": ("bf16", {"states": "8bit"}),
    "pulled to the base": ("bf16", {"pull_to_base": 0.1}),
    "float32, pulled": ("fp32", {"pull_to_base": 0.1}),
}
"""Those of this project: torch's fused AdamW refuses the device `meta`."""


@pytest.fixture
def identity(world: World, tmp_path: Path) -> Identity:
    return parse_spec(world.spec(tmp_path)).identity


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_clipping_and_update_make_nothing_on_the_host(
    family: str, kind: str, identity: Identity
) -> None:
    precision, settings = OPTIMIZERS[kind]
    model = a_model(configs()[family], META, precision)
    own = replace(identity, precision=precision, optimizer=replace(identity.optimizer, **settings))
    base = {name: weight.detach().clone() for name, weight in model.whole.named_parameters()}
    optimizer = make_optimizer(model.whole, own, base if "pull_to_base" in settings else None)
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    hidden = torch.empty((TOKENS, WIDTH), dtype=dtype, device=META)
    targets = torch.empty(TOKENS, dtype=torch.int64, device=META)
    for step in (1, 2):
        for part, target in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True):
            losses, gradient = model.loss.backward(part, target, TOKENS)
            assert losses.device == META and gradient.dtype == dtype and gradient.shape == part.shape
        for weight in model.whole.parameters():
            if weight.grad is None:
                weight.grad = torch.empty(weight.shape, dtype=torch.float32, device=META)
        norm = clip_gradients(model.whole.parameters(), 1.0, ALONE)
        prepare_step(optimizer, 1e-3, step)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        model.loss.renew()
    assert norm.device == META
    moments = [
        held for state in optimizer.state.values() for held in state.values() if isinstance(held, Tensor)
    ]
    assert moments and {held.device for held in moments if held.dim()} == {META}
