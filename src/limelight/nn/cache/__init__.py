"""The cache of keys and values, with which the next token costs one token."""

from .cache import Cache, Step
from .stores import Slots

__all__ = ["Cache", "Slots", "Step"]
