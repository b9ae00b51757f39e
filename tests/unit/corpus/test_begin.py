"""What a tokenizer begins and ends a text with, as its files say it, and as transformers then does it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from storage.errors import ConfigError
from tasks.corpus.tokens.begin import Ends, begin_id, ends_of, told


@pytest.fixture
def files(tmp_path: Path, shared_data: Path) -> Path:
    """A copy of a real tokenizer, which puts <s> before a text by itself."""
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copyfile(shared_data / "models/stories260K-hf" / name, tmp_path / name)
    return tmp_path


def edit(path: Path, **changes: Any) -> None:
    values = (json.loads(path.read_bytes()) if path.exists() else {}) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def test_a_real_tokenizer(files: Path) -> None:
    assert ends_of(files) == Ends("</s>", "<s>", 1, True)
    assert begin_id(files) == 1


@pytest.mark.parametrize("processor", ["kept", "none"])
@pytest.mark.parametrize(
    "flags", [{}, {"add_bos_token": True}, {"add_bos_token": False}, {"add_eos_token": True}]
)
def test_what_is_added_is_what_transformers_adds(files: Path, processor: str, flags: dict[str, bool]) -> None:
    edit(files / "tokenizer_config.json", **flags)
    if processor == "none":
        edit(files / "tokenizer.json", post_processor=None)
    loaded = PreTrainedTokenizerFast.from_pretrained(files)
    found = ends_of(files)
    assert found is not None and found.added is (loaded("a").input_ids[0] == 1)


@pytest.mark.parametrize(
    ("bos", "map_", "config", "expected"),
    [
        (None, {"bos_token": {"content": "<s>"}}, {"bos_token_id": None}, "<s>"),
        (None, {}, {"bos_token_id": 1}, "<s>"),
        (
            None,
            {},
            {"bos_token_id": 5},
            None,
        ),  # a word: a default of the model's, no token of the tokenizer's
        (None, {}, {"bos_token_id": None}, None),
        ("</s>", {}, {"bos_token_id": 1}, None),
        ("<nowhere>", {}, {}, None),
    ],
)
def test_where_it_is_named(
    files: Path, bos: str | None, map_: dict[str, Any], config: dict[str, Any], expected: str | None
) -> None:
    edit(files / "tokenizer_config.json", bos_token=bos)
    edit(files / "special_tokens_map.json", **map_)
    edit(files / "config.json", **config)
    found = ends_of(files)
    assert found is not None and (found.eos, found.bos) == ("</s>", expected)
    if expected is None:
        assert told(found, "eos") is None
        with pytest.raises(
            ConfigError, match=r"packing\.begin is bos, but .* no begin-of-text token beside </s>"
        ):
            begin_id(files)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_files_that_do_not_say_it(files: Path, name: str) -> None:
    (files / name).write_text("[" if name == "tokenizer.json" else "7")
    edit(files / "config.json", eos_token_id=None)
    assert ends_of(files) is None and told(None, "eos") is None


def test_a_token_of_a_foreign_file_has_no_effect_in_a_terminal() -> None:
    line = told(Ends("</s>\n" + "x" * 90, "\x1b[31m<s>", 1, True), "eos")
    assert line is not None and line.isprintable() and "·[31m<s>" in line and "x" * 40 not in line


def test_the_line_says_what_training_and_benchmarks_begin_with() -> None:
    ends = Ends("</s>", "<s>", 1, True)
    apart, none, alike = (
        told(ends, "eos"),
        told(Ends("</s>", "<s>", 1, False), "eos"),
        told(ends, "bos"),
    )
    assert apart is not None and "after </s> in training and perplexity" in apart
    assert "benchmarks with <s>, which it adds by itself; packing.begin: bos" in apart
    assert none is not None and "benchmarks with neither" in none
    assert alike is not None and "with <s> in training, perplexity and benchmarks" in alike
