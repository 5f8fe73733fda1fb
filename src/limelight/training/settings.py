"""The settings of a training run: a small TOML file, with ``--set`` of the command line over it."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..tensors.shapes import wrong
from .schedule import SCHEDULES

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TASKS = ("language", "translation")
TOKENIZERS = ("characters", "byte-pair")
PRECISIONS = ("float32", "bfloat16")
KEYS = "limelight train --keys explains every key."


@dataclass(frozen=True)
class DataSettings:
    """The training and evaluation data.

    Args:
        train: UTF-8 text file; for translation, lines of a source, a tab and its translation.
        evaluation: Held-out file of the same form, never trained on. By default a share of ``train`` is held out.
        held_out: That share, from 0 (no evaluation) to below 1: whole documents or pairs, spread evenly.
        separator: String between the documents of a text file; if empty, the file is one document.
    """

    train: Path
    evaluation: Path | None = None
    held_out: float = 0.02
    separator: str = ""


@dataclass(frozen=True)
class TokenizerSettings:
    """The tokenizer, which is trained on the training data.

    Args:
        kind: ``"characters"``, or ``"byte-pair"`` (Sennrich et al. 2015, arXiv:1508.07909, over bytes).
        vocab_size: Maximum size of a byte-pair vocabulary, special tokens included.
    """

    kind: str = "byte-pair"
    vocab_size: int = 4096


@dataclass(frozen=True)
class LearningSettings:
    """The optimizer (AdamW), its learning rate schedule and the loss.

    Args:
        rate: Peak learning rate.
        schedule: ``"cosine"``, ``"inverse-square-root"`` or ``"constant"``, after the warm-up.
        warmup: Steps in which the rate grows linearly to its peak.
        min_rate_ratio: Minimum learning rate after the warm-up, as a share of the peak.
        weight_decay: Weight decay of the matrices; norms, biases and embeddings have none.
        betas: Decay rates of AdamW's two moment averages.
        epsilon: AdamW's epsilon.
        clip: Maximum gradient norm; 0 turns clipping off.
        label_smoothing: Share of the probability of each target that is spread over the vocabulary.
    """

    rate: float = 1e-3
    schedule: str = "cosine"
    warmup: int = 100
    min_rate_ratio: float = 0.1
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    epsilon: float = 1e-8
    clip: float = 1.0
    label_smoothing: float = 0.0


@dataclass(frozen=True)
class RunSettings:
    """Length, batch size, precision, evaluation and checkpoints of a run.

    Args:
        steps: Optimizer steps.
        batch_tokens: Tokens of a batch in each process; an optimizer step takes
            ``batch_tokens * accumulation_steps * processes / (context * tensor)``.
        max_length: Maximum tokens of a piece of a document (longer documents are cut), or of each side of a pair
            (longer pairs are left out).
        accumulation_steps: Gradient accumulation steps.
        precision: ``"float32"``, or ``"bfloat16"``: mixed precision, with weights and sums in float32.
        seed: Seed of the initial weights, the order of the data and dropout.
        evaluate_every: Steps between evaluations.
        save_every: Steps between checkpoints.
        keep_checkpoints: Number of the newest checkpoints that are kept.
        patience: Stop after this many evaluations in a row without an improvement; 0 never stops early.
        bleu_samples: Number of held-out sources that are translated at the end to measure BLEU; 0 measures none.
        shard: Number of processes among which parameters, gradients and optimizer state are divided (FSDP).
        context: Number of processes among which the tokens of each batch are divided (context parallelism); they also
            divide parameters, gradients and optimizer state, as those of ``shard`` do.
        experts: Number of processes among which the experts of each mixture are divided (expert parallelism); they are
            among those that read different tokens.
        tensor: Number of processes among which the heads, features and vocabulary of each layer are divided (tensor
            parallelism); they take the same batch.
        timeout: Seconds that processes wait for one another before the run ends.
    """

    steps: int = 1000
    batch_tokens: int = 4096
    max_length: int = 256
    accumulation_steps: int = 1
    precision: str = "float32"
    seed: int = 0
    evaluate_every: int = 250
    save_every: int = 250
    keep_checkpoints: int = 2
    patience: int = 0
    bleu_samples: int = 0
    shard: int = 1
    context: int = 1
    experts: int = 1
    tensor: int = 1
    timeout: int = 600


@dataclass(frozen=True)
class Settings:
    """All settings of one training run.

    Args:
        task: ``"language"``: predict the next token of a text; ``"translation"``: of a target, given its source.
        data: `DataSettings`.
        model: The keys of the model's published config.json (``model_type``, ``hidden_size``, ...), without those that
            follow from the tokenizer.
        tokenizer: `TokenizerSettings`.
        learning: `LearningSettings`.
        run: `RunSettings`.
    """

    task: str
    data: DataSettings
    model: Mapping[str, Any]
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    learning: LearningSettings = field(default_factory=LearningSettings)
    run: RunSettings = field(default_factory=RunSettings)

    def __post_init__(self) -> None:
        _one_of("task", self.task, TASKS)
        _one_of("tokenizer.kind", self.tokenizer.kind, TOKENIZERS)
        _one_of("learning.schedule", self.learning.schedule, tuple(SCHEDULES))
        _one_of("run.precision", self.run.precision, PRECISIONS)
        for key, (minimum, below) in _RANGES.items():
            part, _, name = key.partition(".")
            value = getattr(getattr(self, part), name)
            for one in value if isinstance(value, tuple) else (value,):
                if not minimum <= one < below:  # NaN is in no range
                    end = "and finite" if below == math.inf else f"and below {below}"
                    raise wrong(key, f"must be at least {minimum} {end}", f"it is {value}", KEYS)
        if self.run.bleu_samples and self.task != "translation":
            got = f"it is {self.run.bleu_samples}, and the task is {self.task!r}"
            raise wrong("run.bleu_samples", "is for the task 'translation'", got, "Remove it.")
        if self.run.bleu_samples and self.data.evaluation is None and not self.data.held_out:
            got = "data.evaluation is not given and data.held_out is 0"
            raise wrong("run.bleu_samples", "needs held-out pairs", got, "Set one of them.")
        if self.run.batch_tokens < self.run.max_length:
            got = f"{self.run.batch_tokens} is less than {self.run.max_length}"
            raise wrong("run.batch_tokens", "must be at least run.max_length", got, "Raise run.batch_tokens.")

    def as_json(self) -> dict[str, Any]:
        """Return the settings as nested dictionaries of JSON values."""
        values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self), default=str))
        return values


# Of each number: the minimum, and the bound that it must stay below.
_RANGES: dict[str, tuple[float, float]] = {
    "data.held_out": (0, 1),
    "tokenizer.vocab_size": (260, 2**31),
    "learning.rate": (0, math.inf),
    "learning.warmup": (0, 2**63),
    "learning.min_rate_ratio": (0, 1),
    "learning.weight_decay": (0, math.inf),
    "learning.betas": (0, 1),
    "learning.epsilon": (0, math.inf),
    "learning.clip": (0, math.inf),
    "learning.label_smoothing": (0, 1),
    "run.steps": (1, 2**63),
    "run.batch_tokens": (1, 2**31),
    "run.max_length": (2, 2**31),
    "run.accumulation_steps": (1, 2**31),
    "run.seed": (0, 2**63),
    "run.evaluate_every": (1, 2**63),
    "run.save_every": (1, 2**63),
    "run.keep_checkpoints": (1, 2**63),
    "run.patience": (0, 2**63),
    "run.bleu_samples": (0, 2**63),
    "run.shard": (1, 2**31),
    "run.context": (1, 2**31),
    "run.experts": (1, 2**31),
    "run.tensor": (1, 2**31),
    "run.timeout": (1, 2**31),
}


def read_settings(path: Path, over: Sequence[str] = ()) -> Settings:
    """Read the settings in a TOML file, with ``key=value`` pairs over them.

    Args:
        path: the TOML file; the paths in it are relative to its folder.
        over: such as ``"run.steps=100"``; the value is TOML, or else a string without quotes.

    Raises:
        ArgumentError: the file is not TOML, a key is unknown, or a value has the wrong type.
    """
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise wrong("config", "must be a TOML file", f"{path} is not: {error}", "See https://toml.io.") from error
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
    """Build `Settings` from nested mappings, with every key and type checked.

    Raises:
        ArgumentError: a key is unknown or missing, or a value has the wrong type.
    """
    return _made(Settings, values, "")  # type: ignore[no-any-return]


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def _made(kind: Any, values: Any, where: str) -> Any:
    if not isinstance(values, Mapping):
        name = where.rstrip(".")
        raise wrong(name or "config", "must be a table", f"it is {values!r}", f"Write [{name}] above its keys.")
    fields = {one.name: one for one in dataclasses.fields(kind)}
    unknown = [f"{where}{key}" for key in values if key not in fields]
    if unknown:
        known = ", ".join(f"{where}{name}" for name in fields)
        raise wrong("config", f"may have the keys {known}", f"it has {', '.join(unknown)}", f"Correct it. {KEYS}")
    types_ = typing.get_type_hints(kind)
    missing = [
        f"{where}{name}"
        for name, one in fields.items()
        if name not in values and one.default is one.default_factory is dataclasses.MISSING
    ]
    if missing:
        way_out = f"{KEYS} An example: examples/austen.toml."
        raise wrong("config", f"must have the keys {', '.join(missing)}", "it does not", way_out)
    return kind(**{name: _typed(types_[name], value, f"{where}{name}") for name, value in values.items()})


def _typed(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _made(kind, value, f"{where}.")
    if isinstance(kind, types.UnionType):
        return None if value is None else _typed(kind.__args__[0], value, where)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) < 2**1000 else math.inf
    if kind is Path and isinstance(value, str):
        return Path(value).expanduser()
    if typing.get_origin(kind) is tuple:
        wanted = typing.get_args(kind)
        if isinstance(value, list) and len(value) == len(wanted):
            return tuple(_typed(one, each, where) for one, each in zip(wanted, value, strict=True))
    elif isinstance(value, typing.get_origin(kind) or kind) and not (isinstance(value, bool) and kind is not bool):
        return value
    names = {int: "a whole number", float: "a number", str: "a text in quotes", Path: "a path in quotes"}
    names |= {tuple: "a list of two numbers", Mapping: "a table"}
    name = names.get(typing.get_origin(kind) or kind, getattr(kind, "__name__", str(kind)))
    raise wrong(where, f"must be {name}", f"it is {value!r}", KEYS)


def _one_of(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise wrong(name, f"must be one of {', '.join(choices)}", f"it is {value!r}", KEYS)


def explained() -> list[tuple[str, str, str]]:
    """Return every key of a configuration, its default (empty: none) and its meaning, from the docstrings."""
    rows = []
    for name, kind in typing.get_type_hints(Settings).items():
        if not dataclasses.is_dataclass(kind):
            rows.append((name, "", _described(Settings)[name]))
            continue
        described = _described(kind)
        rows += [(f"{name}.{one.name}", _default(one), described[one.name]) for one in dataclasses.fields(kind)]
    return rows


def _described(kind: Any) -> dict[str, str]:
    """Parse the ``Args`` section of a class's docstring: a description for each field."""
    found: dict[str, str] = {}
    names: list[str] = []
    for line in inspect.cleandoc(kind.__doc__).partition("Args:\n")[2].splitlines():
        if line.startswith("    ") and line[4] != " ":
            head, _, line = line.partition(": ")
            names = head.strip().split(", ")
        for name in names:
            found[name] = f"{found.get(name, '')} {line.strip()}".strip()
    return found


def _default(one: dataclasses.Field[Any]) -> str:
    """Format the default of a field as TOML."""
    if one.default is None or one.default is dataclasses.MISSING:
        return ""
    return json.dumps(one.default)


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Return the keys under which two nested mappings differ."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return [
            difference
            for key in sorted({*one, *other})
            for difference in differences(one.get(key), other.get(key), f"{where}.{key}" if where else key)
        ]
    return [] if one == other else [where]
