"""Looking back only: what is read and packed does not change with what comes later, whoever reads on, and how.

Two stores of the same text. In one, the DAG reads for a first budget (or n slices), one stage after the other, and then a
process of its own, started anew, goes on for a second budget (or m slices more). In the other, another process reads all of
it at once, with stages prepared side by side by two readers. Every file of the first n slices and of the first packing
manifest must be the same as it was, in both; and what comes later, too.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from flows.config import load_config
from flows.dag.requests import Requests
from flows.dag.slices import SliceReader
from storage.artifact import Chain
from storage.store import Making, Store
from tests.support import ROOT
from tests.support.reader import facts, read

pytestmark = pytest.mark.slow
SOURCES = {"tales": ("domain", 0.6), "letters": ("replay", 0.3), "notes": ("domain", 0.1)}
QUESTION = "Which of these rivers, if any, had carried the grain of the northern plains down to the sea?"
NOTICE = "This work is licensed to everybody under the same terms as the last one."
PLAIN = ("the", "grain", "of", "river", "Fuß", "naïve", "日本語", "mill.", "\n")
ODD = ("\U0001f30a", "a\u0301", "\u200b", "\u2028", "\ufeff", "<|endoftext|>", "\x00", "x@y.org")
TEXTS = st.lists(st.sampled_from(PLAIN + ODD), min_size=1, max_size=60).map(" ".join)
CHANGED: dict[str, Callable[[str], str]] = {
    "own": str,
    "copy": str.upper,
    "near": lambda text: f"{text} again",
    "asked": lambda text: f"{text} {QUESTION}",
    "noticed": lambda text: f"{NOTICE}\n{text}",
}
PLACES = st.lists(
    st.tuples(st.sampled_from(sorted(SOURCES)), st.sampled_from(sorted(CHANGED))), min_size=1, max_size=3
)
CORPORA = st.lists(st.tuples(TEXTS, PLACES), max_size=12)
STEPS = st.integers(1, 30)
FEW = settings(
    max_examples=3,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # to shrink an example takes minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
Corpus = list[tuple[str, list[tuple[str, str]]]]
Facts = dict[str, list[Any]]


def prose(name: str) -> list[str]:
    """Pages that are kept, but for a copy, a near-copy, a question, repeated lines and one that a rule drops."""
    pages = [
        " ".join(
            f"In {name} the cart with number {page}{i} was driven to the mill and back." for i in range(8)
        )
        for page in range(12)
    ]
    pages[1:3] = [f"{NOTICE}\n{page}" for page in pages[1:3]]
    other = [pages[0].upper(), f"{pages[3]} again", f"{pages[10]} {QUESTION}", f"Lorem ipsum. {pages[11]}"]
    return [*pages[:10], *other]


def write(home: Path, corpus: Corpus) -> None:
    """The sources as JSON lines, and the benchmark."""
    rows = {name: prose(name) for name in SOURCES}
    for text, places in corpus:
        for name, how in places:
            rows[name].append(CHANGED[how](text))
    for name, texts in rows.items():
        (home / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    quiz = {"question": QUESTION, "choices": ["The Styx", "The Po"], "answer": 1}
    (home / "quiz.jsonl").write_text(json.dumps(quiz) + "\n")


@dataclass(frozen=True)
class Base:
    """The base model, and a store that holds it already, which an example's store begins as."""

    model: Path
    store: Path | None


def configured(home: Path, base: Base, store: str, budgets: list[int]) -> Path:
    """A configuration in `home`, with its store."""
    if base.store is not None and not (home / store).exists():
        shutil.copytree(base.store / "base", home / store / "base")
    sources = [
        {"name": name, "role": role, "weight": weight, "files": [str(home / f"{name}.jsonl")]}
        for name, (role, weight) in SOURCES.items()
    ]
    raw = {
        "name": "back",
        "store": str(home / store),
        "corpus": {
            "sources": sources,
            "slice_bytes": 2500,
            "holdout_fraction": 0.1,
            "max_bad_fraction": 1.0,
            "dedup": {"paragraphs": {}},
            "filter": {
                "language": "any",
                "gopher": False,
                "fineweb": False,
                "thresholds": {"c4_too_few_sentences": None},
            },
            "decontaminate": {"benchmarks": ["quiz"]},
        },
        "model": {"base": str(base.model)},
        "packing": {"sequence_length": 32, "window_tokens": 1024},
        "training": {
            "token_budgets": budgets,
            "batch_tokens": 64,
            "learning_rate": 1e-3,
            "precision": "fp32",
        },
        "evaluation": {"own": [{"name": "quiz", "group": "domain", "file": str(home / "quiz.jsonl")}]},
    }
    path = home / f"{store}-{len(budgets)}.json"
    path.write_text(json.dumps(raw))
    return path


