"""A dataclass of fields means the same to pydantic, which validates it, and to `load`, which reads it without."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from storage.errors import ConfigError
from storage.fields import STRICT, execution, identity, load
from storage.settings import completed, identity_of, identity_values, types_of
from storage.units import Bounds, Count, Seconds


@dataclass(frozen=True)
class Inner:
    """A section inside of another."""

    __pydantic_config__ = STRICT

    kind: Literal["inner"] = identity("inner", description="its name")
    shares: tuple[Annotated[float, Bounds(ge=0, lt=1)], ...] = identity((0.5,), description="shares")


@dataclass(frozen=True)
class Outer:
    """Every kind of field."""

    __pydantic_config__ = STRICT

    count: Count = identity(gt=0, description="how many")
    inner: Inner = identity(default_factory=Inner, description="a section")
    rate: float = identity(1.0, gt=0, le=2, description="a rate")
    pause: Seconds = execution(5.0, ge=0, description="a time")
    workers: Annotated[int, Bounds(ge=1)] | Literal["auto"] = execution("auto", description="workers")
    least: int | None = identity(None, ge=2, description="a number or none")
    switch: bool = execution(False, description="on or off")


OUTER = TypeAdapter(Outer)


def both(data: dict[str, Any]) -> list[Any]:
    """What pydantic and `load` make of it; None where one refuses."""
    found: list[Any] = []
    for read in (OUTER.validate_python, lambda data: load(Outer, data)):
        try:
            found.append(read(data))
        except (ValidationError, ConfigError):
            found.append(None)
    return found


@pytest.mark.parametrize(
    ("data", "accepted"),
    [
        ({"count": 3}, True),
        ({"count": "4M", "pause": "5min"}, True),
        ({"count": 1, "workers": 2, "least": 2, "inner": {"shares": [0.0, 0.99]}}, True),
        ({}, False),
        ({"count": 0}, False),
        ({"count": "many"}, False),
        ({"count": 1, "rate": 2.5}, False),
        ({"count": 1, "rate": float("nan")}, False),
        ({"count": 1, "rate": float("inf")}, False),
        ({"count": 1, "pause": "5 moons"}, False),
        ({"count": 1, "workers": 0}, False),
        ({"count": 1, "workers": "none"}, False),
        ({"count": 1, "least": 1}, False),
        ({"count": 1, "inner": {"shares": [1.0]}}, False),
        ({"count": 1, "inner": {"kind": "outer"}}, False),
        ({"count": 1, "inner": {"share": [0.5]}}, False),
        ({"count": 1, "surplus": 1}, False),
    ],
)
def test_what_one_reader_takes_the_other_takes(data: dict[str, Any], accepted: bool) -> None:
    one, other = both(data)
    assert one == other
    assert (one is not None) is accepted


@given(
    st.fixed_dictionaries(
        {"count": st.integers(-2, 9)},
        optional={
            "rate": st.floats(-1, 3),
            "pause": st.floats(-1, 9),
            "workers": st.one_of(st.integers(-1, 9), st.just("auto")),
            "least": st.one_of(st.none(), st.integers(0, 4)),
            "inner": st.fixed_dictionaries(
                {}, optional={"shares": st.lists(st.floats(-0.5, 1.5), max_size=3)}
            ),
        },
    )
)
def test_both_readers_agree_on_any_numbers(data: dict[str, Any]) -> None:
    one, other = both(data)
    assert one == other
    if one is not None:
        assert load(Outer, {**asdict(one), "inner": {"shares": list(one.inner.shares)}}) == one


def test_the_error_names_the_field_and_what_it_may_be() -> None:
    for data, words in (
        ({"count": 1, "workers": 0}, r"^a\.workers must be an integer at least 1 or auto, not 0\.$"),
        (
            {"count": 1, "inner": {"shares": [2.0]}},
            r"^a\.inner\.shares must be at least 0 and below 1, not 2\.0\.$",
        ),
        ({"count": 1, "inner": {"kind": "x"}}, r"^a\.inner\.kind must be inner, not 'x'\.$"),
        ({"count": 1, "switch": 1}, r"^a\.switch must be true or false, not 1\.$"),
        ({}, r"^a\.count is missing from the specification\.$"),
        ({"count": 1, "b": 1}, r"^a\.b is not a field of the specification\.$"),
    ):
        with pytest.raises(ConfigError, match=words):
            load(Outer, data, "a")


def test_the_key_holds_the_identity_of_it() -> None:
    assert list(types_of(Outer)) == ["count", "inner", "rate", "pause", "workers", "least", "switch"]
    assert identity_of(load(Outer, {"count": 3})) == {
        "count": 3,
        "inner": {"kind": "inner", "shares": [0.5]},
        "rate": 1.0,
        "least": None,
    }


@dataclass(frozen=True)
class Later:
    """A section to which a release added fields."""

    old: int = identity(1, description="of 0.1.0")
    new: int = identity(0, since="0.2", description="0: as before")
    turned: Inner | None = identity(
        default_factory=Inner, since="0.2", before=None, description="null: as before"
    )


def test_a_field_at_as_before_is_in_no_key_and_is_read_so_where_it_is_missing() -> None:
    as_before = load(Later, {"old": 2})
    assert as_before == Later(2, 0, None)
    assert identity_of(as_before) == {"old": 2}
    assert (
        completed({"old": 2}, as_before) == identity_values(as_before) == {"old": 2, "new": 0, "turned": None}
    )
    chosen = Later()
    assert identity_of(chosen) == {"old": 1, "turned": {"kind": "inner", "shares": [0.5]}}
    assert load(Later, identity_of(chosen)) == chosen
    with pytest.raises(ConfigError, match="needs the default"):
        identity(since="0.2", description="without a default")
    with pytest.raises(ConfigError, match="no release"):
        identity(1, since="later", description="when?")
    with pytest.raises(ConfigError, match="goes with since"):
        identity(1, before=2, description="since when?")
