"""A store with a real small model, a slightly trained copy of it, held-out documents and journals, for tests."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.artifact import Artifact
from storage.draft import Draft
from storage.settings import Settings, identity
from storage.testing import artifact_of
from tasks.corpus.documents import document_ids, write_documents

LENGTH = 128


class FilesConfig(Settings):
    stats: dict[str, Any] = identity(description="what the artifact reports")


@dataclass(frozen=True)
class FilesInputs:
    parts: dict[str, str]


def stage_of_files(stage: str) -> Any:
    """A stage that copies directories, each as a part, and reports the statistics that it was given."""

    def run(config: FilesConfig, inputs: FilesInputs, draft: Draft) -> dict[str, Any]:
        for part, directory in inputs.parts.items():
            for file in sorted(Path(directory).rglob("*")):
                if file.is_file():
                    target = draft.path / part / file.relative_to(directory)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, target)
            draft.part(part, part)
        return config.stats

    return SimpleNamespace(STAGE=stage, VERSION=1, run=run)


@dataclass(frozen=True)
class Case:
    """Artifacts in a store below `root`, made of the real data in `data`."""

    root: Path
    data: Path

    @property
    def store(self) -> Path:
        return self.root / "store"

    def artifact(self, stage: str, stats: dict[str, Any] | None = None, **parts: Path) -> Artifact:
        inputs = FilesInputs({name: str(path) for name, path in parts.items()})
        return artifact_of(stage_of_files(stage), FilesConfig(stats=stats or {}), inputs, self.store)

    @cached_property
    def texts(self) -> list[str]:
        """Beginnings of real educational documents."""
        table = pq.read_table(self.data / "edu/part-00000.parquet", columns=["text"]).slice(0, 60)
        return [text[:4000] for text in table["text"].to_pylist()]

    @cached_property
    def base(self) -> Artifact:
        return self.artifact("base", export=self.data / "models/stories260K-hf")

    @cached_property
    def trained(self) -> Artifact:
        """The same model after a few steps on the other half of the documents, with a journal of two segments."""
        exported, journal = self.root / "trained", self.root / "journal"
        losses = train_a_little(self.data / "models/stories260K-hf", self.texts[30:], exported)
        journal.mkdir()
        steps = len(losses)
        columns = {
            "step": range(1, steps + 1),
            "tokens": [1024 * (n + 1) for n in range(steps)],
            "loss": losses,
        }
        pq.write_table(
            pa.table({name: list(values) for name, values in columns.items()}), journal / "journal.parquet"
        )
        stats = {"tokens": 1024 * steps, "tokens_seen": 1024 * steps}
        return self.artifact("train", stats, export=exported, journal=journal)

    def holdout(self, texts: list[str], source: str = "edu") -> Artifact:
        directory = self.root / f"holdout-{source}-{len(texts)}"
        ids = document_ids(source, 0, len(texts))
        table = pa.table({"id": ids, "source": [source] * len(ids), "text": texts, "meta": ["{}"] * len(ids)})
        (directory / "s0000").mkdir(parents=True, exist_ok=True)
        write_documents(directory / "s0000" / "part.parquet", table)
        return self.artifact("decontaminate", holdout=directory)

    def benchmark_files(self, name: str, rows: int, split: str = "test") -> Path:
        """A directory of local copies that holds the first rows of one benchmark."""
        directory = self.root / "benchmarks"
        (directory / name).mkdir(parents=True, exist_ok=True)
        lines = (self.data / "benchmarks" / name / f"{split}.jsonl").read_text().split("\n")[:rows]
        (directory / name / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
        return directory


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Iterator[Case]:
    """A case for the tests of a module."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # beside other tests, waiting threads cost more than they give
    yield Case(tmp_path_factory.mktemp("case"), shared_data)
    torch.set_num_threads(threads)


def train_a_little(start: Path, texts: list[str], to: Path, steps: int = 30) -> list[float]:
    """AdamW over windows of the texts; saves what from_pretrained loads and gives the losses."""
    import torch
    from transformers import AutoModelForCausalLM

    from tasks.evaluation.model import load_text_tokenizer

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    tokenizer = load_text_tokenizer(start)
    ids = [token for text in texts for token in (2, *tokenizer.encode(text, add_special_tokens=False).ids)]
    windows = torch.tensor(ids[: len(ids) // LENGTH * LENGTH]).view(-1, LENGTH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for step in range(steps):
        batch = windows[torch.arange(step * 8, step * 8 + 8) % len(windows)]
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    model.save_pretrained(to)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(start / name, to / name)
    return losses


def scores(artifact: Artifact) -> dict[str, Any]:
    """What scores.json says."""
    return dict(json.loads(artifact.part("scores").only().read_text()))
