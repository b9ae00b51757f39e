"""Counts: one exact way to write them, which is read back, and one that rounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.counts import count_text, parse_count, rounded_count


@pytest.mark.parametrize(
    ("count", "exact", "rounded"),
    [
        (0, "0", "0"),
        (12, "12", "12"),
        (999, "999", "999"),
        (200_000, "200K", "200K"),
        (524_288, "524288", "524K"),
        (999_999, "999999", "1M"),
        (1_000_400, "1.0004M", "1M"),
        (1_234_567, "1234567", "1.23M"),
        (1_500_000, "1.5M", "1.5M"),
        (400_000_000, "400M", "400M"),
        (999_499_999, "999499999", "999M"),
        (999_999_999, "999999999", "1B"),
        (10**9, "1B", "1B"),
        (1_000_400_000, "1.0004B", "1B"),
        (12_345_000_000, "12.345B", "12.3B"),
        (1_500_000_000_000, "1500B", "1,500B"),
    ],
)
def test_a_count_is_written_exactly_or_to_three_figures(count, exact, rounded):
    assert (count_text(count), rounded_count(count)) == (exact, rounded)


@given(st.integers(0, 10**18))
def test_an_exact_text_is_read_back(count):
    assert parse_count(count_text(count)) == count


@given(st.integers(1, 10**15))
def test_a_rounded_text_is_near_and_has_no_exponent(count):
    text = rounded_count(count)
    assert "e" not in text and len(text.rstrip("KMB").replace(",", "").replace(".", "")) <= 7
    assert parse_count_of_prose(text) == pytest.approx(count, rel=0.0051)
    assert not text.startswith("1000") and not text.startswith("1,000M") and not text.startswith("1,000K")


def parse_count_of_prose(text: str) -> float:
    return float(parse_count(text.replace(",", "")))


@pytest.mark.parametrize("text", ["1e400", "1e99999999", "9" * 5000, "1e19", "2000000000B"])
def test_what_is_beyond_all_measure_is_refused_in_a_moment(text):
    with pytest.raises(ValueError, match="beyond 1e"):
        parse_count(text)
