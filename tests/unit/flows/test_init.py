"""A first configuration fits the folder that it was made for, and says why."""

from __future__ import annotations

import gzip
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.config import RunConfig, load_config
from flows.runs.checks import advice, check
from flows.runs.first_config import first_config
from flows.runs.first_sizes import EPOCHS
from storage.errors import ConfigError
from storage.yaml_text import parse_yaml
from tasks.models.base import InitConfig
from tests.support.small import write_text


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Documents of sentences; the home of the run is an empty directory."""
    write_text(tmp_path / "words", 120)
    monkeypatch.setenv("ONWARD_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    lines = (tmp_path / "words/domain-0.jsonl").read_text().splitlines()
    return [json.loads(line)["text"] for line in lines]


def made(folder: Path, **options: Any) -> tuple[RunConfig, str]:
    """The configuration, which the run's own checks take without a warning."""
    first = first_config(folder, **options)
    path = folder.parent / "made.yaml"
    path.write_text(first.yaml)
    run = load_config(path)
    check(run)
    assert advice(run) == []
    return run, first.yaml


def notes(folder: Path, texts: list[str], suffix: str = ".md") -> Path:
    (folder / "below").mkdir(parents=True)
    for number, text in enumerate(texts):
        (folder / ("below" if number % 2 else ".") / f"note {number}{suffix}").write_text(text)
    return folder


def test_a_folder_of_notes(tmp_path: Path, texts: list[str]) -> None:
    folder = notes(tmp_path / "My Notes", texts)
    (folder / ".hidden.md").write_text("no")
    (folder / "empty.md").write_text("")
    run, _ = made(folder)
    domain, general = run.corpus.sources
    assert (domain.files, domain.role, general.role) == (("My Notes/**/*.md",), "domain", "replay")
    assert run.name == "my-notes" and run.corpus.holdout_fraction * 60 == 15, "ten give a verdict"
    size = sum(len(text) for text in texts)
    assert size / 5 < run.training.token_budgets[-1] < EPOCHS * size / 2
    first = first_config(folder)
    assert any("60 files, about 60 documents" in note for note in first.notes)


def test_what_is_read_is_named_where_its_suffix_is_not_enough(tmp_path: Path, texts: list[str]) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    for number in range(20):
        rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (folder / f"rows {number}.json").write_text(rows)
    (folder / "list.json").write_text('{\n "text": 1\n}\n')
    run, _ = made(folder)
    files = run.corpus.sources[0].files
    assert files is not None and len(files) == 20
    assert "mixed/rows 0.json" in files and "mixed/list.json" not in files


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "jsonl.gz"])
def test_the_field_of_the_text_is_found(tmp_path: Path, texts: list[str], kind: str) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    rows = [{"id": f"a{number}", "body": text, "n": number} for number, text in enumerate(texts)]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    else:
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        (folder / f"rows.{kind}").write_bytes(gzip.compress(data) if kind.endswith("gz") else data)
    run, _ = made(folder)
    source = run.corpus.sources[0]
    assert source.text_field == "body" and source.files == (f"rows/**/*.{kind}",)


def test_rules_that_would_take_the_text_are_switched_off_and_the_file_says_so(
    tmp_path: Path, texts: list[str]
) -> None:
    rng = random.Random(1)
    lists = ["\n".join(f"- {rng.choice(text.split())}" for _ in range(60)) for text in texts]
    run, yaml = made(notes(tmp_path / "lists", lists))
    plain, _ = made(notes(tmp_path / "plain", texts))
    off = {name for name in ("gopher", "c4", "fineweb") if not getattr(run.corpus.filter, name)}
    assert off | set(run.corpus.filter.thresholds), yaml
    assert len(run.corpus.filter.thresholds) + len(off) > len(plain.corpus.filter.thresholds)
    assert "% of a sample" in yaml or "of a sample:" in yaml


def test_text_in_another_language_is_kept(tmp_path: Path, texts: list[str]) -> None:
    german = "Der alte Mann ging langsam durch den Wald und dachte an die Zeit, in der er noch jung war. "
    folder = notes(tmp_path / "deutsch", [german * (8 + number) for number in range(40)])
    assert made(folder)[0].corpus.filter.language == "any"


def test_of_a_few_books_pieces_are_held_out(tmp_path: Path, texts: list[str]) -> None:
    books = ["\n".join(texts[number::12] * 3) for number in range(12)]
    run, yaml = made(notes(tmp_path / "library", books))
    assert run.corpus.holdout_piece == 4000 and "a piece" in yaml
    assert made(notes(tmp_path / "notes", texts))[0].corpus.holdout_piece is None


