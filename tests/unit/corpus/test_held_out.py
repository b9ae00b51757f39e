"""No text that is held out, nor one that is like it, is trained on: in the slice, in later ones, in other sources."""

from __future__ import annotations

import random
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.draft import Draft
from storage.testing import draft_in
from tasks.corpus import decontaminate, trained_on
from tasks.corpus import filter as quality
from tasks.corpus.duplicates import containment
from tasks.corpus.duplicates.containment import HeldTexts
from tasks.corpus.filter import FilterConfig, FilterInputs
from tasks.corpus.holdout import LOOKED_AT, held_out, not_trained_on
from tests.support.corpus.held_out import Slices, check, share, shingles_of
from tests.support.corpus.prose import sentences
from tests.support.corpus.shared import rows_of
from tests.support.corpus.slices import bytes_in, part_in, slice_of, texts_in

FEW = st.lists(st.sampled_from(["mill", "Grain", "river", "cart,", "é", "1648"]), max_size=14).map(" ".join)


@pytest.fixture(scope="module")
def articles(shared_data: Path) -> list[str]:
    """Real texts, cut at the end of a sentence."""
    texts = [row["text"][:3000] for row in rows_of(shared_data / "edu")[:400]]
    texts = [text[: text.rfind(".") + 1] for text in texts if text.count("\n") > 4]
    return [text for text in texts if len(text) > 1500][:80]


