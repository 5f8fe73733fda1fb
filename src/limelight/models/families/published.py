"""A published configuration: values of a ``config.json``, checked as they are read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...formats.errors import CheckpointError, shortened
from ...nn import ClassHead, MaskedHead
from ..config import Recipe

# The maximum of each integer of a configuration that sets a number of modules: parameters take no memory before
# they are read, but a billion modules would. `MAX_INTEGER` bounds all others: products of sizes then stay in range.
MAX_MODULES = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers"), 1000),
    **dict.fromkeys(("encoder_layers", "decoder_layers"), 1000),
    "num_local_experts": 1024,
    "num_labels": 1_000_000,
}
MAX_INTEGER = 2**31 - 1
MAX_NUMBER = 1e15  # beyond, products of two numbers and a length leave what float64 counts exactly
MAX_ROPE_FACTOR = 1e6  # the largest `factor` of a RoPE scaling
MAX_EXPERTS = 4096  # experts of all layers together

# How the names of values end that are ids of special tokens.
SPECIAL_TOKEN_KEYS = ("_token_id", "suppress_tokens", "forced_decoder_ids", "bad_words_ids")
NONE = (-1, 2**32 - 1)  # "no such token" in some files: -1, and -1 read as an unsigned 32-bit integer

# The task of published classes without "For" in their names (GPT-2's and Marian's), by the end of the name.
ENDINGS = {"LMHeadModel": "CausalLM", "MTModel": "ConditionalGeneration"}


class RecordingDict(dict[str, Any]):
    """A configuration that records which keys were read (``read``), so that keys without an effect can be refused."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.read: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a key, and record that it was read."""
        self.read.add(key)
        return super().get(key, default)


