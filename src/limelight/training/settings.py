"""What a training run is told: a small TOML file, with the command line over it."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..shapes import wrong
from .schedule import SHAPES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TASKS = ("language", "translation")
TOKENIZERS = ("characters", "byte-pair")
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Data:
    """What is read.

    Args:
        train: a text; or for translation, lines of a source and a target with a tab between.
        evaluation: the same, never learned from; none: a share of ``train`` is held out.
        held_out: that share, from 0 (nothing is evaluated) to below 1: whole documents or pairs, spread evenly.
        separator: what stands between the documents of a text; empty: the text is one document.
    """

    train: Path
    evaluation: Path | None = None
    held_out: float = 0.02
    separator: str = ""


@dataclass(frozen=True)
class Vocabulary:
    """How text is cut.

    Args:
        kind: ``"characters"``, or ``"byte-pair"`` (Sennrich et al. 2015, arXiv:1508.07909, over bytes).
        size: the most tokens of a byte-pair vocabulary, marks included.
    """

    kind: str = "byte-pair"
    size: int = 4096


@dataclass(frozen=True)
class Learning:
    """How a step changes the model.

    Args:
        rate: the highest learning rate.
        schedule: ``"cosine"``, ``"inverse-square-root"`` or ``"constant"``, after the warm-up.
        warmup: steps in which the rate grows to its highest.
        floor: the share of the highest rate below which it does not fall.
        decay: weight decay of the matrices.
        betas, epsilon: of Adam.
        clip: the longest gradient (its norm); a longer one is shortened.
        smoothing: of the labels.
    """

    rate: float = 1e-3
    schedule: str = "cosine"
    warmup: int = 100
    floor: float = 0.1
    decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    epsilon: float = 1e-8
    clip: float = 1.0
    smoothing: float = 0.0


@dataclass(frozen=True)
class Run:
    """How long, how much at a time, and what is kept.

    Args:
        steps: of learning.
        tokens: that one process reads at a time; a step reads ``tokens * accumulation * processes``.
        length: the most tokens of a document in one piece (longer ones are cut), or of each side of a pair (longer ones
            are left out).
        accumulation: how many readings make one step.
        precision: ``"float32"``, or ``"bfloat16"``: products in bfloat16, weights and sums in float32.
        seed: of the first weights, the order of the data and dropout.
        evaluate_every: steps between evaluations.
        save_every: steps between checkpoints.
        keep: checkpoints that stay, the newest.
        patience: evaluations in a row without a better one after which training stops; 0: it never does.
        translate: held-out sources that are translated at the end, for BLEU.
    """

    steps: int = 1000
    tokens: int = 4096
    length: int = 256
    accumulation: int = 1
    precision: str = "float32"
    seed: int = 0
    evaluate_every: int = 250
    save_every: int = 250
    keep: int = 2
    patience: int = 0
    translate: int = 0


@dataclass(frozen=True)
class Settings:
    """One training run.

    Args:
        task: ``"language"``: foretell the next token of a text; ``"translation"``: of a target, seeing its source.
        data, tokenizer, learning, run: see there.
        model: what the published configuration of the model says (``model_type``, ``hidden_size``, ...), without what
            follows from the tokenizer. See `limelight.models.families`.
    """

    task: str
    data: Data
    model: Mapping[str, Any]
    tokenizer: Vocabulary = field(default_factory=Vocabulary)
    learning: Learning = field(default_factory=Learning)
    run: Run = field(default_factory=Run)

    def __post_init__(self) -> None:
        _one_of("task", self.task, TASKS)
        _one_of("tokenizer.kind", self.tokenizer.kind, TOKENIZERS)
        _one_of("learning.schedule", self.learning.schedule, tuple(SHAPES))
        _one_of("run.precision", self.run.precision, PRECISIONS)
        for part, name, least in _LEAST:
            value = getattr(getattr(self, part), name)
            if value < least:
                raise wrong(f"{part}.{name}", f"must be at least {least}", f"it is {value}", "See limelight.training.")
        for part, name in (("data", "held_out"), ("learning", "smoothing"), ("learning", "floor")):
            value = getattr(getattr(self, part), name)
            if not 0 <= value < 1:
                raise wrong(f"{part}.{name}", "must be at least 0 and below 1", f"it is {value}", "It is a share.")
        if self.run.translate and self.task != "translation":
            got = f"{self.run.translate} stands in a task {self.task!r}"
            raise wrong("run.translate", "is for the task 'translation'", got, "Remove it.")
        if self.run.tokens < self.run.length:
            got = f"{self.run.tokens} is less than {self.run.length}"
            raise wrong("run.tokens", "must be at least run.length", got, "Each batch holds whole pieces.")

    def as_json(self) -> dict[str, Any]:
        """The same in JSON's values."""
        values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self), default=str))
        return values


