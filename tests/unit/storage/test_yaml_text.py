"""YAML of a configuration: plain values, each key once; anything else is an error with the place, the line and the key."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from storage.errors import ConfigError
from storage.yaml_text import LARGEST, parse_yaml, read_yaml

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("# nothing\n", None),
        ("a: 1\nb: [x, 2.5, true, null, '3']", {"a": 1, "b": ["x", 2.5, True, None, "3"]}),
        ("\ufeffa: 1", {"a": 1}),
        ("%YAML 1.2\n---\na: 1\n...\n", {"a": 1}),
        ("a: !!str 7\nb: !!int '7'\nc: =", {"a": "7", "b": 7, "c": "="}),
        (
            "a: &x {p: [1]}\nb: *x\nc: {<<: *x, q: 2}",
            {"a": {"p": [1]}, "b": {"p": [1]}, "c": {"p": [1], "q": 2}},
        ),
        ("a: &x {p: 1}\nb: {p: 2, <<: *x}", {"a": {"p": 1}, "b": {"p": 2}}),
        ("a: {<<: [{p: 1}, {p: 2, q: 3}]}", {"a": {"p": 1, "q": 3}}),
        ("a: '2026-02-30'", {"a": "2026-02-30"}),
        ("a: |\n  two\n  lines\n", {"a": "two\nlines\n"}),
    ],
)
def test_plain_values_are_read(text, value):
    assert parse_yaml(text, "FILE") == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\na: 2", "line 2: a: stands a second time (first in line 1)"),
        ("a:\n  b: {c: 1,\n      c: 2}", "line 3: a.b.c: stands a second time (first in line 2)"),
        ("a: [{b: 1}, {b: 1, 'b': 2}]", "a[1].b: stands a second time"),
        ("a: 1\n? a\n: 2", "line 2: a: stands a second time"),
        ("a: {<<: {b: 1}, <<: {c: 1}}", "a.<<: stands a second time"),
        ("name: 2026-02-30", "line 1: name: 2026-02-30 is a date"),
        ("a: {b: 2026-02-28 10:00:00}", "a.b: 2026-02-28 10:00:00 is a date"),
        ("seed: " + "9" * 5000, "seed: a number of 5,000 digits"),
        ("seed: 0x" + "f" * 5000, "seed: a number of 5,002 digits"),
        ("a: 0x__", "a: '0x__' is no number"),
        ("a: !!int x", "a: 'x' is no number"),
        ("a: !!bool maybe", "a: 'maybe' is neither true nor false"),
        ("[" * 3000, "more than 32 deep"),
        ("{a: " * 3000, "more than 32 deep"),
        ("- " * 3000 + "x", "more than 32 deep"),
        ("a: &a [*a]", "a[0]: nothing before it is named &a"),
        ("a: *b", "a: nothing before it is named &b"),
        (LAUGHS, "more than 100,000 values"),
        ("a: !!python/object/apply:os.system [ls]", "a: the tag !!python/object/apply:os.system"),
        ("a: !!python/name:os.system", "a: the tag !!python/name:os.system"),
        ("a: !!binary aGk=", "a: the tag !!binary"),
        ("a: !!set {x}", "a: the tag !!set"),
        ("a: !own 1", "a: the tag !own"),
        ("!!omap\na: 1", "the tag !!omap"),
        ("1: a", "the key '1' is no text"),
        ("on: a", "the key 'on' is no text"),
        ("? [a]\n: 1", "a key must be a plain word"),
        ("a: {<<: 3}", "a.<<: merges what is no section"),
        ("a: <<", "a: << merges a section"),
        ("a:\n\tb: 1", "line 2: a tab"),
        ("a: \x00", "line 1: the character U+0000"),
        ("a: 1\n---\nb: 2", "line 2: a second document"),
        ("a: [1", "FILE is not YAML: line 1"),
        ("a: b: c", "FILE is not YAML: line 1"),
        ("a: 'b", "FILE is not YAML: line 1"),
        ("%X", "FILE is not YAML: line 1"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else None,
)
def test_anything_else_is_refused_with_its_line_and_key(text, words):
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "FILE")
    assert str(caught.value).startswith("FILE") and words in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a: 1".encode("utf-16"), "UTF-16"),
        ("a: ü".encode("latin-1"), "no UTF-8 text (line 1)"),
        (b"\x7fELF\x02\x01\x01\x00" + bytes(range(256)), "no UTF-8 text"),
        (b"a: 1\n# " + b"x" * LARGEST, "larger than 1 MiB"),
    ],
)
def test_a_file_of_another_kind_is_refused_by_its_name(tmp_path, content, words):
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(str(path)) and words in str(caught.value)


def test_what_is_no_regular_file_is_refused_without_being_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")  # to open it would wait for a writer
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "loop.yaml")
    for name, words in {
        "pipe.yaml": "a pipe",
        ".": "a directory",
        "none.yaml": "No such file",
        "loop.yaml": "symbolic links",
        "x" * 5000: "too long",
        "a\0b": "is no name of a file",
    }.items():
        with pytest.raises(ConfigError, match=words):
            read_yaml(tmp_path / name)
    assert read_yaml(_written(tmp_path / "right.yaml", "a: 1")) == {"a": 1}


def _written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path
