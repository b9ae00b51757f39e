"""`auto` is a rule: the same shape and memory give the same answer, whatever the machine does meanwhile."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from transformers import GPT2Config

from storage.errors import ConfigError
from tasks.training import execution
from tasks.training.config import Execution, parse_spec
from tasks.training.model import Shape, shape_of
from tests.tasks.training.helpers import World, llama_config

SMOLLM = Shape(134_515_008, 134_515_008, 30, 576, 1536, 576, 49_152)


def test_the_shape_counts_a_tied_head_once() -> None:
    tied, untied = shape_of(llama_config()), shape_of(llama_config(tie_word_embeddings=False))
    assert tied.parameters == untied.parameters - 96 * 32
    assert tied.products == untied.products
    assert shape_of(GPT2Config()).parameters == 124_439_808


def test_cpu_takes_about_4096_tokens_in_even_parts(world: World, tmp_path: Path) -> None:
    identity = parse_spec(world.spec(tmp_path)).identity
    identity = replace(identity, sequence_length=512, sequences_per_step=20)
    resolved = execution.resolve(Execution(device="cpu"), SMOLLM, identity)
    assert resolved["micro_batch"] == 7
    assert resolved["threads"] == execution.usable_cores()
    assert resolved["compile"] is False and resolved["gradient_checkpointing"] is False


@pytest.mark.parametrize(("gigabytes", "plain", "checkpointed"), [(8, 1, 10), (24, 7, 80), (141, 57, 500)])
def test_what_fits_follows_memory(
    world: World, tmp_path: Path, gigabytes: int, plain: int, checkpointed: int
) -> None:
    identity = replace(parse_spec(world.spec(tmp_path)).identity, sequence_length=2048, precision="bf16")
    fits = [
        execution._sequences_that_fit(SMOLLM, identity, gigabytes * 10**9, flag) for flag in (False, True)
    ]
    assert fits[0] == pytest.approx(plain, abs=max(1, plain // 4))
    assert checkpointed / 3 < fits[1] < checkpointed * 3


def test_a_device_that_is_not_here_is_refused(world: World, tmp_path: Path) -> None:
    identity = parse_spec(world.spec(tmp_path)).identity
    for device in ("cuda:63", "abacus", "meta"):
        with pytest.raises(ConfigError, match=device):
            execution.resolve(Execution(device=device), SMOLLM, identity)


def test_flops_count_causal_attention_once() -> None:
    assert SMOLLM.flops(10, 0) == 60.0 * SMOLLM.products
    assert SMOLLM.flops(0, 2048**2) == pytest.approx(12 * 30 * 576 * 2048 / 2 * 2048)
