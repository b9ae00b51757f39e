"""The generator of text that benchmarks use: documents are functions of their numbers."""

from __future__ import annotations

import numpy as np

from benchmarks.billion_text import EXACT, NEAR, Maker, Models

PLACES = [
    "Harbour",
    "Mill",
    "Station",
    "Bridge",
    "Garden",
    "Castle",
    "Library",
    "Market",
    "School",
    "Tower",
    "Museum",
]
REAL = [
    "\n\n".join(
        f"The {a.lower()} of {b} was seen by {number * 7} people, and they wrote about the {c.lower()}. It was old."
        for number, (b, c) in enumerate(zip(PLACES[i:] + PLACES[:i], PLACES, strict=True))
    )
    for i, a in enumerate(PLACES)
]
BAD = ["日本語の文章です。" * 40, "<div><a href='x'>menu</a></div>\n" * 30]
QUESTIONS = ["Which of these towers is the tallest one that was ever built of wood and of nothing else?"]


def test_a_document_is_the_same_in_whatever_batch_it_is_made() -> None:
    maker = Maker(Models.of(REAL, BAD, QUESTIONS), seed=3)
    together = maker.texts(np.arange(4000)).to_pylist()
    assert maker.texts(np.arange(1200, 1700)).to_pylist() == together[1200:1700]
    assert Maker(maker.models, seed=4).texts(np.arange(50)).to_pylist() != together[:50]


def test_copies_bad_documents_and_questions_have_their_shares() -> None:
    maker = Maker(Models.of(REAL, BAD, QUESTIONS), seed=3)
    numbers = np.arange(4000)
    texts = maker.texts(numbers).to_pylist()
    origin, near = maker._origins(numbers)
    copied, exact = origin != numbers, (origin != numbers) & ~near
    assert abs(copied.mean() - EXACT - NEAR) < 0.01 and abs(near.mean() - NEAR) < 0.01
    assert all(texts[i] == texts[origin[i]] for i in np.flatnonzero(exact & ~near[origin]))
    changed = [texts[i] != texts[origin[i]] for i in np.flatnonzero(near)]
    assert np.mean(changed) > 0.3  # all that lack their end; of the others those in which a word was drawn
    assert sum("日本語" in text for text in texts) > 20
    assert 1 <= sum(QUESTIONS[0] in text for text in texts) < 40
    good = [
        text for text in texts if "日本語" not in text and "<div>" not in text and QUESTIONS[0] not in text
    ]
    assert len(set(good)) > 0.5 * len(good)
    assert {len(text.split()) for text in good} & {len(text.split()) for text in REAL}