_LEAST = (
    ("tokenizer", "size", 260), ("learning", "rate", 0.0), ("learning", "warmup", 0), ("learning", "decay", 0.0),
    ("learning", "clip", 0.0), ("run", "steps", 1), ("run", "tokens", 1), ("run", "length", 2),
    ("run", "accumulation", 1), ("run", "seed", 0), ("run", "evaluate_every", 1), ("run", "save_every", 1),
    ("run", "keep", 1), ("run", "patience", 0), ("run", "translate", 0),
)  # fmt: skip


def read_settings(path: Path, over: Sequence[str] = ()) -> Settings:
    """The settings in a TOML file, with ``key=value`` pairs over them.

    Args:
        path: the file. Files that it names are looked for beside it.
        over: such as ``"run.steps=100"``; the value is TOML, or else a text as it stands.

    Raises:
        ArgumentError: no TOML, a key that means nothing, a value of the wrong type.
    """
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise wrong("config", "must be a TOML file", f"{path} is none: {error}", "See https://toml.io.") from error
    for name in ("train", "evaluation"):
        data = values.get("data")
        if isinstance(data, dict) and isinstance(data.get(name), str):
            data[name] = str(path.parent / Path(data[name]).expanduser())
    for pair in over:
        key, equals, text = pair.partition("=")
        if not equals:
            raise wrong("--set", "must be key=value", f"it is {pair!r}", "Example: --set run.steps=100")
        table = values
        *parents, last = key.strip().split(".")
        for parent in parents:
            table = table.setdefault(parent, {})
            if not isinstance(table, dict):
                raise wrong("--set", f"names a table in {key!r}", f"{parent} is a value", "Check the key.")
        table[last] = _value(text)
    return from_json(values)


def from_json(values: Mapping[str, Any]) -> Settings:
    """`Settings` of nested mappings, every key and type checked."""
    return _made(Settings, values, "")  # type: ignore[no-any-return]


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _made(kind: Any, values: Any, where: str) -> Any:
    if not isinstance(values, Mapping):
        raise wrong(where, "must be a table", f"it is {values!r}", f"Write [{where}] above its keys.")
    fields = {one.name: one for one in dataclasses.fields(kind)}
    unknown = [f"{where}{key}" for key in values if key not in fields]
    if unknown:
        known = ", ".join(f"{where}{name}" for name in fields)
        raise wrong("config", f"may have the keys {known}", f"it has {', '.join(unknown)}", "Correct or remove it.")
    types_ = typing.get_type_hints(kind)
    missing = [
        f"{where}{name}"
        for name, one in fields.items()
        if name not in values and one.default is one.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise wrong("config", f"must say {', '.join(missing)}", "it does not", "See examples/austen.toml.")
    return kind(**{name: _typed(types_[name], value, f"{where}{name}") for name, value in values.items()})


def _typed(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _made(kind, value, f"{where}.")
    if isinstance(kind, types.UnionType):
        return None if value is None else _typed(kind.__args__[0], value, where)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is Path and isinstance(value, str):
        return Path(value).expanduser()
    if typing.get_origin(kind) is tuple:
        wanted = typing.get_args(kind)
        if isinstance(value, list) and len(value) == len(wanted):
            return tuple(_typed(one, each, where) for one, each in zip(wanted, value, strict=True))
    elif isinstance(value, typing.get_origin(kind) or kind) and not (isinstance(value, bool) and kind is not bool):
        return value
    names = {Path: "a path", tuple: "a list of two numbers"}
    name = names.get(typing.get_origin(kind) or kind, getattr(kind, "__name__", str(kind)))
    raise wrong(where, f"must be {name}", f"it is {value!r}", "See limelight.training.settings.")


def _one_of(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise wrong(name, f"must be one of {', '.join(choices)}", f"it is {value!r}", "Correct the configuration.")


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """The keys under which two nested mappings differ."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return [
            difference
            for key in sorted({*one, *other})
            for difference in differences(one.get(key), other.get(key), f"{where}.{key}" if where else key)
        ]
    return [] if one == other else [where]
