"""Fixtures of several of these tests."""

from tests.support.corpus.sources import corpus  # noqa: F401
from tests.support.corpus.tokens import small_tokenizer  # noqa: F401
