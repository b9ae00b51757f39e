"""A wrong specification is refused by name before anything starts."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from storage.errors import ConfigError
from storage.keys import canonical_json
from tasks.training.read_spec import parse_spec, read_spec
from tasks.training.spec import Execution
from tests.support.training.world import World


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
        ("identity__optimizer__betas", [0.9, 1.0], "identity.optimizer.betas"),
        ("identity__optimizer__betas", [-0.1, 0.9], "identity.optimizer.betas"),
        ("identity__optimizer__eps", float("inf"), "identity.optimizer.eps"),
        ("identity__keep_every_tokens", 0, "identity.keep_every_tokens"),
        ("identity__canonical", "{}", "identity.canonical"),
        ("identity__start", "digest", "identity.start"),
        ("identity__manifests", [1], "identity.manifests"),
        ("identity__manifest", [], "identity.manifest"),
        ("paths__start_kind", "checkpoint", "paths.start_kind"),
        ("execution__micro_batch", 0, "execution.micro_batch"),
        ("execution__micro_batch", True, "execution.micro_batch"),
        ("execution__compile", 1, "execution.compile"),
        ("execution__fuse_products", "never", "execution.fuse_products"),
        ("execution__threads", 10**9, "execution.threads"),
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
    del spec["identity"]["dropout"]
    with pytest.raises(ConfigError, match=r"identity\.dropout is missing"):
        parse_spec(spec)


def test_a_field_with_a_default_may_be_left_out_and_the_digest_is_of_what_stands_there(
    world: World, tmp_path: Path
) -> None:
    """As a field is that a later version brings, whose default is as before: it stands in no key and in no spec.json."""
    whole = world.spec(tmp_path)
    short = world.spec(tmp_path)
    del short["identity"]["optimizer"]["eps"], short["identity"]["keep_every_tokens"]
    one, two = parse_spec(whole).identity, parse_spec(short).identity
    assert (one.optimizer, one.keep_every_tokens) == (two.optimizer, two.keep_every_tokens)
    assert one.digest != two.digest == hashlib.sha256(canonical_json(short["identity"])).hexdigest()


def test_older_words_for_checkpointing_are_read(world: World, tmp_path: Path) -> None:
    for older, mode in ((True, "full"), (False, "none")):
        spec = world.spec(tmp_path, execution__gradient_checkpointing=older)
        assert parse_spec(spec).execution.gradient_checkpointing == mode


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
