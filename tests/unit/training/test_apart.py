"""Documents of models whose layers carry state, each in a row of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from tasks.training.apart import LEAST, batches
from tasks.training.attention import RowDocuments
from tests.support.training.families import STATEFUL
from tests.support.training.packed import load
from tests.support.training.world import VOCABULARY, World, save_model

LENGTHS = (11, 3, 1, 20, 7, 9, 3)


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=60))
def test_each_document_is_in_one_batch_and_little_is_filled_up(lengths: list[int]) -> None:
    made = list(batches(lengths))
    assert sorted(number for batch in made for number in batch) == list(range(len(lengths)))
    computed = sum(len(batch) * max(lengths[number] for number in batch) for batch in made)
    assert sum(lengths) >= LEAST * computed


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("family", STATEFUL)
def test_a_document_is_as_if_alone(world: World, tmp_path: Path, family: str, precision: str) -> None:
    """Its logits, in their places; and no bit of it changes with what stands around it."""
    save_model(STATEFUL[family](), tmp_path, spread=2.0)
    model = load(world, tmp_path, precision=precision)
    assert model.apart
    ids = torch.randint(VOCABULARY, (sum(LENGTHS),), generator=torch.Generator().manual_seed(1))
    other = ids.clone()
    other[14:15] += 1
    other[15:35] = (other[15:35] + 5) % VOCABULARY
    packing, positions = RowDocuments(LENGTHS, None, 20), torch.zeros(1, len(ids), dtype=torch.int64)
    with torch.no_grad(), model.autocast():
        mine, changed = (
            model.head(model.hidden(row[None] % VOCABULARY, positions, packing)).float()
            for row in (ids, other)
        )
    plain = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        alone = torch.cat([plain(part[None]).logits[0] for part in ids.split(list(LENGTHS))])
    tolerance = {"fp32": 1e-4, "bf16": 8e-2}[precision]
    torch.testing.assert_close(mine, alone, rtol=0.0, atol=tolerance * float(alone.abs().max()))
    assert torch.equal(mine[:14], changed[:14]) and torch.equal(mine[35:], changed[35:])
    assert not torch.equal(mine[15:35], changed[15:35])
