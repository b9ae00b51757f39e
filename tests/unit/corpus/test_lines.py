"""The spelling of line ends and blanks decides nothing: the same documents are kept, and dropped for the same reasons."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl
import pytest

from tasks.corpus.filter import FilterConfig, judge
from tasks.corpus.rules import pii
from tasks.corpus.rules.lines import even_lines

PARAGRAPH = (
    "The mill stood at the bend of the river, and its wheel turned from the first thaw until the ice came back.\n"
    "Every farmer of the valley brought his grain there, and waited in the yard for the flour that was his.\n"
    "In the evening they talked about the price of seed, and about the bridge that nobody wanted to pay for.\n"
)
SECOND = (
    "Nobody could say who had cut the first stones of the church, or why its tower leaned towards the hills.\n"
    "The priest kept a list of weddings in a leather book; the oldest pages were written before the great fire.\n"
    "When the bells rang at noon, children ran out of the school and climbed over the wall into the orchard.\n"
)
SOUND = f"{PARAGRAPH}\n\n{SECOND}"
MENU = "Home\n\nProducts\n\nHome\n\nProducts\n\n" * 12
POEM = "\n\n".join(f"{line}\nand the river ran on to the sea that night." for line in PARAGRAPH.splitlines())
TEXTS = {
    "sound": SOUND,
    "menu": MENU,
    "poem": POEM,
    "short": "Two words.\n\n",
    "empty": "",
    "breaks": "\n\n\n",
}
ENDS: dict[str, Callable[[str], str]] = {
    "Windows": lambda text: text.replace("\n", "\r\n"),
    "old Macintosh": lambda text: text.replace("\n", "\r"),
    "mixed": lambda text: text.replace("\n\n", "\n\r\n"),
    "a space before": lambda text: text.replace("\n", " \n"),
    "a tab before": lambda text: text.replace("\n", "\t\n"),
    "an em space before": lambda text: text.replace("\n", " \u2003\n"),
    "a no-break space before": lambda text: text.replace("\n", "\u00a0\n"),
    "an ideographic space before": lambda text: text.replace("\n", "\u3000\n"),
    "zero width before": lambda text: text.replace("\n", "\u200b\n"),
    "a byte order mark before": lambda text: text.replace("\n", "\ufeff\r\n"),
    "a control character before": lambda text: text.replace("\n", "\x1f\n"),
    "a null or a delete before": lambda text: text.replace("\n\n", "\x7f\n\x08\n"),
    "next line": lambda text: text.replace("\n", "\u0085"),
    "line separator": lambda text: text.replace("\n", "\u2028"),
    "paragraph separator": lambda text: text.replace("\n\n", "\u2029\u2029"),
    "form feed": lambda text: text.replace("\n\n", "\n\x0c"),
}
ON = FilterConfig(language="any", pii="off")
OFF = FilterConfig(language="any", pii="mask", c4=False)


@pytest.mark.parametrize("ends", ENDS)
def test_the_line_end_decides_neither_the_fate_nor_the_edit(ends: str) -> None:
    assert [ENDS[ends](text) != text for text in (SOUND, MENU)] == [True, True]
    plain = judge(pl.Series(list(TEXTS.values())), None, ON.families())
    other = judge(pl.Series([ENDS[ends](text) for text in TEXTS.values()]), None, ON.families())
    assert other.failed.tolist() == plain.failed.tolist()
    assert {"sound": True, "menu": False}.items() <= dict(zip(TEXTS, plain.failed < 0, strict=True)).items()
    np.testing.assert_allclose(other.value, plain.value)
    assert other.texts.to_list() == plain.texts.to_list()


@pytest.mark.parametrize("ends", ENDS)
def test_what_is_kept_is_as_it_was_written(ends: str) -> None:
    text = ENDS[ends](SOUND + "Write to jane@example.org about it, or do not write at all.\n")
    made = judge(pl.Series([text, ENDS[ends](SOUND)]), None, OFF.families())
    assert made.texts.to_list() == [text.replace("jane@example.org", pii.EMAIL), ENDS[ends](SOUND)]


def test_texts_with_even_lines_are_not_copied() -> None:
    texts = pl.Series([SOUND, "", " leading blanks stay\n\tand tabs"])
    assert even_lines(texts) is texts
    uneven = pl.Series(["a\r\n"])
    assert (even_lines(uneven).to_list(), uneven.to_list()) == (["a\n"], ["a\r\n"])
    assert even_lines(pl.Series(["a \r\nb\r\rc\u00a0\u200b\n d"])).to_list() == ["a\nb\n\nc\n d"]
