"""The cache of keys and values, with which the next token costs one token."""

from .cache import Cache, Step
from .stores import Slots, reach

__all__ = ["Cache", "Slots", "Step", "reach"]
