"""The trainer's fixtures."""

from tests.support.training.trainers import plain_torch, start_trainer, world  # noqa: F401