@contextlib.contextmanager
def reading_anew(config: Path, *slices: int) -> Iterator[Callable[[], Facts]]:
    """A process of its own that reads side by side, and what it found at its end."""
    command = [sys.executable, "-m", "tests.support.reader", str(config), *map(str, slices)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ONWARD_HOME": str(config.parent)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True) as process:

        def found() -> Facts:
            told, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors[-4000:]
            return Facts(json.loads(told))

        yield found


def read_here(config: Path, *slices: int) -> Facts:
    """In this process, one stage after the other."""
    return Facts(json.loads(json.dumps(facts(read(config, *slices)))))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Base:
    """A real one, imported once."""
    model = shared_data / "models" / "stories260K-hf"
    home = home_of(tmp_path_factory, [])
    run = load_config(configured(home, Base(model, None), "store", [64]))
    store = Store(run.store_path)
    store.ensure(Requests(run, store, warn=lambda _: None).imported(), Making())
    return Base(model, store.root)


def home_of(factory: pytest.TempPathFactory, corpus: Corpus) -> Path:
    """A directory of its own for an example."""
    home = factory.mktemp("example")
    write(home, corpus)
    return home


def only_back(few: Facts, grown: Facts, whole: Facts) -> None:
    """What the first read is the same everywhere, and what came later in both that read on."""
    slices, rounds = len(few["slices"]), len(few["rounds"])
    for other in (grown, whole):
        assert few == {"slices": other["slices"][:slices], "rounds": other["rounds"][:rounds]}
    assert grown == whole
    for number, _, stages in whole["slices"]:
        assert set(stages) == {"ingest", "dedup", "filter", "decontaminate", "tokenize"}, number
        assert all(len(files) > 1 for files in stages.values())


@FEW
@given(corpus=CORPORA, first=STEPS, second=STEPS)
def test_a_second_budget_changes_nothing_that_the_first_has_read_and_packed(
    tmp_path_factory: pytest.TempPathFactory, base: Base, corpus: Corpus, first: int, second: int
) -> None:
    home = home_of(tmp_path_factory, corpus)
    one, two = [64 * first], [64 * first, 64 * (first + second)]
    with reading_anew(configured(home, base, "whole", two)) as whole:
        few = read_here(configured(home, base, "few", one))
        with reading_anew(configured(home, base, "few", two)) as grown:
            only_back(few, grown(), found := whole())
    assert (len(few["rounds"]), len(found["rounds"])) == (1, 2)


@settings(parent=FEW, max_examples=2)
@given(corpus=CORPORA, n=st.integers(1, 5), m=st.integers(1, 5))
def test_more_slices_change_nothing_of_those_before_them(
    tmp_path_factory: pytest.TempPathFactory, base: Base, corpus: Corpus, n: int, m: int
) -> None:
    home = home_of(tmp_path_factory, corpus)
    config = configured(home, base, "few", [64])
    with reading_anew(configured(home, base, "whole", [64]), n + m) as whole:
        few = read_here(config, n)
        assert len(few["slices"]) == n
        with reading_anew(config, n + m) as grown:
            only_back(few, grown(), whole())


def test_a_round_that_reads_for_the_next_would_be_seen(
    tmp_path_factory: pytest.TempPathFactory, base: Base
) -> None:
    home, until = home_of(tmp_path_factory, []), SliceReader.until
    few = read_here(configured(home, base, "few", [640]))

    def further(reading: SliceReader, needed: Mapping[str, int]) -> Any:
        return until(reading, {name: tokens + 1500 for name, tokens in needed.items()})

    with mock.patch.object(SliceReader, "until", further):
        whole = read_here(configured(home, base, "whole", [640, 1280]))
    with pytest.raises(AssertionError):
        only_back(few, whole, whole)


def test_a_slice_that_is_compared_with_later_ones_would_be_seen(
    tmp_path_factory: pytest.TempPathFactory, base: Base
) -> None:
    home, dedup = home_of(tmp_path_factory, []), Requests.dedup
    few = read_here(configured(home, base, "few", [640]), 1)
    later = read(configured(home, base, "later", [640]), 4)
    chain = Chain(tuple(one.artifacts["dedup"].part("signatures") for one in later.slices))
    with mock.patch.object(Requests, "dedup", lambda ask, given, _: dedup(ask, given, chain)):
        whole = read_here(configured(home, base, "whole", [640]), 1)
    with pytest.raises(AssertionError):
        only_back(few, whole, whole)
    assert few["slices"][0][2]["ingest"] == whole["slices"][0][2]["ingest"]
