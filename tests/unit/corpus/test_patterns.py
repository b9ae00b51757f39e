"""A pattern finds what it names, and one that names nothing says what to write."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage.errors import ConfigError
from tasks.corpus.reading.origins import named_files
from tasks.corpus.reading.patterns import matches, other_reading, why_none

FILES = (
    "data [2024]/a.jsonl",
    "data [2024]/deep/b.jsonl",
    "data {a,b}/c.jsonl",
    "what?/d.jsonl",
    "stars */e.jsonl",
    "plain/f.jsonl",
    "plain/g [draft].txt",
    "plain/deep/h.jsonl",
    "~old/i.jsonl",
    "**/j.jsonl",
    "back\\slash/k.jsonl",
    " blank /l.jsonl",
    "[[]x/m.jsonl",
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    base = tmp_path / "home [of] one"
    for name in FILES:
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_text('{"text": "one"}\n')
    monkeypatch.setenv("HOME", str(base / "plain"))
    return base


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("data [2024]/*.jsonl", ["a.jsonl"]),
        ("data [2024]/**/*.jsonl", ["a.jsonl", "deep/b.jsonl"]),
        ("data [2024]/deep/*", ["b.jsonl"]),
        ("data [2024]/a.jsonl", ["a.jsonl"]),
        ("data [[]2024]/*.jsonl", ["data [2024]/a.jsonl"]),
        ("data {a,b}/*.jsonl", ["c.jsonl"]),
        ("what?/*.jsonl", ["d.jsonl"]),
        ("stars */*.jsonl", ["e.jsonl"]),
        ("plain/*[draft].txt", ["g [draft].txt"]),
        ("p*/g [draft].txt", ["plain/g [draft].txt"]),
        ("plain/g [draft].txt", ["g [draft].txt"]),
        ("plain//*.jsonl", ["f.jsonl"]),
        ("./plain/*.jsonl", ["f.jsonl"]),
        ("~/*.jsonl", ["f.jsonl"]),
        ("~old/*.jsonl", ["i.jsonl"]),
        ("back\\slash/*.jsonl", ["k.jsonl"]),
        (" blank /*.jsonl", ["l.jsonl"]),
        ("[[]x/*.jsonl", ["m.jsonl"]),
        ("plain/**/*.jsonl", ["deep/h.jsonl", "f.jsonl"]),
    ],
)
def test_a_name_with_such_characters_is_found(home: Path, pattern: str, names: list[str]) -> None:
    found = named_files("notes", (pattern,), home)
    assert list(found) == names
    assert set(found.values()) == {path for path in matches(pattern, home).found if path.is_file()}


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("plain", "it is a directory; write its files, such as plain/*.jsonl"),
        ("plain/", "it is a directory; write its files, such as plain/*.jsonl"),
        ("pl*", "only directories have such names; write their files, such as pl*/*.jsonl"),
        ("plain\\*.jsonl", "write / in place of the backslash: plain/*.jsonl"),
        ("C:\\texts\\*.jsonl", "folders are parted by /"),
        (" plain/*.jsonl", "leave out the blanks around it: plain/*.jsonl"),
        ("plain/{f,h}.jsonl", "braces stand for themselves"),
        ("plain/{1..9}.jsonl", "braces stand for themselves"),
        ("plain/*.json", "other files are there: plain/*.jsonl"),
        ("plain/*.parquet", "other files are there: plain/*.jsonl"),
        ("plain/d**.jsonl", "** is a part of its own between two /: plain/d**/*.jsonl"),
        ("Plain/*.jsonl", "is called 'Plain'; it holds 'plain'"),
        ("plain/F.jsonl", "is called 'F.jsonl'; it holds 'f.jsonl'"),
        ("*/g [daft].txt", "is called 'g [daft].txt'"),
        ("plain/f.jsonl/*", "f.jsonl is no directory"),
        ("$HOME/texts/*.jsonl", "variables are not replaced"),
        ("s3://bucket/*.jsonl", "it is an address"),
        ("/nowhere/at/all.txt", "nothing in / is called 'nowhere'"),
    ],
)
def test_a_pattern_that_names_no_file_says_what_to_write(home: Path, pattern: str, words: str) -> None:
    assert words in why_none(pattern, home)
    with pytest.raises(ConfigError, match="matches no file: ") as refused:
        named_files("notes", (pattern,), home)
    assert words in str(refused.value)


def test_a_folder_that_its_own_name_does_not_find_is_told(home: Path) -> None:
    assert other_reading("data [2024]/*.jsonl", home) is None
    (home / "data 2").mkdir()
    (home / "data 2/a.jsonl").write_text('{"text": "two"}\n')
    plain = home.parent / "plain home"
    home.rename(plain)
    assert list(named_files("notes", ("data [2024]/*.jsonl",), plain)) == ["data 2/a.jsonl"], (
        "as it always was"
    )
    written = other_reading("data [2024]/*.jsonl", plain)
    assert written == "data [[]2024]/*.jsonl"
    assert [path.parent.name for path in matches(written, plain).found] == ["data [2024]"]
    for pattern in ("plain/*", "data 2/*.jsonl", "data*/*.jsonl", written):
        assert other_reading(pattern, plain) is None
