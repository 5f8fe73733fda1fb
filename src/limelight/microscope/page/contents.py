"""What a page is made from: `Contents`, which a `Report` has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from ..reading.comparison import Comparison
from ..reading.pictures import Picture
from ..reading.record import Reading
from ..sources.cross import Cross
from ..writing.predictions import Predictions


class Contents(Protocol):
    """The parts of a `Report` that go into its page."""

    @property
    def model(self) -> Any:
        """A dataclass of facts about the model, with its ``name``."""

    @property
    def readings(self) -> Sequence[Reading]:
        """One reading of each text, in order."""

    @property
    def chosen(self) -> Sequence[Sequence[int]]:
        """For each text, the words to begin with."""

    @property
    def chosen_by(self) -> str:
        """The measure by which they were chosen, in words."""

    @property
    def comparison(self) -> Comparison | None:
        """The comparison of two texts."""

    @property
    def predictions(self) -> Sequence[Predictions | None]:
        """For each text, what a decoder expected at its tokens; empty where that was not asked for."""

    @property
    def notes(self) -> list[str]:
        """How to read the numbers."""

    @property
    def warnings(self) -> list[str]:
        """Warnings about the texts, such as unknown tokens."""

    @property
    def cross(self) -> Cross | None:
        """What an encoder-decoder looked at in its source."""

    @property
    def source(self) -> Contents | None:
        """The self-attention of an encoder-decoder's encoder over a source text."""

    @property
    def pictures(self) -> Sequence[Picture]:
        """The pictures that were read, with where their patches looked; empty for texts."""
