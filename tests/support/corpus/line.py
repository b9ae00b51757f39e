"""A whole corpus for tests: sources as JSON lines, through every stage from ingest to pack, in a real store."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from storage.artifact import Artifact, Chain, Input
from storage.testing import artifact_of
from storage.workers import Workers
from tasks.corpus import decontaminate, dedup, ingest, pack, tokenize
from tasks.corpus import filter as quality
from tasks.corpus.benchmarks.questions import benchmark_inputs
from tasks.corpus.decontaminate import DecontaminateConfig, DecontaminateInputs
from tasks.corpus.dedup import DedupConfig, DedupInputs
from tasks.corpus.filter import FilterConfig, FilterInputs
from tasks.corpus.ingest import FileDigests, IngestConfig, SourceConfig, plan_slice
from tasks.corpus.pack import PackConfig, PackingConfig, PackInputs, SourceWeight
from tasks.corpus.tokenize import TokenizeConfig, TokenizeInputs
from tests.support.corpus.tokens import tokenizer_input

ALL_COPIES = DedupConfig()
OPEN = FilterConfig(language="any", gopher=False, c4=False, fineweb=False, pii="off")


def write_source(path: Path, rows: Sequence[Mapping[str, Any] | bytes]) -> None:
    """JSON lines; bytes stand as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"".join(line + b"\n" for line in lines))


def gpt2(shared_data: Path, directory: Path) -> Input:
    """GPT-2's tokenizer as a part of a base model."""
    return tokenizer_input(directory, shared_data / "tokenizers" / "gpt2" / "tokenizer.json", "<|endoftext|>")


@dataclass
class Line:
    """Slices of sources (names of files below `root`), in turn; each stage as it is configured here."""

    root: Path
    store: Path
    tokenizer: Input
    sources: tuple[str, ...]
    slice_bytes: int = 20_000
    dedup: DedupConfig = ALL_COPIES
    filter: FilterConfig = OPEN
    benchmarks: tuple[str, ...] = ()
    files: Path | None = None
    holdout: float = 0.1
    bad: float = 1.0
    workers: Workers | None = None
    slices: list[Any] = field(default_factory=list)
    packed: list[Artifact] = field(default_factory=list)

    def read(self, most: int = 100) -> Line:
        """Up to so many slices in all, source by source in turn; those that are there already stay."""
        while len(self.slices) < most:
            waiting = [name for name in self.sources if not self._used_up(name)]
            if not waiting:
                break
            counts = {name: sum(one.source == name for one in self.slices) for name in waiting}
            self._slice(min(waiting, key=lambda name: (counts[name], self.sources.index(name))))
        return self

    def pack(self, sequences: int, length: int = 32) -> Line:
        """One more round of so many sequences, of all slices so far."""
        config = PackConfig(
            packing=PackingConfig(sequence_length=length, window_tokens=4096),
            sources=tuple(SourceWeight(name=name, weight=1.0) for name in self.sources),
            first_sequence=sum(made.stats["sequences"] for made in self.packed),
            sequences=sequences,
        )
        shards = {
            name: tuple(one.artifacts["tokenize"].part("tokens") for one in self.slices if one.source == name)
            for name in self.sources
        }
        state = self.packed[-1].part("state") if self.packed else None
        self.packed.append(artifact_of(pack, config, PackInputs(shards, state), self.store, self.workers))
        return self

    def digests(self) -> list[dict[str, str]]:
        """Of each slice and round, the digest of every part."""
        made = [artifact for one in self.slices for artifact in one.artifacts.values()] + self.packed
        return [
            {f"{one.stage}.{name}": part.digest for name, part in one.manifest.parts.items()}
            | {one.stage: one.key}
            for one in made
        ]

    def _own(self, source: str) -> list[Any]:
        return [one for one in self.slices if one.source == source]

    def _used_up(self, source: str) -> bool:
        own = self._own(source)
        return bool(own) and bool(own[-1].artifacts["ingest"].stats["exhausted"])

    def _slice(self, name: str) -> None:
        source = SourceConfig(name=name, role="domain", weight=1.0, files=(f"{name}.jsonl",))
        config = IngestConfig.of(source, slice_bytes=self.slice_bytes, seed=0, max_bad_fraction=self.bad)
        own = self._own(name)
        plan = plan_slice(
            config,
            source,
            own[-1].artifacts["ingest"].part("cursor") if own else None,
            self.root,
            FileDigests(None),
        )
        assert plan is not None
        made = {"ingest": self._make(ingest, config, plan.inputs)}
        links = tuple(one.artifacts["dedup"].part("signatures") for one in self.slices)
        inputs = DedupInputs(made["ingest"].part("documents"), Chain(links) if links else None)
        made["dedup"] = self._make(dedup, self.dedup, inputs)
        made["filter"] = self._make(quality, self.filter, FilterInputs(made["dedup"].part("documents")))
        known, paths = benchmark_inputs(self.files, self.benchmarks)
        settings = DecontaminateConfig(
            benchmarks=self.benchmarks, holdout_fraction=self.holdout, copies=self.dedup.exact
        )
        before = [one.artifacts["decontaminate"] for one in self.slices]
        earlier = Chain(tuple(one.part("known") for one in before)) if before else None
        trained = tuple(one.part("documents") for one in before) if not own and self.holdout else ()
        wanted = DecontaminateInputs(
            made["filter"].part("documents"), known, not own, paths, earlier, trained
        )
        made["decontaminate"] = self._make(decontaminate, settings, wanted)
        given = TokenizeInputs(made["decontaminate"].part("documents"), self.tokenizer)
        made["tokenize"] = self._make(tokenize, TokenizeConfig(), given)
        self.slices.append(SimpleNamespace(number=len(self.slices) + 1, source=name, artifacts=made))

    def _make(self, module: Any, config: Any, inputs: Any) -> Artifact:
        return artifact_of(module, config, inputs, self.store, self.workers)
