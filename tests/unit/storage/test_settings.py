"""Settings: each field is identity or execution; counts and durations are read as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from storage.errors import ConfigError
from storage.settings import (
    Count,
    Seconds,
    Settings,
    completed,
    execution,
    identity,
    identity_of,
    identity_values,
)


class Inner(Settings):
    kept: int = identity(1, description="identity")
    left_out: int = execution(2, description="execution")


class Outer(Settings):
    inner: Inner = identity(default_factory=Inner, description="section")
    several: tuple[Inner, ...] = identity((Inner(),), description="sections")
    budget: Count = identity(1, description="tokens")
    pause: Seconds = execution(1.0, description="seconds")


def test_only_identity_is_in_the_key_at_every_depth():
    assert identity_of(Outer()) == {"inner": {"kept": 1}, "several": [{"kept": 1}], "budget": 1}


def test_a_field_that_is_neither_is_an_error():
    class Unmarked(Settings):
        plain: int = Field(1)

    with pytest.raises(ConfigError, match="Unmarked.plain"):
        identity_of(Unmarked())


def test_an_unknown_field_is_an_error():
    with pytest.raises(ValidationError):
        Inner(other=1)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("400M", 400_000_000),
        ("2.5K", 2500),
        ("1B", 10**9),
        ("64MB", 64_000_000),
        ("1_000", 1000),
        (7, 7),
        ("1e6", 10**6),
    ],
)
def test_counts(text, value):
    assert Outer(budget=text).budget == value


@pytest.mark.parametrize("text", ["many", "1.5", "-3", "1X", "", "0.0001K"])
def test_what_is_no_count_is_refused(text):
    with pytest.raises(ValidationError):
        Outer(budget=text)


@pytest.mark.parametrize(("text", "value"), [("5s", 5), ("5min", 300), ("2h", 7200), ("250ms", 0.25), (3, 3)])
def test_durations(text, value):
    assert Outer(pause=text).pause == pytest.approx(value)


@given(st.integers(0, 10**12))
def test_a_plain_number_is_itself(number):
    assert Outer(budget=number).budget == number
    assert Outer(budget=str(number)).budget == number


class Moments(Settings):
    nesterov: bool = identity(False, since="0.2", description="came later")
    share: float = identity(0.0, since="0.2", description="came later")


class Later(Outer):
    toxicity: bool = identity(False, since="0.2", description="came later")
    moments: Moments = identity(default_factory=Moments, since="0.2", description="a section that came later")
    extra: tuple[Inner, ...] = identity((), since="0.2", description="sections that came later")


def test_what_came_later_is_in_no_key_while_it_stands_at_its_default():
    assert identity_of(Later()) == identity_of(Outer())
    assert identity_of(Later(moments=Moments())) == identity_of(Outer())


def test_what_came_later_is_in_the_key_where_it_is_chosen():
    before = identity_of(Outer())
    assert identity_of(Later(toxicity=True)) == {**before, "toxicity": True}
    assert identity_of(Later(moments={"nesterov": True})) == {**before, "moments": {"nesterov": True}}
    assert identity_of(Later(extra=(Inner(),))) == {**before, "extra": [{"kept": 1}]}


def test_a_later_field_inside_of_an_old_section_is_left_out_by_itself():
    class Whole(Settings):
        parts: tuple[Later, ...] = identity(description="an old section")

    assert identity_of(Whole(parts=(Later(), Later(toxicity=True)))) == {
        "parts": [identity_of(Outer()), {**identity_of(Outer()), "toxicity": True}]
    }


def test_execution_inside_of_a_later_section_does_not_bring_it_into_the_key():
    class Placed(Settings):
        where: str = execution("here", description="execution")

    class Whole(Settings):
        placed: Placed = identity(default_factory=Placed, since="0.2", description="came later")

    assert identity_of(Whole(placed=Placed(where="there"))) == {}


def test_a_default_that_changed_later_leaves_what_was_before_as_it_was():
    class Changed(Outer):
        toxicity: bool = identity(True, since="0.2", before=False, description="off in 0.2, on since 0.3")

    assert identity_of(Changed(toxicity=False)) == identity_of(Outer())
    assert identity_of(Changed()) == {**identity_of(Outer()), "toxicity": True}
    assert completed(identity_of(Outer()), Changed()) == identity_values(Changed(toxicity=False))
    with pytest.raises(ConfigError, match="goes with since"):
        identity(1, before=2, description="wrong")


def test_all_values_are_shown():
    shown = identity_values(Later())
    assert shown["toxicity"] is False and shown["moments"] == {"nesterov": False, "share": 0.0}
    assert completed(identity_of(Later()), Later()) == shown
    assert completed(identity_of(Outer()), Later(toxicity=True)) == shown


def test_a_later_field_needs_a_default_and_a_release():
    with pytest.raises(ConfigError, match="needs the default"):
        identity(since="0.2", description="without")
    with pytest.raises(ConfigError, match="no release"):
        identity(1, since="next", description="wrong")
