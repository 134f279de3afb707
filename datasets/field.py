"""The old name of `polyarm.datasets.replay_buffer`, for what imports it."""

from polyarm.datasets.replay_buffer import Field
from polyarm.datasets.replay_buffer import ReplayBuffer as FieldStore

__all__ = ["Field", "FieldStore"]
