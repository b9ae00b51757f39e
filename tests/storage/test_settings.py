"""Settings: each field is identity or execution; counts and durations are read as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from storage.errors import ConfigError
from storage.settings import Count, Seconds, Settings, execution, identity, identity_of


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
