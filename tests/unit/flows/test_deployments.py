"""Two configurations of one name: the deployment stays that of the file it was made from."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.services.deployments import read

CONFIG = """
name: {name}
store: store
corpus:
  sources:
    - {{name: notes, role: domain, weight: 1.0, files: ["notes/*.jsonl"]}}
  decontaminate: {{benchmarks: []}}
model: {{base: model}}
packing: {{sequence_length: 128}}
training: {{token_budgets: [1M]}}
evaluation: {{domain: [], general: []}}
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ONWARD_HOME", str(tmp_path))
    for file, name in (("a-copy", "small"), ("small", "small"), ("other", "other")):
        (tmp_path / f"{file}.yaml").write_text(CONFIG.format(name=name))
    return tmp_path


def chosen(home: Path, files: tuple[str, ...], owner: str | None) -> tuple[dict[str, str], list[str]]:
    said: list[str] = []
    configs = [home / f"{file}.yaml" for file in files]
    given = read(
        configs, home, lambda line: said.append(str(line)), lambda name: owner if name == "small" else None
    )
    return {one.run.name: one.source for one in given}, said


def test_a_copy_does_not_take_the_deployment_over(home: Path) -> None:
    found, said = chosen(home, ("a-copy", "other", "small"), "small.yaml")
    assert found == {"small": "small.yaml", "other": "other.yaml"}
    assert said == [
        f"passed over: {home}/a-copy.yaml: the deployment small is that of small.yaml; give one of them another name"
    ]


def test_also_where_the_copy_is_deployed_alone(home: Path) -> None:
    found, said = chosen(home, ("a-copy",), "small.yaml")
    assert (found, len(said)) == ({}, 1)


def test_the_first_file_has_it_where_there_was_none(home: Path) -> None:
    assert chosen(home, ("a-copy", "small"), None)[0] == {"small": "a-copy.yaml"}


@pytest.mark.parametrize("other", ["renamed", "gone", "broken"])
def test_a_file_that_has_another_name_now_or_is_gone_keeps_nothing(home: Path, other: str) -> None:
    file = home / "small.yaml"
    match other:
        case "renamed":
            file.write_text(CONFIG.format(name="mine"))
        case "gone":
            file.unlink()
        case "broken":
            file.write_text("name: [")
    assert chosen(home, ("a-copy",), "small.yaml") == ({"small": "a-copy.yaml"}, [])
