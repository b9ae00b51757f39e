"""The case that these tests measure."""

from tests.support.evaluation.cases import case  # noqa: F401
