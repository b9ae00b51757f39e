"""What is masked and what only looks like it: planted values of the dirty corpus, and cases by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.corpus.rules.pii import _HINT, EMAIL, IP, PHONE, edit, mask
from tasks.corpus.rules.rule import TextBatch
from tests.support.corpus.shared import rows_of


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Write to bob.o.connor@mail.example.org.", f"Write to {EMAIL}."),
        ("<j_smith+lists@example.com>", f"<{EMAIL}>"),
        ("mailto:x9@school.example?subject=a", f"mailto:{EMAIL}?subject=a"),
        ("from 203.0.113.20, then 8.8.4.40/24", f"from {IP}, then {IP}/24"),
        ("at 2001:db8::76c0:5c2d.", f"at {IP}."),
        ("call (212) 555-0134 or 617.555.0132", f"call {PHONE} or {PHONE}"),
        ("+1 415-555-0148; +44 20 7946 0958", f"{PHONE}; {PHONE}"),
        ("+4915123456789, or +12125550134.", f"{PHONE}, or {PHONE}."),
        ("+49 (0)89 123456, +44 (0)20 7946 0958", f"{PHONE}, {PHONE}"),
        ("+49 89 1234567 and +49-89-1234567", f"{PHONE} and {PHONE}"),
        ("0049/89/1234567; 0049 89 123456; 0033 1 23 45 67 89", f"{PHONE}; {PHONE}; {PHONE}"),
        ("0044-20-7946-0958 (London)", f"{PHONE} (London)"),
        ("ring 020 7946 0958 or (020) 7946 0958", f"ring {PHONE} or {PHONE}"),
        ("0161 496 0123, 01632 960123, 07700 900123, 07700 900 123", ", ".join([PHONE] * 4)),
        ("appelez le 01 23 45 67 89 ou 06.12.34.56.78", f"appelez le {PHONE} ou {PHONE}"),
        ("+33 1 23 45 67 89, +33123456789", f"{PHONE}, {PHONE}"),
        ("a\u00a0b +44\u00a020\u00a07946\u00a00958\u00a0c", f"a\u00a0b {PHONE}\u00a0c"),
        ("01\u202f23\u202f45\u202f67\u202f89, +44\u201120\u20117946\u20110958", f"{PHONE}, {PHONE}"),
        ("(202)\u2009555\u20100147 or 020\u00a07946\u00a00958", f"{PHONE} or {PHONE}"),
        ("server 93.184.216.34 of the network in this report", f"server {IP} of the network in this report"),
    ],
)
def test_what_is_masked(text: str, masked: str) -> None:
    assert mask(text)[0] == masked
    assert edit(TextBatch(pl.Series([text])), np.array([True])).texts.to_list() == [masked]


@pytest.mark.parametrize(
    "text",
    [
        "@handle and #tag are not e-mails",
        "x @ y, a@b, me@home",
        "Section 1.2.3.4 covers this.",
        "version 10.12.3.40 of it, and §3.10.2.11",
        "192.168.10.14 and 127.0.0.1 and 10.20.30.40 are private, 300.20.30.40 is none",
        "1.2.3.40.5 is a number of a section",
        "ratio 1:2:3:4",
        "Chapter 12:30 to 14:45",
        "std::vector, abc::def, 10:20:30",
        "::1 and fe80::1c2d:3e4f are local",
        "see p. 555-560",
        "ISBN 978-3-16-148410-0",
        "pi is 3.14159265358979, 2125550134 too",
        "1 + 234 567 890",
        "as in 4.18.22.10 of the standard, and 12.3.4.50 of that building code",
        "(see 10.12.3.40 in the ISO 9001 manual)",
        "paragraph 12.3.4.50 and requirement 14.22.3.40",
        "at 0800 1200 1500 hours, 01-02-2003, 2001-05-12 10:20",
        "0012345678905 is a product, 007 an agent, 00 1 nothing",
        "0.123 456 789 and 0123456789",
        "01 02 03 04 05 06 07 08 09 10",
        "the sum +123 45 is 168; +1000000000000000000",
    ],
)
def test_what_only_looks_like_it_stays(text: str) -> None:
    assert mask(text) == (text, {})


def test_a_long_text_without_spaces_takes_no_time() -> None:
    for text in (
        "a" * 1_000_000 + "@",
        "1." * 400_000,
        "1:" * 400_000,
        "@".join(["a.b"] * 200_000),
        "+1 2" * 200_000,
    ):
        masked, _ = mask(text)
        assert len(masked) > 100_000


def test_the_planted_values_are_masked_and_the_look_alikes_are_not(shared_data: Path) -> None:
    truth = json.loads((shared_data / "dirty" / "truth.json").read_text())
    texts = {row["id"]: row["text"] for row in rows_of(shared_data / "dirty")}
    kinds = {"email": "email", "ipv4": "ip", "ipv6": "ip", "phone": "phone"}
    planted, alike = 0, 0
    for entry in truth["pii"]:
        masked = edit(TextBatch(pl.Series([texts[entry["id"]]])), np.array([True]))
        for span in entry["spans"]:
            if span["type"] == "negative_lookalike":
                assert span["value"] in masked.texts[0]
                alike += 1
            else:
                assert span["value"] in texts[entry["id"]] and span["value"] not in masked.texts[0]
                assert masked.counts[kinds[span["type"]]].any()
                planted += 1
    assert planted > 60 and alike >= 10


def test_real_textbooks_hold_next_to_nothing_that_is_masked(shared_data: Path) -> None:
    texts = pl.Series(pq.read_table(shared_data / "general" / "part-00000.parquet")["text"].to_pylist())
    counts = edit(TextBatch(texts), np.ones(len(texts), bool)).counts
    assert not counts["ip"].any() and not counts["phone"].any()


SIGNS = "00 01 0 1 12 345 4960000 2001 + (0) ( ) - . / : a @ b.cd 0121 020 é _ 2001:db8 93.184.216.34 x@example.com"
NEAR_NUMBERS = st.lists(st.sampled_from([*SIGNS.split(), " ", "\n", "\u00a0", "\u2011"]), max_size=14).map(
    "".join
)


@settings(max_examples=300)
@given(NEAR_NUMBERS)
def test_no_text_with_a_hint_is_passed_over_that_would_be_masked(text: str) -> None:
    hinted = pl.Series([text]).str.contains(_HINT).item()
    wanted = mask(text)[0] if hinted else text
    assert edit(TextBatch(pl.Series([text])), np.array([True])).texts.to_list() == [wanted]


@pytest.mark.parametrize("text", ["0033(0)1 23 45 67 89, a@b", "(0121)4960000 of x@y", "in 2001 to 2009"])
def test_forms_that_only_another_hint_leads_to(text: str) -> None:
    assert edit(TextBatch(pl.Series([text])), np.array([True])).texts.to_list() == [mask(text)[0]]
