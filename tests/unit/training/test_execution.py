"""`auto` is a rule: the same shape and memory give the same answer, whatever the machine does meanwhile."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config

from storage.errors import ConfigError
from tasks.training.device import execution, memory
from tasks.training.device.activations import Activations
from tasks.training.device.out_of_memory import smaller
from tasks.training.model import shape_of
from tasks.training.read_spec import parse_spec
from tasks.training.recompute import MODES
from tasks.training.spec import Execution, Identity
from tasks.training.state.sealed import read_sealed
from tests.support.training.families import SMOLLM, counted
from tests.support.training.world import World, llama_config


def resolved(asked: Execution, identity: Any, **changes: Any) -> dict[str, Any]:
    return execution.resolve(asked, SMOLLM, replace(identity, **changes), count=counted)


def test_the_shape_counts_a_tied_head_once() -> None:
    tied, untied = shape_of(llama_config()), shape_of(llama_config(tie_word_embeddings=False))
    assert tied.parameters == untied.parameters - 96 * 32
    assert tied.products == untied.products
    assert tied.embeddings == 96 * 32
    assert shape_of(GPT2Config()).parameters == 124_439_808


def test_cpu_takes_about_4096_tokens_in_even_parts(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "host_memory", lambda: 64 << 30)
    identity = parse_spec(world.spec(tmp_path)).identity
    found = resolved(Execution(device="cpu"), identity, sequence_length=512, sequences_per_step=20)
    assert found["micro_batch"] == 7
    assert found["threads"] == execution.usable_cores()
    assert found["compile"] is False and found["gradient_checkpointing"] == "none"
    assert found["deterministic"] is True


def test_what_is_asked_for_is_not_counted(world: World, tmp_path: Path) -> None:
    def never(mode: str) -> Activations:
        raise AssertionError(mode)

    identity = parse_spec(world.spec(tmp_path)).identity
    for mode in MODES:
        asked = Execution(device="cpu", micro_batch=3, gradient_checkpointing=mode)
        found = execution.resolve(asked, SMOLLM, identity, count=never)
        assert (found["micro_batch"], found["gradient_checkpointing"]) == (3, mode)


def test_a_device_that_is_not_here_is_refused(world: World, tmp_path: Path) -> None:
    identity = parse_spec(world.spec(tmp_path)).identity
    for device in ("cuda:63", "abacus", "meta"):
        with pytest.raises(ConfigError, match=device):
            resolved(Execution(device=device), identity)


def test_flops_count_causal_attention_once() -> None:
    assert SMOLLM.flops(10, 0) == 60.0 * SMOLLM.products
    assert SMOLLM.flops(0, 2048**2) == pytest.approx(12 * 30 * 576 * 2048 / 2 * 2048)


def test_what_was_settled_stays_and_a_file_of_before_is_read(world: World, tmp_path: Path) -> None:
    identity = parse_spec(world.spec(tmp_path)).identity
    path = tmp_path / "execution.json"
    first = resolved(Execution(device="cpu", micro_batch=2, gradient_checkpointing="selective"), identity)
    said: list[str] = []
    assert execution.settle(path, first, Execution(), said.append, begun=False) == first and not said
    old = {name: value for name, value in first.items() if name not in ("deterministic", "sharding")}
    path.write_text(json.dumps({**old, "gradient_checkpointing": True}))
    asked = Execution(device="cpu", micro_batch=2, gradient_checkpointing="none")
    kept = execution.settle(path, resolved(asked, identity), asked, said.append, begun=True)
    assert kept["gradient_checkpointing"] == "full" and kept["deterministic"] is True
    assert kept["sharding"] == "none"
    assert any("gradient_checkpointing stays full" in line for line in said)


WRONG_AT_FIRST: dict[str, tuple[Any, Any]] = {
    "device": ("cuda:7", "cpu"),
    "micro_batch": (1, 2),
    "threads": (1_000_000_000, 2),
    "compile": (True, False),
    "fuse_products": (True, False),
    "gradient_checkpointing": ("full", "none"),
    "deterministic": (False, True),
    "loss_chunk": (1, 2),
    "sharding": ("full", "none"),
    "processes": (2, 1),
    "attention": ("varlen", "sdpa"),
}
"""Values of a first try that failed before any checkpoint, and those of the next."""


@pytest.mark.parametrize("field", sorted(WRONG_AT_FIRST))
def test_what_was_wrong_at_first_can_be_changed_until_there_is_a_checkpoint(
    world: World, tmp_path: Path, field: str
) -> None:
    identity = parse_spec(world.spec(tmp_path)).identity
    path, said = tmp_path / "execution.json", list[str]()
    wrong, right = WRONG_AT_FIRST[field]
    asked = Execution(device="cpu", threads=2, micro_batch=2)
    now = resolved(asked, identity) | {field: right}
    execution.settle(path, now | {field: wrong}, asked, said.append, begun=False)
    assert execution.settle(path, now, asked, said.append, begun=False) == now
    assert read_sealed(path) == now and not said


def test_what_ran_out_of_memory_stays_small_also_before_the_first_checkpoint(
    world: World, tmp_path: Path
) -> None:
    identity = parse_spec(world.spec(tmp_path)).identity
    path, said = tmp_path / "execution.json", list[str]()
    asked = Execution(device="cpu", micro_batch=4)
    first = resolved(asked, identity, sequences_per_step=8)
    less = smaller(first, step=1)
    assert less is not None and less["micro_batch"] == 2
    path.write_text(json.dumps(less))
    assert execution.settle(path, first, asked, said.append, begun=False) == less
    other = resolved(Execution(device="cpu", micro_batch=3), identity, sequences_per_step=8)
    assert execution.settle(path, other, asked, said.append, begun=False) == other, "now it is asked for less"


def test_products_are_put_together_where_a_model_is_compiled_and_on_a_gpu_by_itself(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = parse_spec(world.spec(tmp_path, identity__precision="bf16")).identity

    def together(**asked: Any) -> bool:
        found: bool = resolved(Execution(micro_batch=1, gradient_checkpointing="none", **asked), identity)[
            "fuse_products"
        ]
        return found

    assert not together(device="cpu") and not together(device="cpu", compile=True)
    assert together(device="cpu", compile=True, fuse_products=True)
    assert not together(device="cpu", fuse_products=True), "auto compiles nothing this short"
    with pytest.raises(ConfigError, match=r"training\.execution\.fuse_products"):
        together(device="cpu", compile=False, fuse_products=True)
    for name, answer in (
        ("device_of", "cuda"),
        ("_check_gpus", None),
        ("memory_of", 8 << 30),
        ("device_name", "H200"),
    ):
        monkeypatch.setattr(execution, name, lambda *_, answer=answer: answer)
    monkeypatch.setattr(execution, "attention_path", lambda *_: execution.VARLEN_PATH)
    assert together(compile=True) and not together(compile=True, fuse_products=False)


def test_a_wrong_mode_is_refused_with_its_field(world: World, tmp_path: Path) -> None:
    for wrong in ("whole", 1, None):
        with pytest.raises(ConfigError, match=r"execution\.gradient_checkpointing"):
            parse_spec(world.spec(tmp_path, execution__gradient_checkpointing=wrong))
    with pytest.raises(ConfigError, match=r"execution\.deterministic"):
        parse_spec(world.spec(tmp_path, execution__deterministic="yes"))


def test_it_compiles_by_itself_only_where_one_graph_holds_it(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = parse_spec(world.spec(tmp_path, identity__precision="bf16")).identity
    shape = shape_of(llama_config())

    def compiles(changed: Identity = identity, kind: str = "cuda", attention: str = "varlen") -> bool:
        return execution.compiles(kind, attention, changed, shape, 2)

    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr("shutil.which", lambda name: name)
    assert compiles()
    assert not compiles(attention="sdpa")
    assert not compiles(replace(identity, dropout=0.1))
    hour = 3600 * 2 * execution.CPU_FLOPS
    tokens = identity.sequences_per_step * identity.sequence_length
    long = replace(identity, last_step=int(1 + hour / shape.flops(tokens, 0)))
    assert compiles(long, "cpu", "sdpa")
    assert not compiles(replace(long, last_step=long.last_step // 2), "cpu", "sdpa")
    assert not compiles(replace(long, dropout=0.1), "cpu", "sdpa")
    monkeypatch.setattr("shutil.which", lambda name: None)
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    assert not compiles() and not compiles(long, "cpu", "sdpa")
    monkeypatch.undo()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not compiles()


def test_a_limit_of_memory_is_what_the_rule_sees(world: World, tmp_path: Path) -> None:
    identity = parse_spec(world.spec(tmp_path)).identity
    assert execution.memory_of("cpu", 1 << 30) == 1 << 30
    assert execution.memory_of("cpu", 1 << 60) == memory.host_memory()
    found = [
        resolved(Execution(device="cpu", device_memory=most), identity, sequence_length=2048)
        for most in (None, 2 * 10**9)
    ]
    assert found[0]["gradient_checkpointing"] == "none" and found[1]["gradient_checkpointing"] != "none"


def test_deterministic_on_a_gpu_is_told_to_the_compiler_and_to_cublas(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch._inductor.config as inductor

    monkeypatch.setattr(inductor, "deterministic", False)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    chosen = {"device": "cuda", "threads": torch.get_num_threads(), "deterministic": False}
    execution.apply(chosen)
    assert inductor.deterministic is False and "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    before = torch.are_deterministic_algorithms_enabled()
    try:
        execution.apply(chosen | {"deterministic": True})
        assert inductor.deterministic is True
    finally:
        torch.use_deterministic_algorithms(before)
    assert os.environ.pop("CUBLAS_WORKSPACE_CONFIG") == ":4096:8"


def test_a_limit_of_memory_is_set_for_the_gpu_as_a_share(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    card = type("Card", (), {"total_memory": 80 * 10**9})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, device: asked.append(share)
    )
    chosen = {"device": "cuda", "threads": torch.get_num_threads(), "deterministic": False}
    for most in (None, 8 * 10**9, 100 * 10**9):
        execution.apply(chosen, most)
    assert asked == [0.1, 1.0]


@pytest.mark.parametrize(
    ("installed", "major", "changes", "path"),
    [
        (True, 9, {}, execution.FA3),
        (True, 8, {}, execution.VARLEN_PATH),
        (False, 9, {}, execution.VARLEN_PATH),
        (True, 9, {"deterministic": True}, execution.VARLEN_PATH),
        (True, 9, {"precision": "fp32"}, "sdpa"),
    ],
)
def test_flash_attention_3_is_taken_where_it_is_and_never_if_deterministic(
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    installed: bool,
    major: int,
    changes: dict[str, Any],
    path: str,
) -> None:
    if installed:
        (tmp_path / "flash_attn_interface.py").write_text("")
        monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 0))
    deterministic = changes.pop("deterministic", False)
    made = {"identity__precision": "bf16"} | {f"identity__{name}": value for name, value in changes.items()}
    identity = parse_spec(world.spec(tmp_path, **made)).identity
    assert execution.attention_path("cuda", identity, deterministic) == path
    assert execution.attention_path("cpu", identity, deterministic) == "sdpa"


def test_what_began_with_flash_attention_3_does_not_go_on_without_it(world: World, tmp_path: Path) -> None:
    chosen = resolved(Execution(device="cpu"), parse_spec(world.spec(tmp_path)).identity)
    with pytest.raises(ConfigError, match="install flash_attn_interface"):
        execution.apply(chosen | {"attention": execution.FA3})
