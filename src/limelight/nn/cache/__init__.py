"""The cache of keys and values, with which the next token costs one token."""

from .cache import Cache
from .kept import Kept
from .policies import Adaptive, HeldKeys, Importance, Keep, LastQueries, Pyramid, Received, Recency
from .step import Step
from .stores import Slots

__all__ = [
    "Adaptive",
    "Cache",
    "HeldKeys",
    "Importance",
    "Keep",
    "Kept",
    "LastQueries",
    "Pyramid",
    "Received",
    "Recency",
    "Slots",
    "Step",
]