def with_menus(text: str, seed: int, words: list[str]) -> str:
    """The text as a page: lines of two words above and below it, a quarter of all."""
    drawn = random.Random(seed)
    menu = [f"{drawn.choice(words).title()} {drawn.choice(words)}" for _ in range(len(text.split()) // 8)]
    half = len(menu) // 2
    return "\n".join([*menu[:half], text, *menu[half:]])


def filtered(root: Path, source: str, texts: list[str], first: int):  # type: ignore[no-untyped-def]
    """What C4's rules leave of the texts."""
    draft = draft_in(root)
    config = FilterConfig(language="any", gopher=False, fineweb=False, c4_curly_brackets=False)
    quality.run(config, FilterInputs(slice_of(root / "in", texts, source=source, first=first)), draft)
    return part_in(draft.path, "documents")


# ---- how alike two texts are ----------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(held=st.lists(FEW, max_size=6), texts=st.lists(FEW, max_size=8))
def test_every_pair_is_found_that_a_comparison_of_all_finds(
    tmp_path: Path, held: list[str], texts: list[str]
) -> None:
    found = HeldTexts.of([pl.Series(held, dtype=pl.String)], tmp_path).alike(
        pl.Series(texts, dtype=pl.String)
    )
    pairs = {
        (one, other): found_share
        for one, other, found_share in zip(
            found.texts.tolist(), found.places.tolist(), found.shares.tolist(), strict=True
        )
    }
    assert pairs == {
        (one, other): both
        for one, text in enumerate(texts)
        for other, own in enumerate(held)
        if (both := share(shingles_of(text), shingles_of(own))) >= 0.8
    }


def test_pairs_are_the_same_in_small_pieces_and_from_a_file(
    tmp_path: Path, articles: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    held, texts = pl.Series(articles[:20]), pl.Series([*articles, *(text[:900] for text in articles[:9])])
    whole = HeldTexts.of([held], tmp_path).alike(texts)
    monkeypatch.setattr(containment, "_PAIRS_AT_ONCE", 50)
    HeldTexts.together(
        [HeldTexts.of([held[:7]], tmp_path), HeldTexts.of([held[7:]], tmp_path)], tmp_path
    ).save(tmp_path / "set")
    found = HeldTexts.load(tmp_path / "set").alike(texts)
    for name, column in vars(whole).items():
        assert sorted(column.tolist()) == sorted(getattr(found, name).tolist())
    assert len(whole.texts) >= 29


def test_a_text_of_one_repeated_line_counts_each_shingle_once(tmp_path: Path) -> None:
    line = "the cart was driven to the mill and back again. "
    held = HeldTexts.of([pl.Series([line * 3, line + sentences(40)])], tmp_path)
    found = held.alike(pl.Series([line * 4000, line * 3000 + sentences(200, seed=1)]))
    assert list(zip(found.texts.tolist(), found.places.tolist(), strict=True)) == [(0, 0), (1, 0)]


@pytest.mark.parametrize(
    ("held", "text", "alike"),
    [
        ("Hello, world!", "hello  WORLD", True),
        ("Hello, world!", "hello world and all who are in it", False),
        ("", "", False),
        ("…", "!", False),
        ("a b c d e", "x a b c d e y", True),
        ("naïve café ﬁne résumé done", "Naive cafe fine resume done", True),
    ],
)
def test_a_text_of_few_words_is_like_one_of_the_same_words(
    tmp_path: Path, held: str, text: str, alike: bool
) -> None:
    found = HeldTexts.of([pl.Series([held])], tmp_path).alike(pl.Series([text]))
    assert found.shares.tolist() == ([1.0] if alike else [])


# ---- the stage ------------------------------------------------------------------------------------------------------


def test_pages_of_one_article_are_not_on_both_sides(tmp_path: Path, articles: list[str]) -> None:
    """The fault: C4 cuts the menus, and two pages of one article are the same bytes, one of them held out."""
    words = sorted({word for text in articles for word in text.split() if word.isalpha() and word.islower()})
    slices = Slices(tmp_path)
    for number in range(2):
        pages = [with_menus(text, seed, words) for seed, text in enumerate(articles, 1000 * number)]
        given_ = filtered(tmp_path / f"filtered-{number}", "tales", pages, 1000 * number)
        slices.run("tales", given_, number == 0)
    one, two = slices.made
    assert one.held and len(one.trained) > 40
    assert two.stats.dropped_by_reason == {
        "copy_after_filter": len(one.trained),
        "held_out_overlap": len(one.held),
    }
    assert two.trained == []
    check(slices.made)


def test_real_texts_cut_and_joined_give_what_a_comparison_of_all_pairs_gives(
    tmp_path: Path, articles: list[str]
) -> None:
    """Texts that contain others, and are contained, to both sides of the threshold; in later slices and sources."""
    drawn = random.Random(3)

    def variants(texts: list[str]) -> list[str]:
        made = []
        for text in texts:
            words = text.split(" ")
            cut = drawn.randrange(len(words) // 8, len(words))
            other = drawn.choice(articles).split(" ")[: drawn.randrange(1, 60)]
            changed = [word if drawn.random() > 0.03 else "otherwise" for word in words]
            made += [
                " ".join(words[:cut]),
                " ".join([*other, *words]),
                " ".join(changed),
                f"{' '.join(words[:cut])}\n\n{drawn.choice(articles)}",
            ]
        drawn.shuffle(made)
        return made

    slices = Slices(tmp_path, holdout=0.3)
    slices.add("tales", articles[:40])
    slices.add("letters", variants(articles[:14]))
    slices.add("tales", [*variants(articles[10:22]), *articles[30:50]])
    slices.add("notes", [*articles[45:80], *variants(articles[60:64])])
    check(slices.made)
    reasons = [made.stats.dropped_by_reason for made in slices.made]
    assert all(reason.get("held_out_overlap", 0) >= 10 for reason in reasons[1:])
    assert all(len(made.trained) >= 5 for made in slices.made)
    assert slices.made[1].stats.holdout_passed_over > 0
    assert all(slices.made[number].held for number in (0, 1, 3)) and not slices.made[2].held


def other_than(held: str, part: float, where: str, seed: int) -> str:
    """A text that has such a part of its shingles, or of those of the held-out text, in common with that."""
    words = held.split() if where == "contains" else held.split()[10:110]
    own = len(words) - 4
    more = 900 if where == "contains" else own - int(own * part)
    return " ".join([*words[: int(own * part) + 4], *sentences(100, seed).split()[:more]])


@pytest.mark.parametrize(("part", "gone"), [(0.95, True), (0.81, True), (0.79, False), (0.4, False)])
@pytest.mark.parametrize("where", ["contains", "is contained"])
def test_four_fifths_of_the_smaller_text_decide_in_both_directions(
    tmp_path: Path, part: float, gone: bool, where: str
) -> None:
    """In the same slice, in a later one, and in another source."""
    texts = [sentences(24, seed) for seed in range(30)]
    slices = Slices(tmp_path, holdout=0.2)
    (held, *_) = slices.add("tales", texts, shards=1).held
    others = [other_than(held, part, where, seed) for seed in range(1000, 1006)]
    slices.add("tales", others[:2], shards=1)
    slices.add("letters", others[2:], shards=2)
    same = Slices(tmp_path / "same", holdout=0.2)
    same.add("tales", [*others, *texts], shards=2)
    for one in (slices, same):
        check(one.made)
    # without `gone`, some are held out themselves where the slice is the first of its source
    assert sum(len(made.trained) for made in slices.made[1:]) == (0 if gone else 6 - len(slices.made[2].held))
    dropped = {row["text"] for row in same.made[0].dropped}
    assert held in same.made[0].held
    assert dropped == (set(others) - set(same.made[0].held) if gone else set())


def unspaced(script: str, seed: int, characters: int = 240) -> str:
    """A text without spaces between words, in sentences."""
    letters = {
        "Chinese": "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏闰余成岁律吕调阳云腾致雨露结为霜金生丽水玉出昆冈",
        "Thai": "กขคงจฉชซญดตถทธนบปผพฟภมยรลวศสหอ" + "ะาเแโใไ",
        "Japanese": "いろはにほへとちりぬるをわかよたれそつねならむうゐのおくやまけふこえてあさきゆめみしゑひもせす",
    }[script]
    drawn, stop = random.Random(seed), {"Chinese": "。", "Thai": " ", "Japanese": "。\n"}[script]
    signs = [drawn.choice(letters) for _ in range(characters)]
    return "".join(sign + (stop if place % 30 == 29 else "") for place, sign in enumerate(signs))


@pytest.mark.parametrize("script", ["Chinese", "Thai", "Japanese"])
def test_held_out_texts_without_spaces_are_found_by_characters(tmp_path: Path, script: str) -> None:
    """Contained in a longer text, containing a shorter one, with other line ends and widths; not where half is common."""
    slices = Slices(tmp_path, holdout=0.2)
    first = slices.add("tales", [unspaced(script, seed) for seed in range(30)])
    assert first.held and first.stats.documents_dropped == 0
    held = first.held[0]
    around = unspaced(script, 1000, 600), unspaced(script, 1001, 600)
    like = [
        f"{around[0]}{held}{around[1]}",
        f"{around[1]}\r\n\r\n{held.replace('。', '｡')}",
        held[40:-40],
        held[: len(held) * 9 // 10] + around[0][:100],
        "\u200b".join(held),
    ]
    unlike = [held[: len(held) // 2] + around[0], around[1], held[:60] + unspaced(script, 1002, 200)]
    for source in ("tales", "letters"):  # a later slice, and another source
        given = [
            text.replace(around[0], unspaced(script, 2000 + len(source), 600)) for text in [*like, *unlike]
        ]
        made = slices.add(source, given if source == "tales" else [f"{text}{source}" for text in given])
        gone = {row["text"] for row in made.dropped if row["reason"] == "held_out_overlap"}
        assert len(gone) == len(like) and len(made.trained) + len(made.held) == len(unlike)


def test_what_an_earlier_slice_trains_on_is_not_held_out(tmp_path: Path) -> None:
    texts = [sentences(12, seed) for seed in range(60)]
    slices = Slices(tmp_path, holdout=0.1)
    first = slices.add("tales", texts)
    pages = [f"{text}\nAnd so it was told." for text in texts]
    other = [sentences(12, seed) for seed in range(100, 140)]
    second = slices.add("letters", [*pages, *other])
    check(slices.made)
    assert second.held and second.stats.holdout_passed_over > 0
    assert not {text.removesuffix("\nAnd so it was told.") for text in second.held} & set(texts)
    assert set(second.trained) > {f"{text}\nAnd so it was told." for text in first.trained}
    assert second.stats.dropped_by_reason == {"held_out_overlap": len(first.held)}


def test_the_next_in_order_take_the_places_of_those_that_are_trained_on() -> None:
    import numpy as np

    hashes = np.random.default_rng(1).integers(0, 2**64, 1000, dtype=np.uint64)
    sizes = np.full(1000, 100)
    wanted = held_out(hashes, sizes, 0.02)
    order = np.argsort(hashes)
    count = int(wanted.sum())
    asked: list[int] = []

    def known(rows: np.ndarray) -> np.ndarray:
        asked.append(len(rows))
        return np.isin(rows, order[:limit])

    for limit, passed, left in ((0, 0, count), (7, 7, count), (count * 3, count, count), (1000, count, 0)):
        asked.clear()
        held, passed_over = not_trained_on(hashes, sizes, 0.02, known)
        assert (passed_over, int(held.sum())) == (passed, left)
        assert set(np.flatnonzero(held)) == set(order[limit : limit + left].tolist())
        assert sum(asked) <= LOOKED_AT[-1] * count
    assert not_trained_on(hashes, sizes, 0.0, known)[0].sum() == 0


def test_copies_stay_where_dedup_leaves_copies(tmp_path: Path) -> None:
    texts = [sentences(8, seed) for seed in range(40)]
    slices = Slices(tmp_path, copies=False)
    one = slices.add("tales", [*texts, *(text.upper() for text in texts)])
    check(slices.made, copies=False)
    assert len(one.trained) > 40
    assert set(one.stats.dropped_by_reason) == {"held_out_overlap"}
    two = slices.add("tales", one.trained)
    assert two.trained == one.trained


def test_empty_and_short_texts_are_compared_as_a_whole(tmp_path: Path) -> None:
    shorts = [f"word{number} of it" for number in range(30)]
    slices = Slices(tmp_path, holdout=0.3)
    one = slices.add("tales", ["", "…", "", *shorts, "yes"])
    held = next(text for text in one.held if len(text) > 3)
    two = slices.add(
        "letters", ["", f"{held.upper()}!", f"{held}, and then they went home", *shorts[:4], "Yes"]
    )
    check(slices.made)
    assert f"{held}, and then they went home" in [*two.trained, *two.held]
    assert f"{held.upper()}!" not in two.trained
    assert one.stats.documents_dropped == 1 and "" not in [*two.trained, *two.held]


def test_a_slice_of_nothing_is_a_link_too(tmp_path: Path) -> None:
    slices = Slices(tmp_path)
    slices.add("tales", [], shards=1)
    slices.run("tales", slice_of(tmp_path / "none", [], shards=0), False)
    texts = [sentences(8, seed) for seed in range(20)]
    slices.add("letters", texts)
    slices.add("tales", texts[::-1])
    check(slices.made)
    assert slices.made[-1].trained == []


def test_links_of_many_slices_know_all_texts(tmp_path: Path) -> None:
    """Tables of several links are merged: every fourth covers four."""
    texts = [sentences(6, seed) for seed in range(60)]
    slices = Slices(tmp_path, holdout=0.1)
    for number in range(6):
        slices.add(("tales", "letters")[number % 2], texts[10 * number : 10 * number + 10], shards=2)
    last = slices.add("letters", [*texts, sentences(6, 99)])
    assert last.trained == [sentences(6, 99)]
    assert sum(last.stats.dropped_by_reason.values()) == 60
    check(slices.made)


def test_a_resumed_stage_ends_with_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [sentences(8, seed) for seed in range(60)]
    more = [
        *(f"{text}\nTo be continued." for text in texts[:30]),
        *(sentences(8, seed) for seed in range(60, 99)),
    ]
    whole = Slices(tmp_path / "whole")
    whole.add("tales", texts)
    second = whole.add("letters", more)
    assert second.stats.holdout_passed_over and second.held
    broken = Slices(tmp_path / "broken", made=whole.made[:1])
    alike, calls = decontaminate.alike_shard, []

    def failing(job, directory: Path):  # type: ignore[no-untyped-def]
        calls.append(job.path)
        if len(calls) % 2 == 0:
            raise OSError("the machine is gone")
        return alike(job, directory)

    for module in (decontaminate, trained_on):
        monkeypatch.setattr(module, "alike_shard", failing)
    for _ in range(20):
        try:
            again = broken.run("letters", second.given, True, directory="made")
            break
        except OSError:
            continue
    assert len(calls) > 6
    assert bytes_in(again.path) == bytes_in(second.path)
    assert again.stats == second.stats


def test_one_held_out_text_that_takes_many_documents_is_told(tmp_path: Path) -> None:
    texts = [sentences(8, seed) for seed in range(40)]
    slices = Slices(tmp_path)
    line = "All rights of this page are reserved"
    held = slices.add("tales", [*texts, line]).held
    while line not in held:
        line += " too"
        slices = Slices(tmp_path / str(len(line)))
        held = slices.add("tales", [*texts, line]).held
    warned: list[str] = []
    draft = Draft(tmp_path / "many", warn=warned.append)
    pages = [f"{sentences(4, seed)}\n{line}" for seed in range(100, 220)]
    given_ = slice_of(tmp_path / "pages", pages)
    known = decontaminate.Chain((part_in(slices.made[0].path, "known"),))
    inputs = decontaminate.DecontaminateInputs(given_, (), False, (), known)
    stats = decontaminate.run(decontaminate.DecontaminateConfig(), inputs, draft)
    assert stats.dropped_by_reason == {"held_out_overlap": 120} and texts_in(draft.path) == []
    (told,) = warned
    assert told.startswith("120 documents are dropped for one held-out text, document ")
