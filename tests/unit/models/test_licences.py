"""Licences as the hub takes them."""

from __future__ import annotations

import re

import pytest

from tasks.models.licences import hub_licence


@pytest.mark.parametrize(
    ("words", "identifier", "name"),
    [
        ("apache-2.0", "apache-2.0", None),
        ("Apache 2.0", "apache-2.0", None),
        ("CC_BY  SA 4.0 ", "cc-by-sa-4.0", None),
        ("OpenRAIL++", "openrail++", None),
        ("other", "other", None),
        ("Our own (2026), v1..2", "other", "our-own-2026-v1.2"),
        ("llama9", "other", "llama9"),
        ("Apache License, Version 2.0", "other", "apache-license-version-2.0"),
        ("--- .", "other", None),
        ("许可", "other", None),
    ],
)
def test_a_licence_that_the_hub_does_not_know_is_another_with_a_name(
    words: str, identifier: str, name: str | None
) -> None:
    assert hub_licence(words) == (identifier, name)
    assert name is None or re.fullmatch("[a-z0-9]+([.-][a-z0-9]+)*", name)
