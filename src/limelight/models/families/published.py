"""A published configuration, read with care."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...checkpoints.errors import CheckpointError
from ...nn import ClassHead, MaskedHead
from ..config import Recipe

MOST_LAYERS = 1000

# How the names of values end that say which tokens have a part to play.
MARKS = ("_token_id", "suppress_tokens", "forced_decoder_ids", "bad_words_ids")

# What classes are for that are not called ...For...: GPT-2's and Marian's.
ENDINGS = {"LMHeadModel": "CausalLM", "MTModel": "ConditionalGeneration"}


@dataclass(frozen=True)
class Published:
    """The values of a configuration and the file they stand in.

    Args:
        path: the file, named in complaints.
        values: what it says.
        defaults: what is meant where it says nothing, before any other default.
        tensors: the names of the tensors beside it; ``None`` where they are not known.
    """

    path: Path
    values: Mapping[str, Any]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    tensors: Collection[str] | None = None

    def get(self, key: str) -> Any:
        """The value as it stands, ``None`` where there is none."""
        return self.values.get(key)

    def with_defaults(self, **defaults: Any) -> Published:
        """The same file, read with other values where it says nothing."""
        return Published(self.path, self.values, {**self.defaults, **defaults}, self.tensors)

    def token(self, key: str, default: int) -> int:
        """The id of a token: a whole number of at least 0."""
        value = self._or(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self.refused(key, "the id of a token")
        return value

    def whole(self, key: str, default: int | None = None) -> int:
        """A whole number of at least 1."""
        value = self._or(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.refused(key, "a whole number of at least 1")
        return value

    def or_none(self, key: str, default: int | None = None) -> int | None:
        """The same, or ``None`` where the file says null; ``default`` where it says nothing."""
        if self.values.get(key, default) is None:
            return None
        return self.whole(key, default)

    def pair(self, key: str, default: int) -> tuple[int, int]:
        """A height and a width, which one number may stand for."""
        value = self._or(key, default)
        both = list(value) if isinstance(value, (list, tuple)) else [value, value]
        if len(both) != 2 or not all(type(one) is int and one > 0 for one in both):
            raise self.refused(key, "a whole number of at least 1, or two of them")
        return both[0], both[1]

    def layers(self, key: str) -> int:
        """A number of layers: parameters cost nothing before they are read, but a billion layers would."""
        if self.whole(key) > MOST_LAYERS:
            raise self.refused(key, f"a number of at most {MOST_LAYERS} layers")
        return self.whole(key)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._or(key, default)
        if not isinstance(value, bool):
            raise self.refused(key, "true or false")
        return value

    def probability(self, key: str, default: float) -> float:
        """A number from 0 to 1."""
        value = self._or(key, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= 1:
            raise self.refused(key, "a number from 0 to 1")
        return float(value)

    def coefficient(self, key: str, default: float) -> float:
        """A number, 0 or above."""
        value = self._or(key, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not value >= 0:
            raise self.refused(key, "a number, 0 or above")
        return float(value)

    def number(self, key: str, default: float | None = None) -> float:
        """A number above 0."""
        value = self._or(key, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not value > 0:
            raise self.refused(key, "a number above 0")
        return float(value)

    def number_or_none(self, key: str, default: float | None = None) -> float | None:
        """The same, or ``None`` where the file says null; ``default`` where it says nothing."""
        if self.values.get(key, default) is None:
            return None
        return self.number(key, default)

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
        for ending, meant in ENDINGS.items():
            if classes and classes[0].endswith(ending):
                return meant
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
        named = {k: v for k, v in self.values.items() if k.endswith(MARKS)}
        return {k: v for k, v in named.items() if v is not None}

    def head_width(self, width: str, heads: str) -> int:
        """The width of each head, where all of them share the width of the model."""
        if self.whole(width) % self.whole(heads):
            raise self.refused(heads, f"a divisor of {width} = {self.whole(width)}")
        return self.whole(width) // self.whole(heads)

    def refused(self, key: str, rule: str) -> CheckpointError:
        """The complaint about one value."""
        return CheckpointError(
            f"{self.path} says {key} = {self.values.get(key)!r}, and Limelight reads there {rule}. "
            "Take another checkpoint, or correct the file if it was edited."
        )

    def _or(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        return self.defaults.get(key, default) if value is None else value


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