@dataclass(frozen=True)
class Published:
    """The values of a configuration, with the path of their file for error messages.

    Args:
        path: the file, named in error messages.
        values: its keys and values.
        defaults: values of keys that the file lacks; they precede the defaults of the methods.
        tensors: the names of the tensors beside it, or ``None``.
    """

    path: Path
    values: Mapping[str, Any]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    tensors: Collection[str] | None = None

    def get(self, key: str) -> Any:
        """The value as the file has it, ``None`` where there is none."""
        return self.values.get(key)

    def with_defaults(self, **defaults: Any) -> Published:
        """The configuration, read with these ``defaults`` where the file lacks a key."""
        return Published(self.path, self.values, {**self.defaults, **defaults}, self.tensors)

    def token(self, key: str, default: int) -> int:
        """The id of a token: a whole number of at least 0."""
        value = self._or(key, default)
        if not _is_token(value):
            raise self.refused(key, "the id of a token")
        return value  # type: ignore[no-any-return]

    def whole(self, key: str, default: int | None = None) -> int:
        """A whole number of at least 1, at most `MAX_MODULES[key]`, else `MAX_INTEGER`."""
        value, most = self._or(key, default), MAX_MODULES.get(key, MAX_INTEGER)
        if not _is_whole(value) or value < 1:
            raise self.refused(key, "a whole number of at least 1")
        if value > most:
            raise self.refused(key, f"a whole number of at most {most}")
        return value  # type: ignore[no-any-return]

    def or_none(self, key: str, default: int | None = None) -> int | None:
        """A whole number; ``None`` where the file has null, ``default`` where it lacks the key."""
        if self.values.get(key, default) is None:
            return None
        return self.whole(key, default)

    def pair(self, key: str, default: int) -> tuple[int, int]:
        """A height and a width; a single number is used for both."""
        value = self._or(key, default)
        both = list(value) if isinstance(value, (list, tuple)) else [value, value]
        if len(both) != 2 or not all(_is_whole(one) and 0 < one <= MAX_INTEGER for one in both):
            raise self.refused(key, "a whole number of at least 1, or two of them")
        return both[0], both[1]

    def layers(self, key: str, *, shared: bool = False) -> int:
        """A number of layers, each of which has tensors of its own unless they are ``shared``."""
        layers = self.whole(key)
        if not shared and self.tensors is not None and layers > len(self.tensors):
            raise self.refused(
                key, f"at most as many layers as there are tensors in the checkpoint, {len(self.tensors)}"
            )
        return layers

    def parts(self, key: str, default: int, *, layers: int) -> int:
        """A number of submodules (experts) in each of the ``layers``, every one with tensors of its own."""
        parts = self.whole(key, default)
        most = MAX_EXPERTS if self.tensors is None else min(MAX_EXPERTS, len(self.tensors))
        if parts * layers > most:
            raise self.refused(key, f"a number that is at most {most} when it is multiplied with the {layers} layers")
        return parts

    def object(self, key: str) -> Mapping[str, Any]:
        """A JSON object of plain values; empty where the file lacks the key."""
        value = self._or(key, {})
        if not isinstance(value, Mapping) or any(isinstance(inner, Mapping) for inner in value.values()):
            raise self.refused(key, "an object of plain values")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """A flag: true or false, or ``default``."""
        value = self._or(key, default)
        if not isinstance(value, bool):
            raise self.refused(key, "true or false")
        return value

    def probability(self, key: str, default: float) -> float:
        """A number from 0 to 1."""
        return self._number(key, default, lambda value: 0 <= value <= 1, "a number from 0 to 1")

    def coefficient(self, key: str, default: float) -> float:
        """A number of at least 0."""
        return self._number(key, default, lambda value: 0 <= value <= MAX_NUMBER, f"a number from 0 to {MAX_NUMBER:g}")

    def number(self, key: str, default: float | None = None) -> float:
        """A number above 0; the ``factor`` of a RoPE scaling is at most `MAX_ROPE_FACTOR`."""
        most = MAX_ROPE_FACTOR if key == "factor" else MAX_NUMBER
        return self._number(key, default, lambda value: 0 < value <= most, f"a number above 0, at most {most:g}")

    def numbers(self, key: str, count: int) -> tuple[float, ...]:
        """A list of ``count`` numbers above 0."""
        values = self.get(key)
        holds = isinstance(values, (list, tuple)) and len(values) == count
        if not holds or not all(_is_number(value) and 0 < value <= MAX_NUMBER for value in values):
            raise self.refused(key, f"a list of {count} numbers above 0, one for each rotated pair")
        return tuple(map(float, values))

    def number_or_none(self, key: str, default: float | None = None) -> float | None:
        """A number above 0; ``None`` where the file has null, ``default`` where it lacks the key."""
        if self.values.get(key, default) is None:
            return None
        return self.number(key, default)

    def one_of(self, key: str, choices: Collection[Any], default: Any) -> Any:
        """A value that is one of the ``choices``."""
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
        for ending, task in ENDINGS.items():
            if classes and classes[0].endswith(ending):
                return task
        return classes[0].partition("For")[2] if classes else default

    def labels(self) -> tuple[str, ...]:
        """The names of the classes of a classification head."""
        names = self.get("id2label")
        if names is None:
            return tuple(f"LABEL_{number}" for number in range(self.whole("num_labels", 2)))
        rule = "an object with a name for each of the numbers 0, 1, 2, ..."
        if not isinstance(names, Mapping):
            raise self.refused("id2label", rule)
        found = [names.get(str(number)) for number in range(len(names))]
        if not found or not all(isinstance(name, str) for name in found):
            raise self.refused("id2label", rule)
        return tuple(map(str, found))

    def special_token_ids(self) -> dict[str, Any]:
        """Ids of special tokens, by their published names (``eos_token_id``), without those that mean no token (-1).

        Raises:
            CheckpointError: a value is not an id (a whole number of at least 0) or a list of the expected form.
        """
        found = {}
        for key, value in self.values.items():
            if not key.endswith(SPECIAL_TOKEN_KEYS):
                continue
            if isinstance(value, (list, tuple)):
                value = [one for one in value if not _is_none(one)] or None
            if value is not None and not _is_none(value):
                holds, rule = next(form for ending, form in _FORMS.items() if key.endswith(ending))
                if not holds(value):
                    raise self.refused(key, rule)
                found[key] = value
        return found

    def head_width(self, width: str, heads: str) -> int:
        """The width of each head, where all of them share the width of the model."""
        if self.whole(width) % self.whole(heads):
            raise self.refused(heads, f"a divisor of {width} = {self.whole(width)}")
        return self.whole(width) // self.whole(heads)

    def refused(self, key: str, rule: str) -> CheckpointError:
        """The error for the value of a key; ``rule`` is what the value must be."""
        return CheckpointError(
            f"{self.path} says {key} = {shortened(self.values.get(key))}, and Limelight reads there {rule}. "
            "Take another checkpoint, or correct the file if it was edited."
        )

    def _number(self, key: str, default: float | None, holds: Callable[[float], bool], rule: str) -> float:
        value = self._or(key, default)
        if not _is_number(value) or not holds(value):
            raise self.refused(key, rule)
        return float(value)

    def _or(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        return self.defaults.get(key, default) if value is None else value


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_none(value: Any) -> bool:
    return _is_whole(value) and value in NONE


def _is_token(value: Any) -> bool:
    return _is_whole(value) and 0 <= value <= MAX_INTEGER


def _are_tokens(value: object) -> bool:
    return isinstance(value, (list, tuple)) and all(map(_is_token, value))


def _are_forced(value: object) -> bool:
    """Pairs ``(position, token)``; the token is ``None`` where the language decides it (Whisper)."""
    return isinstance(value, (list, tuple)) and all(
        isinstance(pair, (list, tuple))
        and len(pair) == 2
        and _is_token(pair[0])
        and (pair[1] is None or _is_token(pair[1]))
        for pair in value
    )


# The form of each kind of special tokens, by the end of its name.
_FORMS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "_token_id": (lambda value: _is_token(value) or _are_tokens(value), "the id of a token, or a list of ids"),
    "suppress_tokens": (_are_tokens, "a list of the ids of tokens"),
    "forced_decoder_ids": (_are_forced, "a list of pairs of a place and the id of a token"),
    "bad_words_ids": (
        lambda value: isinstance(value, (list, tuple)) and all(word and _are_tokens(word) for word in value),
        "a list of lists of the ids of tokens",
    ),
}


def class_suffix(head: Recipe | None) -> str:
    """The suffix of the published class name of a model with this head, such as ``"ForCausalLM"``."""
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
