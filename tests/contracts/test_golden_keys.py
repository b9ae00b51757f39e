"""No key changes unless that is meant: the shipped configurations over fixed inputs give the keys of the committed file.

What to do where a test here fails: docs/upgrades.md.
"""

from __future__ import annotations

import pytest

from flows.dag import rounds
from storage.settings import Settings, identity
from tasks.corpus import filter
from tasks.stages import NAMES
from tests.support.golden_keys import (
    OTHER,
    SHIPPED,
    Golden,
    changes,
    golden_keys,
    identity_fields,
    key_fields,
    later_fields,
    read,
)

ADVICE = (
    "Users would make these artifacts again. Take the change back, or mark a new field with "
    "`since` (docs/upgrades.md); where it is meant, say so in CHANGELOG.md and run "
    "`python -m tests.support.golden_keys --renew`."
)


@pytest.fixture(scope="module")
def committed() -> Golden:
    return read()


def test_no_key_of_the_shipped_configurations_has_changed(committed):
    found = changes(committed, golden_keys())
    assert not found, "\n".join([*found[:40], ADVICE])


def test_every_stage_and_every_shipped_configuration_is_in_the_file(committed):
    assert [*committed["keys"]] == [*SHIPPED, OTHER]
    stages = {entry["stage"] for artifacts in committed["keys"].values() for entry in artifacts.values()}
    # extract names versions of packages (unit/documents/test_shelves.py), and no shipped source has examples
    assert stages == set(NAMES) - {"extract", "likeness"}


def test_no_field_has_entered_or_left_a_key(committed):
    """A field without `since` is in every key, also where its section stands in no shipped configuration."""
    now = key_fields()
    wrong = [
        f"{stage}: {name} {'entered the key' if name in now.get(stage, ()) else 'left the key'}"
        for stage in {**committed["fields"], **now}
        for name in sorted({*committed["fields"].get(stage, ())} ^ {*now.get(stage, ())})
    ]
    assert not wrong, "\n".join([*wrong, ADVICE])


def test_what_means_as_before_stays_what_it_is(committed):
    """Else an artifact that was made without a field would be taken for one that was made with it."""
    now = later_fields()
    assert committed["later"] == now, (
        "The first default of a field with `since` is in no key, for good: keep it as `before`. "
        "A field that is new is written down by `python -m tests.support.golden_keys --renew`."
    )


def test_a_field_without_since_is_noticed_and_one_with_it_is_not():
    class Before(Settings):
        old: int = identity(1, description="of 0.1.0")

    class Marked(Before):
        new: int = identity(0, since="0.2", description="came later")
        section: Before = identity(default_factory=Before, since="0.2", description="came later")

    class Unmarked(Before):
        new: int = identity(0, description="came later")

    assert [*identity_fields(Marked)] == [*identity_fields(Before)] == ["old"]
    assert [*identity_fields(Unmarked)] == ["old", "new"]


def test_what_has_changed_is_named(monkeypatch, committed):
    monkeypatch.setattr(filter, "VERSION", 3)
    monkeypatch.setattr(rounds, "_INIT_WARMUP", 0.05)
    found = changes(committed, golden_keys())
    assert "demo: filter · slice 1: version: 2 → 3" in found
    assert "demo: train · round 0: config.schedule.warmup_steps: 1 → 4" in found
    assert all(": filter · " in line or ": train · round 0: " in line for line in found)
