"""Keys: the same identity gives the same key anywhere; what has no canonical form raises."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.artifact import Chain, Input
from storage.keys import canonical_json, difference, key_inputs, recorded_inputs, stage_key

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), plain), st.randoms())
def test_the_order_of_fields_does_not_count(value, random):
    items = list(value.items())
    random.shuffle(items)
    assert canonical_json(dict(items)) == canonical_json(value)


@given(plain)
def test_canonical_json_reads_back_as_the_same_value(value):
    assert json.loads(canonical_json(value)) == value


@given(plain, plain)
def test_different_values_have_different_texts(one, other):
    # in JSON's own terms: 1 and 1.0, True and 1 are different values here
    assert (canonical_json(one) == canonical_json(other)) == (
        json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    )


@pytest.mark.parametrize(
    "value",
    [
        {1, 2},
        Path("x"),
        b"x",
        object(),
        {"a": {"b": {3}}},
        {1: "x"},
        float("nan"),
        float("inf"),
        [float("-inf")],
    ],
)
def test_a_value_without_canonical_form_raises(value):
    with pytest.raises((TypeError, ValueError)):
        canonical_json(value)


def test_the_error_names_the_place():
    with pytest.raises(TypeError, match=r"\$\.a\[1\]\.b is a set"):
        canonical_json({"a": [1, {"b": {2}}]})


def test_stage_version_config_and_inputs_each_count():
    base = stage_key("a", 1, {"x": 1}, {"y": "d"})
    others = [
        stage_key("b", 1, {"x": 1}, {"y": "d"}),
        stage_key("a", 2, {"x": 1}, {"y": "d"}),
        stage_key("a", 1, {"x": 2}, {"y": "d"}),
        stage_key("a", 1, {"x": 1}, {"y": "e"}),
    ]
    assert len({base, *others}) == 5


def _input(digest: str) -> Input:
    return Input("stage", "k" * 64, "part", digest, Path("/nowhere"), ())


@dataclass(frozen=True)
class _Inputs:
    one: Input
    many: tuple[Input, ...]
    chain: Chain
    plain: dict
    path: str = field(metadata={"in_key": False})


def test_inputs_count_by_digest_and_a_chain_by_its_last_link():
    inputs = _Inputs(
        _input("a"), (_input("b"), _input("c")), Chain((_input("d"), _input("e"))), {"n": 1}, "/somewhere"
    )
    assert key_inputs(inputs) == {"one": "a", "many": ["b", "c"], "chain": "e", "plain": {"n": 1}}
    recorded = recorded_inputs(inputs)
    assert recorded["one"] == {"stage": "stage", "key": "k" * 64, "part": "part", "digest": "a"}
    assert "path" not in recorded


@dataclass(frozen=True)
class _Made:
    stage: str
    part: Input
    more: Input | None = None
    note: str = field(default="", metadata={"in_key": False})


def test_a_dataclass_inside_counts_as_the_mapping_of_what_is_set():
    @dataclass(frozen=True)
    class Inputs:
        made: tuple[_Made, ...]

    @dataclass(frozen=True)
    class AsMapping:
        made: tuple[dict[str, object], ...]

    one, two = _input("one"), _input("two")
    typed = Inputs((_Made("a", one, note="of no account"), _Made("b", two, more=one)))
    plainly = AsMapping(({"stage": "a", "part": one}, {"stage": "b", "part": two, "more": one}))
    assert key_inputs(typed) == key_inputs(plainly)
    assert recorded_inputs(typed) == recorded_inputs(plainly)
    assert key_inputs(typed)["made"][1] == {"stage": "b", "part": two.digest, "more": one.digest}


def test_the_difference_of_two_keys_is_named_by_field():
    before = {"config": {"a": 1, "b": {"c": [1, 2]}}, "inputs": {"x": "d1"}}
    after = {"config": {"a": 1, "b": {"c": [1, 3]}}, "inputs": {"x": "d2"}, "version": 2}
    assert [d.path for d in difference(before, after)] == ["config.b.c[1]", "inputs.x", "version"]
    assert str(difference(before, after)[0]) == "config.b.c[1]: 2 → 3"
    assert difference(before, before) == []
