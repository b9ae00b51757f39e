"""Fixtures of several of these tests."""

from tests.support.foreign import foreign, trace  # noqa: F401
