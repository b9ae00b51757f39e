"""A wrong specification is refused by name before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from storage.errors import ConfigError
from tasks.training.config import Execution, parse_spec, read_spec
from tests.tasks.training.helpers import World


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("identity__kind", "branch", "identity.kind"),
        ("identity__seed", "0", "identity.seed"),
        ("identity__seed", True, "identity.seed"),
        ("identity__precision", "fp16", "identity.precision"),
        ("identity__dropout", 1.0, "identity.dropout"),
        ("identity__first_step", 9, "identity.first_step"),
        ("identity__schedule__kind", "linear", "identity.schedule.kind"),
        ("identity__schedule__peak", 0.0, "identity.schedule.peak"),
        ("identity__schedule__decay_from", 4, "decay_from and decay_to"),
        ("identity__schedule__slope", 4, "identity.schedule.slope"),
        ("identity__optimizer__betas", [0.9], "identity.optimizer.betas"),
        ("identity__manifest", [], "identity.manifest"),
        ("paths__start_kind", "checkpoint", "paths.start_kind"),
        ("execution__micro_batch", 0, "execution.micro_batch"),
        ("execution__processes", 0, "execution.processes"),
        ("execution__checkpoint_every", -1, "execution.checkpoint_every"),
        ("execution__microbatch", 2, "execution.microbatch"),
        ("parent_fd", "3", "parent_fd"),
        ("surplus", 1, "surplus"),
    ],
)
def test_the_error_names_the_field(world: World, tmp_path: Path, field: str, value: Any, named: str) -> None:
    with pytest.raises(ConfigError, match=named.replace(".", r"\.")):
        parse_spec(world.spec(tmp_path, **{field: value}))


def test_a_missing_field_is_named(world: World, tmp_path: Path) -> None:
    spec = world.spec(tmp_path)
    del spec["identity"]["optimizer"]["eps"]
    with pytest.raises(ConfigError, match=r"identity\.optimizer\.eps is missing"):
        parse_spec(spec)


def test_the_digest_is_of_the_identity_alone(world: World, tmp_path: Path) -> None:
    one = parse_spec(world.spec(tmp_path / "a", execution__threads=1))
    two = parse_spec(world.spec(tmp_path / "b", execution__threads=4))
    three = parse_spec(world.spec(tmp_path / "b", identity__seed=4))
    assert one.identity.digest == two.identity.digest != three.identity.digest


def test_execution_has_defaults(world: World, tmp_path: Path) -> None:
    spec = world.spec(tmp_path)
    del spec["execution"]
    assert parse_spec(spec).execution == Execution()


def test_an_unreadable_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text("{")
    with pytest.raises(ConfigError, match=r"spec\.json"):
        read_spec(tmp_path / "spec.json")
