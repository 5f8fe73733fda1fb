"""What is measured of every head; one file for each kind of measure."""

from __future__ import annotations

from ...subjects import Subject
from ..measure import Measure
from .classes import TokenClasses
from .contextuality import Contextuality
from .contributions import Contributions
from .copies import Copies
from .positions import Positions
from .semantic import Semantic
from .spread import Sinks, Spread

__all__ = ["text_measures"]


def text_measures(subject: Subject) -> list[Measure]:
    """The measures of plain text, with nothing counted yet."""
    return [
        Positions(subject),
        Sinks(subject),
        Spread(subject),
        TokenClasses(subject),
        Copies(subject, 0),
        Copies(subject, 1),
        Contributions(subject),
        Semantic(subject),
        Contextuality(subject),
    ]
