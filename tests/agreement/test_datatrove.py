"""Documents are kept, edited and dropped as by datatrove's filters of the same names, which are asked here themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.corpus.filter import FilterConfig, judge
from tasks.corpus.rules.lines import even_lines
from tasks.corpus.units import holds_units

pytest.importorskip("datatrove", reason="the extra `agreement` is not installed: make install-agreement")
NONE: dict[str, Any] = {"language": "any", "gopher": False, "c4": False, "fineweb": False, "pii": "off"}
FAMILIES: dict[str, dict[str, Any]] = {
    "gopher": {"gopher": True},
    "c4": {"c4": True},
    "c4_end_punctuation": {"c4": True, "c4_end_punctuation": True},
    "c4_with_curly_brackets": {"c4": True, "c4_curly_brackets": False},
    "fineweb": {"fineweb": True},
}
PROSE = "It was a dark night. The wind blew hard. Nobody was out. A dog barked. Then all was still."
LONG = "The quick brown fox jumps over the lazy dog, and that is of some interest to the reader of it."
LINES = st.sampled_from(
    [
        *("", " ", "One two", "A line of words.", "  Two sentences. Here they are!  ", "More and more..."),
        *('He said "no." Then he left', "[1] [2] [3]", "Words at the end [4][5]", "x { y } z", "{ one"),
        *("See this [12] and that [edit] here [citation needed].", "Please enable JavaScript now."),
        *("We value your Privacy Policy here.", "This site uses cookies. Really.", "Lorem IPSUM dolor sit"),
        *("Long " + "a" * 1001 + " word here.", "Tab\there\xa0and\u2003there. Yes.", "# of 10, 20 and 30"),
        *(
            "Привет мир это проза。 Да!",
            PROSE,
            LONG,
            LONG,
            "- a point",
            "- another point",
            "To be continued…",
        ),
    ]
)
BREAKS = st.sampled_from(["\n", "\n", "\n\n", "\r\n", "\x0b", "\u2028"])
TEXTS = st.lists(st.tuples(LINES, BREAKS), max_size=14).map(lambda parts: "".join(a + b for a, b in parts))


def theirs(family: str) -> Callable[[str], str | None]:
    """What datatrove leaves of a text; None where it drops it."""
    from datatrove.data import Document
    from datatrove.pipeline import filters

    made: dict[str, list[Any]] = {
        "gopher": [filters.GopherRepetitionFilter(), filters.GopherQualityFilter()],
        "c4": [filters.C4QualityFilter(filter_no_terminal_punct=False)],
        "c4_end_punctuation": [filters.C4QualityFilter()],
        "c4_with_curly_brackets": [
            filters.C4QualityFilter(filter_no_terminal_punct=False, filter_curly_bracket=False)
        ],
        "fineweb": [filters.FineWebQualityFilter()],
    }

    def judged(text: str) -> str | None:
        document = Document(text=text, id="one")
        for one in made[family]:
            said = one.filter(document)
            if not (said if isinstance(said, bool) else said[0]):
                return None
        return str(document.text)

    return judged


def ours(family: str, texts: list[str]) -> list[str | None]:
    """The same of the filter stage."""
    families = FilterConfig.model_validate(NONE | FAMILIES[family]).families()
    made = judge(pl.Series(texts, dtype=pl.String), None, families)
    kept = iter(made.texts.to_list())
    return [next(kept) if failed < 0 else None for failed in made.failed]


@pytest.mark.parametrize("family", FAMILIES)
def test_whatever_the_text_both_keep_the_same_of_it(family: str) -> None:
    judged = theirs(family)

    @settings(max_examples=150, deadline=None)
    @given(st.lists(TEXTS, min_size=1, max_size=5))
    def same(given: list[str]) -> None:
        texts = even_lines(pl.Series(given, dtype=pl.String)).to_list()
        assert ours(family, texts) == [judged(text) for text in texts]

    same()


@pytest.mark.parametrize("family", FAMILIES)
def test_real_and_dirty_documents_are_judged_alike(family: str, shared_data: Path) -> None:
    edu = pq.read_table(shared_data / "edu" / "part-00000.parquet", columns=["text"])["text"].to_pylist()
    texts = [text for text in edu[::40] if text and text.strip()][:60]
    dirty = sorted((shared_data / "dirty").glob("part-*.parquet"))
    for path in dirty:
        rows = pq.read_table(path, columns=["text"])["text"].to_pylist()
        texts += [text for text in rows[::40] if text and text.strip()][:60]
    every = even_lines(pl.Series(texts, dtype=pl.String))
    counted_alike = pl.Series(~holds_units(every))  # scripts without spaces are counted otherwise, on purpose
    texts = every.filter(counted_alike).to_list()
    assert len(texts) > 0.9 * len(every)
    judged = theirs(family)
    found = [judged(text) for text in texts]
    apart = [number for number, text in enumerate(ours(family, texts)) if text != found[number]]
    assert len(apart) <= 0.005 * len(texts), f"of {len(texts)} documents: {apart}"
