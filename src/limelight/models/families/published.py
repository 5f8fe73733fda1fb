"""A published configuration, read with care."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...checkpoints.errors import CheckpointError
from ...nn import ClassHead, MaskedHead
from ..config import Recipe


@dataclass(frozen=True)
class Published:
    """The values of a configuration and the file they stand in.

    Args:
        path: the file, named in complaints.
        values: what it says.
    """

    path: Path
    values: Mapping[str, Any]

    def get(self, key: str) -> Any:
        """The value as it stands, ``None`` where there is none."""
        return self.values.get(key)

    def whole(self, key: str, default: int | None = None) -> int:
        """A whole number of at least 1."""
        value = self._or(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.refused(key, "a whole number of at least 1")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A number above 0."""
        value = self._or(key, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0:
            raise self.refused(key, "a number above 0")
        return float(value)

    def one_of(self, key: str, choices: Collection[Any], default: Any) -> Any:
        """One of the ``choices``."""
        value = self._or(key, default)
        if not any(value == choice for choice in choices):
            raise self.refused(key, f"one of {', '.join(map(repr, choices))}")
        return value

    def task(self, default: str = "") -> str:
        """What the published class of the model is for: ``"MaskedLM"`` of ``BertForMaskedLM``, ``""`` of ``BertModel``.

        Where the file names no class, ``default``.
        """
        classes = self._or("architectures", ())
        if not isinstance(classes, (list, tuple)) or not all(isinstance(name, str) for name in classes):
            raise self.refused("architectures", "a list of names")
        return classes[0].partition("For")[2] if classes else default

    def labels(self) -> tuple[str, ...]:
        """The names of the classes that a classifying head tells apart."""
        names = self.get("id2label")
        if names is None:
            return tuple(f"LABEL_{number}" for number in range(self.whole("num_labels", 2)))
        try:
            return tuple(names[str(number)] for number in range(len(names)))
        except (KeyError, TypeError):
            raise self.refused("id2label", "an object with a name for each of the numbers 0, 1, 2, ...") from None

    def marks(self) -> dict[str, Any]:
        """Ids of the tokens that have a part to play, by their published names (``eos_token_id``)."""
        return {k: v for k, v in self.values.items() if k.endswith("_token_id") and v is not None}

    def refused(self, key: str, rule: str) -> CheckpointError:
        """The complaint about one value."""
        return CheckpointError(
            f"{self.path} says {key} = {self.values.get(key)!r}, and Limelight reads there {rule}. "
            "Take another checkpoint, or correct the file if it was edited."
        )

    def _or(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        return default if value is None else value


def task(head: Recipe | None) -> str:
    """The end of the name of a published class, by the head of a model."""
    if head is None:
        return "Model"
    if head.make is ClassHead:
        return "ForSequenceClassification"
    return "ForMaskedLM" if head.make is MaskedHead else "ForCausalLM"


def labels(head: Recipe | None) -> dict[str, Any]:
    """The names of classes, as a published configuration has them."""
    if head is None or head.make is not ClassHead:
        return {}
    names = {str(number): name for number, name in enumerate(head["labels"])}
    return {"id2label": names, "label2id": {name: int(number) for number, name in names.items()}}
