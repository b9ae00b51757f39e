"""Wrong values in every field, and wrong types in every node, of the configuration.

Each is refused by a ConfigError that names the field, or what it gives can be planned: every stage's settings and every
segment of training are built from it.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.config import RunConfig, _alternatives, _dotted, _items, known_keys, parse_config
from flows.dag.plan import make_plan
from flows.runs.checks import advice, check
from storage.errors import ConfigError, HubUnreachable
from storage.settings import is_section, types_of

Path_ = tuple[str | int, ...]

_LONG = 10**5000
NUMBERS: tuple[Any, ...] = (
    *(-1, 0, 1, 2, 7, 0.5, -0.5, 1e-300, 1e300, 2**31, 2**62, 2**63, 10**18, 10**19, _LONG, -_LONG),
    *(
        float("inf"),
        float("-inf"),
        float("nan"),
        "",
        " ",
        "abc",
        "1e400",
        "9" * 5000,
        "400M",
        "-1",
        "0.5",
        "5min",
        "auto",
    ),
    *(None, True, False, [], [1], {}, {"a": 1}),
)
SHORT = tuple(value for value in NUMBERS if not isinstance(value, int) or abs(value) < _LONG)
TYPES: tuple[Any, ...] = (
    *(
        None,
        True,
        -1,
        1.5,
        10**100,
        float("nan"),
        "",
        "x",
        "\0",
        "\ud800",
        "x" * 5000,
        [],
        [[]],
        [None],
        [{}],
        ["a", 1],
    ),
    *({}, {"a": 1}, {"": {}}, {"x" * 300: 1}),
)

SOURCES = [
    {"name": "notes", "role": "domain", "weight": 2, "files": ["notes.txt"]},
    {"name": "replay", "role": "replay", "weight": 1.5, "files": ["replay.txt"]},
]
NEW: dict[str, Any] = {
    "name": "fuzz",
    "corpus": {
        "sources": SOURCES,
        "dedup": {"paragraphs": {"min_characters": 31}},
        "filter": {"min_edu_score": 2, "thresholds": {"gopher_too_few_alphabetic_words": 0.6}},
        "decontaminate": {"benchmarks": ["mine"]},
    },
    "model": {
        "base": {
            "init": {
                "hidden_size": 64,
                "layers": 2,
                "heads": 4,
                "kv_heads": 2,
                "intermediate_size": 128,
                "pretrain_tokens": "400K",
                "tokenizer": {"vocabulary": 300},
            }
        }
    },
    "packing": {"sequence_length": 256},
    "training": {
        "token_budgets": ["400K", "1M"],
        "batch_tokens": 4096,
        "schedule": {"kind": "wsd", "warmup_tokens": "40K"},
        "average": {"checkpoints": 2, "every_tokens": 4096},
        "keep_every_tokens": "100K",
        "execution": {"threads": 1, "device": "cpu"},
    },
    "evaluation": {
        "own": [
            {"name": "mine", "file": "mine.jsonl"},
            {"name": "made", "held_out": "notes", "questions": 9, "group": "general"},
        ],
        "limit": 20,
        "prompts": ["Once"],
    },
}
GIVEN: dict[str, Any] = {
    **NEW,
    "corpus": {**NEW["corpus"], "dedup": {}, "decontaminate": {}},
    "model": {"base": "base", "dropout": 0.1},
    "training": {
        **NEW["training"],
        "schedule": {"kind": "rewarm", "warmup_tokens": "40K"},
        "execution": {"device": "cpu", "processes": 2, "sharding": "full"},
        "seed": 4,
    },
}
KEYS = [key.replace("[]", "") for key in known_keys(RunConfig) if "." in key]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ONWARD_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for source in SOURCES:
        (tmp_path / f"{source['name']}.txt").write_text("some words of a text\n" * 100_000)
    (tmp_path / "mine.jsonl").write_text('{"question": "Is it?", "choices": ["no", "yes"], "answer": 1}\n')
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text('{"model_type": "llama", "max_position_embeddings": 1024}')
    return tmp_path


def whole(raw: dict[str, Any]) -> dict[str, Any]:
    """The configuration with every field written out."""
    return json.loads(json.dumps(parse_config(raw).model_dump(mode="json")))


def nodes(kinds: list[Any], value: Any, path: Path_ = ()) -> Iterator[tuple[Path_, list[Any]]]:
    """Every place in the data, and the types that the model allows there."""
    yield path, kinds
    if isinstance(value, dict):
        for key, below in value.items():
            allowed = [types_of(kind)[key] for kind in kinds if is_section(kind) and key in types_of(kind)]
            yield from nodes([one for kind in allowed for one in _alternatives(kind)], below, (*path, key))
    elif isinstance(value, list):
        items = [one for kind in kinds for item in _items(kind) for one in _alternatives(item)]
        for place, below in enumerate(value):
            yield from nodes(items, below, (*path, place))


def is_number(kinds: list[Any]) -> bool:
    return int in kinds or float in kinds


def put(raw: dict[str, Any], path: Path_, value: Any) -> dict[str, Any]:
    if not path:
        return value
    changed = copy.deepcopy(raw)
    node: Any = changed
    for step in path[:-1]:
        node = node[step]
    node[path[-1]] = value
    return changed


def refusal(raw: Any) -> tuple[str, bool] | None:
    """The words with which it is refused, and whether the model alone did it. None if all that a plan builds was built."""
    alone = True
    try:
        run = parse_config(raw)
        alone = False
        check(run)
        advice(run)
        make_plan(run)
    except (
        ConfigError,
        HubUnreachable,
    ) as error:  # a text may be the name of a model on the hub, which no test asks
        assert 0 < len(str(error)) < 12_000
        return str(error), alone
    return None


def names_it(words: str, alone: bool, path: Path_) -> bool:
    """Whether a refusal names the field. A rule about two fields, which both have possible values, may name the other."""
    name = _dotted(RunConfig, path)
    if path[:2] == ("model", "base") and len(path) > 2:  # which is written with or without its key
        name = name.replace("model.base.", "model.base.init.", 1)
    section, _, last = name.rpartition(".")
    named = name in words or (section in words and last.partition("[")[0] in words)
    return named or (not alone and any(key in words for key in KEYS))


def tried(values: tuple[Any, ...], wanted: Callable[[list[Any]], bool]) -> tuple[int, int, int]:
    """(fields, refused, accepted): each value in each field of the two configurations; in those of both, once."""
    fields: set[Path_] = set()
    refused = accepted = 0
    for raw in map(whole, (NEW, GIVEN)):
        places = [place for place in nodes(list(_alternatives(RunConfig)), raw) if wanted(place[1])]
        for path, kinds in places:
            if path in fields:
                continue
            fields.add(path)
            for value in values:
                words = refusal(put(raw, path, value))
                assert words is None or names_it(*words, path), f"{path}, {type(value)}: {words}"
                assert words is not None or not (isinstance(value, bool) and is_number(kinds)), path
                refused, accepted = refused + (words is not None), accepted + (words is None)
    return len(fields), refused, accepted


def test_wrong_numbers_in_every_numeric_field(home):
    fields, refused, accepted = tried(NUMBERS, is_number)
    print(f"{fields} fields, {len(NUMBERS)} values each: {refused} refused, {accepted} accepted")
    assert fields > 50 and refused > 10 * fields and accepted > 2 * fields


def test_wrong_types_in_every_node(home):
    fields, refused, accepted = tried(TYPES, lambda kinds: not is_number(kinds))
    print(f"{fields} nodes, {len(TYPES)} values each: {refused} refused, {accepted} accepted")
    assert fields > 80 and refused > 10 * fields


def test_several_wrong_values_at_once(home):
    """Drawn with a fixed seed. One error must not hide behind another, nor lead to an error of another kind."""
    draw = random.Random(5)
    bases = [whole(NEW), whole(GIVEN)]
    accepted = 0
    for _ in range(200):
        raw = draw.choice(bases)
        places = list(nodes(list(_alternatives(RunConfig)), raw))
        for path, kinds in draw.sample(places[1:], draw.randint(2, 4)):
            values = SHORT if is_number(kinds) else TYPES
            try:
                raw = put(raw, path, draw.choice(values))
            except (KeyError, IndexError, TypeError):
                continue  # its section is gone
        accepted += refusal(raw) is None
    assert accepted < 200
