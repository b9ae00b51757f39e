"""Reads slice after slice from the sources until a round has its share of each.

1. The weights decide which source comes next, by a low-discrepancy sequence.
2. A source that is used up, or that has its share for the round, is skipped. Both are known from the slices before.
3. Of a source of weight 0, which is only measured, one slice is read, after the first of all: its holdout is known to
   nearly all that is trained on.
4. So the slices of a smaller budget are a prefix of those of a larger one, and nothing that was read changes later.

`SliceReader` depends only on the results of earlier slices. The same calls give the same slices.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from flows.dag.call import Build
from flows.dag.requests import Requests
from flows.dag.state import Slice
from storage.artifact import Artifact, Chain, Input
from storage.counts import rounded_count
from storage.errors import ConfigError, StageFailed
from tasks.corpus.holdout import texts_held_out
from tasks.corpus.packing.interleave import choose
from tasks.corpus.reading.extracted import Shelf
from tasks.corpus.reading.sources import SourceConfig, unlike_of
from tasks.corpus.reasons import commonest
from tasks.corpus.shares import key_of, large_shares, warning_of

_STRETCH = 64
_MANY_TIMES = 4
"""Readings of one text that are nearly as good as new text; beyond 16 little is gained (Muennighoff et al. 2023, arXiv
2305.16264)."""
_FEW_HELD_OUT = 20
"""Held-out documents below which a perplexity says little: the interval of a change is wider than most changes."""
_SURELY_ENOUGH = 30
"""Expected documents, which hashes choose, of which fewer than twenty are seldom left."""
_MOST_HELD_OUT = 0.5
_WAYS = {
    "extract": "look at what onward inspect says of its files",
    "ingest": "repair its files or name their column with text_field",
    "dedup": "loosen corpus.dedup, or leave out the source that holds the same text",
    "filter": "loosen corpus.filter",
    "decontaminate": "look for fewer benchmarks in corpus.decontaminate",
}
"""The stages that drop documents, and what to do where one drops nearly all."""
_HOLD_LESS = "lower corpus.holdout_fraction"
_OTHER_WAYS = {
    "where": "loosen the source's where",
    "held_out_overlap": _HOLD_LESS,
    "copy_after_filter": "leave out the source that holds the same text",
}
"""What to do where this reason is the commonest of its stage."""


LIKE_OF_A_NEW_MODEL = (
    "corpus.sources: the tokenizer of a new model is made from replay text, but a replay source with like is read after "
    "its examples, and none of these is replay text: name a replay source in its like (source or unlike), or leave like out"
)


def _hold_more(first: Slice, held: int) -> str:
    """What would hold out more of a source, of which all is held out of its first slice."""
    spare = held + int(first.artifacts["decontaminate"].stats["documents_out"])
    enough = math.ceil(100 * _SURELY_ENOUGH / max(spare, 1)) / 100
    ways = [f"raise corpus.holdout_fraction to {enough:g}"] if enough < _MOST_HELD_OUT else []
    if first.artifacts["ingest"].stats["exhausted"]:
        ways.append("give it more documents")
    else:
        ways.append("raise corpus.slice_bytes, as they are of its first slice alone")
    return ", or ".join(ways)


def _times(epochs: float) -> str:
    return f"{epochs:.1f}" if epochs < 10 else f"{int(epochs):,}"


class NothingLeft(StageFailed):
    """A source of which nothing is left to train on. All that it had was read, and is in the slices."""


@dataclass
class SliceReader:
    """The slices read so far. Only one thread at a time may use it."""

    requests: Requests
    build: Build
    tokenizer: Callable[[list[Slice]], Input]
    """Gives the tokenizer. If the base has none of its own, it is made from the first slices."""
    slices: list[Slice] = field(default_factory=list)
    cursors: dict[str, Artifact] = field(default_factory=dict)
    _signatures: list[Input] = field(default_factory=list)
    _known: list[Input] = field(default_factory=list)
    _turns: dict[tuple[str, ...], int] = field(default_factory=dict)
    _shelves: dict[str, list[Artifact | None]] = field(default_factory=dict)
    """Of each source of documents, the shelves that were begun."""

    def until(self, needed: Mapping[str, int]) -> list[Slice]:
        """Read until each source has at least `needed` tokens or is used up. Returns all slices so far.

        Raises NothingLeft if a source is used up without giving a token.
        """
        sources = [source for source in self.requests.run.corpus.sources if source.name in needed]
        while any(self._wants(source, needed) for source in sources):
            source = self._next(list(sources), needed)
            self._read(source, "tokenize")
            self._read_measured(sources, "tokenize", None)
        for source in sources:
            if needed[source.name] and not self.tokens_of(source.name):
                raise self._nothing_left(source.name)
        return list(self.slices)

    def check_repeats(self, needed: Mapping[str, int]) -> None:
        """Look at how often the sources of which all text is read would be read again for `needed` tokens, of this round
        or of a later one: warn of more than four times.

        Raises ConfigError beyond the limit of the configuration; while the text is only estimated, that is a warning too.
        """
        corpus = self.requests.run.corpus
        for source in corpus.sources:
            there, wanted = self.tokens_of(source.name), needed.get(source.name, 0)
            if not self.used_up(source.name) or wanted <= there or not there:
                continue
            field = (
                "corpus.max_epochs" if source.max_epochs is None else f"max_epochs of source {source.name}"
            )
            limit = corpus.max_epochs if source.max_epochs is None else source.max_epochs
            told = (
                f"corpus.sources: {source.name} has about {rounded_count(there)} tokens, and training takes "
                f"{rounded_count(wanted)} of it: it is read about {_times(wanted / there)} times"
            )
            ways = "More text, a smaller weight or a smaller training.token_budgets"
            if limit is not None and wanted > limit * there:
                line = f"{told}, more than {field} {limit:g} allows. {ways} keeps within it"
                if not self._estimated(source.name):
                    raise ConfigError(line)
                self.requests.warn(f"{line}; the run is refused, if the text is no more than estimated")
            elif wanted > _MANY_TIMES * there:
                self.requests.warn(
                    f"{told}. Four readings are nearly as good as new text, and beyond sixteen little is gained. {ways} "
                    "avoids it; corpus.max_epochs refuses it"
                )

    def _estimated(self, source: str) -> bool:
        return any(one.artifacts["tokenize"].estimated for one in self.slices if one.source == source)

    def _warn_of_shares(self, number: int, source: str, filtered: Artifact, documents: Input) -> None:
        masked = self.requests.run.corpus.filter.pii == "mask"
        for taken in large_shares(filtered.stats):
            said = warning_of(taken, filtered.part("dropped"), documents, masked)
            self.requests.warn(f"filter · slice {number}, of source {source}: {said}")

    def all(self, until: str, most: int | None) -> None:
        """Read every slice of every source (or the first `most` slices), up to the corpus stage `until`."""
        sources = list(self.requests.run.corpus.sources)
        if until == "extract":
            self._extract_all(sources, most)
            return
        if self.requests.new_base:  # its tokenizer is made from replay text, which a whole run reads first
            self._read(self._next([s for s in sources if s.role == "replay"], None), until)
        trained = [source for source in sources if source.reading_weight]
        while (most is None or len(self.slices) < most) and any(not self.used_up(s.name) for s in trained):
            self._read(self._next(sources, None), until)
            self._read_measured(sources, until, most)

    def tokens_of(self, source: str) -> int:
        """Tokens that a source has given so far, without the holdout."""
        return sum(int(s.artifacts["tokenize"].stats["tokens"]) for s in self.slices if s.source == source)

    def used_up(self, source: str) -> bool:
        """Whether the source has no text after the slices so far."""
        if source not in self.cursors or not self.cursors[source].stats["exhausted"]:
            return False
        shelves = self.requests.shelves(source)
        return shelves is None or len(self._shelves[source]) >= len(shelves.names)

    def holdouts(self, read: list[Slice]) -> dict[str, Input]:
        """The held-out documents of each source in the slices of the first round. All models are measured on them."""
        found: dict[str, Input] = {}
        for one in read:
            artifact = one.artifacts.get("decontaminate")
            if artifact is None or not artifact.has("holdout") or one.source in found:
                continue
            if count := texts_held_out(artifact.stats):
                found[one.source] = artifact.part("holdout")
                if count < _FEW_HELD_OUT:
                    self.requests.warn(
                        f"only {count} documents of source {one.source} are held out, and a perplexity on so few says "
                        f"little; {_hold_more(one, count)}"
                    )
            else:
                self.requests.warn(
                    f"nothing of source {one.source} is held out: its first slice left no document to spare; "
                    f"{_hold_more(one, 0)}"
                )
        return found

    def artifacts(self, stage: str) -> list[tuple[Slice, Artifact]]:
        """The artifacts of one stage, one for each slice, in order."""
        return [(one, one.artifacts[stage]) for one in self.slices if stage in one.artifacts]

    def _nothing_left(self, source: str) -> NothingLeft:
        """Where the rows of a source went, stage by stage, and what would keep most of them."""
        own = [one.artifacts for one in self.slices if one.source == source]
        losses: list[tuple[int, str, str]] = []
        for stage, way in _WAYS.items():
            counts: Counter[str] = Counter()
            for made in own:
                if stage in made:
                    counts.update(made[stage].stats["dropped_by_reason"])
            if counts:
                first = counts.most_common(1)[0][0]
                way = f"{way} ({key_of(first)})" if stage == "filter" else _OTHER_WAYS.get(first, way)
                losses.append(
                    (counts.total(), f"{stage} dropped {counts.total():,} ({commonest(counts)})", way)
                )
        if held := sum(int(made["decontaminate"].stats["documents_held_out"]) for made in own):
            losses.append((held, f"{held:,} are held out", _HOLD_LESS))
        read = sum(int(made["ingest"].stats["documents_in"]) for made in own)
        read += sum(int(made["extract"].stats["documents_dropped"]) for made in own if "extract" in made)
        where = "; ".join(words for _, words, _ in losses) or "it has none"
        way = max(losses)[2] if losses else "look at its files"
        return NothingLeft(
            f"source {source} is used up and gave no token. Of its {read:,} rows: {where}. To keep more, {way}; or give "
            "it more text. `onward explain` follows one document, and the page about the data shows examples"
        )

    def _wants(self, source: SourceConfig, needed: Mapping[str, int]) -> bool:
        return not self.used_up(source.name) and self.tokens_of(source.name) < needed[source.name]

    def _next(self, sources: list[SourceConfig], needed: Mapping[str, int] | None) -> SourceConfig:
        """The next source that needs text. A set of sources continues its sequence of turns from round to round.

        What branches alone take is read behind the rest, in turns of its own: the others' turns are those without it.
        """
        open_ = {
            source.name
            for source in sources
            if (self._wants(source, needed) if needed is not None else not self.used_up(source.name))
        }
        usual = any(source.weight for source in sources if source.name in open_)
        asked = [source for source in sources if usual or not source.weight]
        names = tuple(source.name for source in asked)
        weights = [Fraction(str(source.weight if usual else source.reading_weight)) for source in asked]
        while True:
            turn = self._turns.get(names, 0)
            chosen = asked[int(choose(weights, 1, turn)[0])]
            self._turns[names] = turn + 1
            if chosen.name in open_:
                return chosen

    def _read_measured(self, sources: list[SourceConfig], until: str, most: int | None) -> None:
        """Read the first slice of each source that is only measured, unless that was done."""
        for source in sources:
            if (
                not source.weight
                and source.name not in self.cursors
                and (most is None or len(self.slices) < most)
            ):
                self._read(source, until)

    def _read(self, source: SourceConfig, until: str) -> None:
        if source.like is not None and until not in ("ingest", "dedup"):
            self._read_examples(source, until)
        number = len(self.slices) + 1
        made: dict[str, Artifact] = {}

        def make(stage: str, request: Any) -> Artifact:
            made[stage] = self.build(request, slice=number)
            return made[stage]

        ask, name = self.requests, source.name
        first = name not in self.cursors
        shelf = self._shelf(source, make)
        ingested = make("ingest", ask.ingest(source, self.cursors.get(name), shelf))
        if until != "ingest":
            earlier = Chain(tuple(self._signatures)) if self._signatures else None
            deduped = make("dedup", ask.dedup(ingested.part("documents"), earlier))
            self._signatures.append(deduped.part("signatures"))
        if until not in ("ingest", "dedup"):
            like = make("likeness", self._likeness(source)).part("model") if source.like else None
            least = float(source.like.least) if source.like else None
            filtered = make("filter", ask.filter(deduped.part("documents"), like, least))
            self._warn_of_shares(number, name, filtered, deduped.part("documents"))
            if until != "filter":
                before = Chain(tuple(self._known)) if self._known else None
                trained = tuple(one.artifacts["decontaminate"].part("documents") for one in self.slices)
                request = ask.decontaminate(filtered.part("documents"), first, before, trained)
                self._known.append(make("decontaminate", request).part("known"))
        if until == "tokenize":
            one = Slice(number, name, made)
            if (
                self.requests.new_base
                and not self.slices
                and not made["decontaminate"].stats["documents_out"]
            ):
                self.slices.append(one)
                raise self._nothing_left(name)
            tokenizer = self.tokenizer([*self.slices, one])
            make("tokenize", ask.tokenize(made["decontaminate"].part("documents"), tokenizer))
        self.cursors[name] = ingested
        self.slices.append(Slice(number, name, made))

    def _shelf(self, source: SourceConfig, make: Callable[[str, Any], Artifact]) -> Shelf | None:
        """Where the next slice of a source of documents lies: behind the slice before, or on the next shelf, of which the
        documents are made now. None of a source that is read as it is."""
        ask, name = self.requests, source.name
        shelves = ask.shelves(name)
        if shelves is None:
            return None
        begun = self._shelves.setdefault(name, [])
        if name not in self.cursors or self.cursors[name].stats["exhausted"]:
            number = len(begun)
            begun.append(make("extract", ask.extract(source, number)) if shelves.documents(number) else None)
        return ask.shelf(source, len(begun) - 1, begun[-1])

    def _extract_all(self, sources: Sequence[SourceConfig], most: int | None) -> None:
        """Make the documents of every shelf (or of the first `most`), and nothing of them."""
        for source in sources:
            shelves = self.requests.shelves(source.name)
            for number in range(len(shelves.names) if shelves is not None else 0):
                if shelves is None or not shelves.documents(number):
                    continue
                if most is not None and len(self.slices) >= most:
                    return
                place = len(self.slices) + 1
                made = self.build(self.requests.extract(source, number), slice=place)
                self.slices.append(Slice(place, source.name, {"extract": made}))

    def _examples_of(self, source: SourceConfig) -> tuple[str, str]:
        """The sources that show what the documents of this one have to be like, and unlike."""
        assert source.like is not None
        unlike = unlike_of(self.requests.run.corpus.sources, source.like)
        assert unlike is not None  # the configuration was checked
        return source.like.source, unlike

    def _read_examples(self, source: SourceConfig, until: str) -> None:
        """Read the first slices of these, if that was not done; for a new model, whose tokenizer is made of it, replay text
        first."""
        known = {one.name: one for one in self.requests.run.corpus.sources}
        names = list(self._examples_of(source))
        if self.requests.new_base:
            names.sort(key=lambda name: known[name].role != "replay")
        for name in names:
            if name not in self.cursors:
                self._read(known[name], until)

    def _likeness(self, source: SourceConfig) -> Any:
        names = self._examples_of(source)
        firsts = [next(one for one in self.slices if one.source == name) for name in names]
        one, other = (first.artifacts["dedup"].part("documents") for first in firsts)
        return self.requests.likeness(names, one, other)