def test_of_few_notes_enough_is_held_out_for_a_verdict(tmp_path: Path, texts: list[str]) -> None:
    long = notes(tmp_path / "long", [" ".join(texts[number : number + 10]) for number in range(30)])
    run, yaml = made(long)
    piece = run.corpus.holdout_piece
    assert piece is not None and piece >= 500, yaml
    sizes = sorted(path.stat().st_size for path in long.rglob("*.md"))
    assert sizes[9] >= 4 * piece, "of most of them a piece is held out"
    short = notes(tmp_path / "short", [text[:1500] for text in texts[:30]])
    run, yaml = made(short)
    assert run.corpus.holdout_piece is None and 0.4 < run.corpus.holdout_fraction < 0.5
    assert "fewer than 10 give no verdict" in yaml


def test_questions_are_asked_only_of_texts_that_are_long_enough(tmp_path: Path, texts: list[str]) -> None:
    lines = [" ".join(text.split()[:60]) for text in texts for _ in range(6)]
    short, _ = made(notes(tmp_path / "lines", [f"{line} {number}" for number, line in enumerate(lines)]))
    assert not short.evaluation.own
    pages = [" ".join(text.split() * 12) for text in texts]
    (own,) = made(notes(tmp_path / "pages", [f"{page} {n}" for n, page in enumerate(pages)]))[
        0
    ].evaluation.own
    assert own.questions >= 12


def test_the_small_model_is_trained_in_few_steps_and_reads_little(tmp_path: Path, texts: list[str]) -> None:
    run, _ = made(notes(tmp_path / "few", [text[:1400] for text in texts[:30]]))
    base = run.model.base
    assert isinstance(base, InitConfig)
    assert base.pretrain_tokens <= 200 * run.training.batch_tokens
    assert 10 * base.pretrain_tokens < run.corpus.slice_bytes < 6_000_000
    assert run.training.token_budgets[0] >= 60 * run.training.batch_tokens


def test_programs_are_text(tmp_path: Path, texts: list[str]) -> None:
    folder = tmp_path / "code"
    shutil.copytree(
        Path(__file__).parents[3] / "flows/commands", folder / "src", ignore=lambda _, names: {"__pycache__"}
    )
    run, _ = made(folder)
    assert run.corpus.sources[0].files == ("code/**/*.py",)
    assert "c4_curly_brackets" in run.corpus.filter.thresholds or not run.corpus.filter.c4


def test_what_is_no_model_is_refused_and_one_of_the_hub_is_spoken_of(
    tmp_path: Path, texts: list[str]
) -> None:
    folder = notes(tmp_path / "own", texts)
    with pytest.raises(ConfigError, match=r"--base own holds no config\.json"):
        first_config(folder, base="own")
    with pytest.raises(ConfigError, match="no such directory, and it is no name of a model on the hub"):
        first_config(folder, base="../models/mine")
    (note,) = [one for one in first_config(folder, base="owner/Model").notes if "hf download" in one]
    assert "owner/Model is not on this machine" in note and "--local-dir models/model" in note
    assert any("needs no network" in one for one in first_config(folder).notes)


def test_a_model_and_general_text(tmp_path: Path, texts: list[str]) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_positions": 512}))
    run, _ = made(
        notes(tmp_path / "own", texts), base="base", general=notes(tmp_path / "books", texts[:20], ".txt")
    )
    assert run.model.base == "base" and run.packing.sequence_length == 512
    assert [source.name for source in run.corpus.sources] == ["domain", "general"]
    assert run.corpus.sources[1].files == ("books/**/*.txt",)
    alone, _ = made(tmp_path / "own", base="owner/model")
    assert len(alone.corpus.sources) == 1 and alone.corpus.sources[0].weight == 1.0


def test_what_is_too_little_or_nothing_is_refused(tmp_path: Path, texts: list[str]) -> None:
    with pytest.raises(ConfigError, match="is no directory"):
        first_config(tmp_path / "none")
    (tmp_path / "none").mkdir()
    with pytest.raises(ConfigError, match="nothing that can be read: it holds no file with text"):
        first_config(tmp_path / "none")
    with pytest.raises(ConfigError, match="tokens of text that passes the filter"):
        first_config(notes(tmp_path / "few", texts[:2]))


def test_the_command_writes_a_file_once(tmp_path: Path, texts: list[str]) -> None:
    folder = notes(tmp_path / "notes", texts)
    first = CliRunner().invoke(app, ["init", str(folder)])
    assert first.exit_code == 0, first.output
    written = tmp_path / "notes.yaml"
    assert parse_yaml(written.read_text(), "it")["name"] == "notes"
    again = CliRunner().invoke(app, ["init", str(folder)])
    assert isinstance(again.exception, ConfigError) and "is there already" in str(again.exception)
