"""Artifacts as the stages leave them, with numbers that a reader can check by hand; and the report of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from storage.artifact import Artifact
from storage.draft import Draft
from storage.testing import artifact_of
from tasks.evaluation.catalog import EvaluationConfig, OwnBenchmark
from tasks.pages.report import report
from tests.support.evaluation.cases import FilesConfig, FilesInputs, stage_of_files

SECTION = EvaluationConfig(
    domain=("sciq",), own=(OwnBenchmark(name="mine", group="general", file="mine.jsonl"),)
)


def timed(stage: str) -> Any:
    """A training stage that took half a second a step, on two threads."""
    plain = stage_of_files(stage)

    def run(config: FilesConfig, inputs: FilesInputs, draft: Draft) -> dict[str, Any]:
        stats: dict[str, Any] = plain.run(config, inputs, draft)
        steps = stats["tokens"] // 1000
        clock = {"step": list(range(steps)), "seconds": [0.5] * steps, "peak_memory": [10**9] * steps}
        pq.write_table(pa.table(clock), draft.path / "clock.parquet")
        draft.volatile("clock.parquet")
        draft.note(device="cpu", device_name="test machine", processes=1, threads=2)
        return stats

    return SimpleNamespace(STAGE=stage, VERSION=1, run=run)


class World:
    """Artifacts as the stages leave them, with numbers that a reader can check by hand."""

    def __init__(self, root: Path) -> None:
        self.root, self.count = root, 0

    def artifact(
        self, stage: str, stats: dict[str, Any], files: dict[str, dict[str, Any]] | None = None
    ) -> Artifact:
        """Parts by name, each with its files: a dict becomes JSON, a table Parquet."""
        self.count += 1
        parts = {}
        for part, contents in (files or {}).items():
            directory = self.root / "made" / str(self.count) / part
            directory.mkdir(parents=True)
            for name, content in contents.items():
                if isinstance(content, pa.Table):
                    pq.write_table(content, directory / name)
                else:
                    (directory / name).write_text(json.dumps(content))
            parts[part] = str(directory)
        inputs = FilesInputs(parts)
        made = timed(stage) if stage in ("train", "decay") else stage_of_files(stage)
        return artifact_of(made, FilesConfig(stats={**stats, "n": self.count}), inputs, self.root / "store")

    def evaluation(self, name: str, right: list[float], **over: Any) -> Artifact:
        mean = sum(right) / len(right)
        scores = {
            "benchmark": name,
            "main": "acc",
            "metrics": {"acc": mean},
            "stderr": {"acc": 0.05},
            "chance": 0.25,
            "questions": len(right),
            "available": 100,
            "limit": len(right),
            "split": "test",
            "shots": 0,
            "max_length": 64,
            "harness": "0.4.13",
            **over,
        }
        rows = {
            "subject": pa.nulls(len(right), pa.string()),
            "doc": list(range(len(right))),
            "acc": right,
            "loglikelihoods": [[-1.0, -2.0, -3.0, -4.0]] * len(right),
            "target": [0 if name == "mine" else k % 4 for k in range(len(right))],
        }
        files = {"scores": {"scores.json": scores}, "questions": {"questions.parquet": pa.table(rows)}}
        return self.artifact("evaluate", {}, files)

    def perplexity(self, nll: list[float], **over: Any) -> Artifact:
        tokens = [100] * len(nll)
        mean = sum(nll) / sum(tokens)
        scores = {
            "perplexity": 2.718281828459045**mean,
            "bits_per_byte": mean / 2,
            "tokens": sum(tokens),
            "bytes": 4 * sum(tokens) // 3,
            "documents": len(nll),
            "max_length": 64,
            "stride": 32,
            **over,
        }
        table = pa.table({"id": list(range(len(nll))), "nll": nll, "tokens": tokens, "bytes": tokens})
        return self.artifact(
            "perplexity", {}, {"scores": {"scores.json": scores}, "documents": {"documents.parquet": table}}
        )

    def segment(self, stage: str, first: int, steps: int) -> Artifact:
        rows = {
            "step": [first + step for step in range(1, steps + 1)],
            "tokens": [1000 * (first + step) for step in range(1, steps + 1)],
            "loss": [4.0 - 0.1 * s for s in range(steps)],
        }
        stats = {"tokens": 1000 * steps, "tokens_seen": 1000 * (first + steps)}
        files: dict[str, dict[str, Any]] = {"journal": {"journal.parquet": pa.table(rows)}}
        if stage == "decay":
            files["export"] = {"config.json": {"number": self.count}}
        return self.artifact(stage, stats, files)

    def slice(self, number: int, source: str, lost: int = 0) -> Any:
        """100 documents: 10 duplicates, 5 filtered, 5 held out, 80 tokenized; `lost` vanish without a reason."""
        flow = [
            ("ingest", 100, 0, 0),
            ("dedup", 100, 10, 0),
            ("filter", 90, 5, 0),
            ("decontaminate", 85, 0, 5),
            ("tokenize", 80, 0, 0),
        ]
        made = {}
        for stage, came, dropped, held in flow:
            stats = {
                "documents_in": came,
                "documents_out": came - dropped - held - (lost if stage == "filter" else 0),
                "documents_dropped": dropped,
                "documents_held_out": held,
                "bytes_out": 10_000,
                "dropped_by_reason": {"near_duplicate" if stage == "dedup" else "language": dropped}
                if dropped
                else {},
                **({"tokens": 4000} if stage == "tokenize" else {}),
            }
            found = {
                "questions": 1000,
                "indexed": 900,
                "unchecked": 100,
                "questions_found": 2,
                "documents_found": 1,
            }
            hits = {"hits": {"hits.json": {"sciq": found}}} if stage == "decontaminate" else {}
            made[stage] = self.artifact(stage, stats, hits)
        return SimpleNamespace(number=number, source=source, artifacts=made)

    def pack(self, epochs: float) -> Artifact:
        ledger = {"tokens": 3000, "epochs": epochs, "tokens_available": 4000, "tokens_repeated": 0}
        stats = {
            "sequences": 50,
            "tokens": 3000,
            "padding": 200,
            "padding_fraction": 0.0625,
            "documents_whole": 3,
        }
        return self.artifact("pack", {**stats, "documents_cut": 4, "sources": {"edu": ledger}})

    def outcome(
        self,
        lost: int = 0,
        epochs: float = 0.75,
        last: int = 16,
        asked: Mapping[str, Any] | None = None,
        read: Mapping[str, Any] | None = None,
    ) -> Any:
        """Three models, of which the last answers `last` of 20 questions, `asked` and `read` in another way."""
        trunk, more = self.segment("train", 0, 8), self.segment("train", 8, 10)
        first, second = self.segment("decay", 8, 2), self.segment("decay", 18, 2)
        right = [[1.0] * 2 + [0.0] * 18, [1.0] * 4 + [0.0] * 16, [1.0] * last + [0.0] * (20 - last)]
        nll = [[300.0, 310.0, 290.0] * 4, [300.5, 309.0, 290.9] * 4, [200.0, 212.0, 188.0] * 4]
        shown = [("base", 0, self.artifact("base", {}, {"export": {"config.json": {}}}), [])]
        shown += [("10K", 10_000, first, [trunk, first]), ("20K", 20_000, second, [trunk, more, second])]
        models = [
            SimpleNamespace(
                samples=None,
                name=name, tokens=tokens, export=export, journals=journals,
                scores={
                    "sciq": self.evaluation("sciq", right[place], **asked or {}),
                    "mine": self.evaluation("mine", right[0]),
                },
                perplexity={"edu": self.perplexity(nll[place], **read or {})},
            )
            for place, (name, tokens, export, journals) in enumerate(shown)
        ]  # fmt: skip
        slices = [self.slice(1, "edu"), self.slice(2, "edu", lost)]
        return SimpleNamespace(
            models=models, merged=[], slices=slices, packed=[self.pack(epochs)], counted={}
        )


def made(world: World, outcome: Any) -> tuple[Artifact, dict[str, Any]]:
    artifact = artifact_of(report, *report.report_request(SECTION, outcome), world.root / "store")
    return artifact, json.loads((artifact.path / "report.json").read_text())
