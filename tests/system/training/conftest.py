"""The trainer's fixtures."""

from tests.support.training.trainers import plain_torch, world  # noqa: F401
