"""Checks of layers: arguments of a constructor by their annotations and names, and the states of a call."""

from __future__ import annotations

import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..backends.contract import BackendError
from ..forms.layouts import Layout
from ..tensors.shapes import ArgumentError, describe, whole_number, wrong
from ..tensors.torch_internals import break_graph
from ..tensors.tracing import recorder

Layer = TypeVar("Layer", bound=type)

# Whole numbers that may be less than 1, and the least they may be; all others are sizes.
MINIMUMS = {"segments": 0, "shared": 0, "offset": 0}
# Numbers: what is said of them, and the test.
PROBABILITY = ("must be a probability, at least 0 and less than 1", lambda x: 0 <= x < 1)
POSITIVE = ("must be a finite number above 0", lambda x: 0 < x < math.inf)
NOT_NEGATIVE = ("must be a finite number, at least 0", lambda x: 0 <= x < math.inf)
FINITE = ("must be a finite number", math.isfinite)
RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    **dict.fromkeys(("dropout", "jitter"), PROBABILITY),
    **dict.fromkeys(
        ("theta", "factor", "cap", "base", "capacity", "fast", "slow", "low", "high", "truncation", "deviation"),
        POSITIVE,
    ),
    **dict.fromkeys(("epsilon", "balance", "z"), NOT_NEGATIVE),
    "attention_factor": (
        "must be a finite number above 0",
        lambda x: 0 < x < math.inf or math.isnan(x),
    ),  # NaN: the published one
}


def refuse_spread(layer: nn.Module, layout: Layout | None) -> None:
    """Raise `ArgumentError` if the tokens lie on several processes and a layer reads those of others by itself.

    Args:
        layer: says so by an attribute ``reads_other_tokens``, the reason in words.
        layout: of the tokens.
    """
    why = getattr(layer, "reads_other_tokens", None)
    if layout is not None and layout.spread and why is not None:
        raise wrong(
            "layout",
            f"must be that of whole texts for {type(layer).__name__}",
            f"it is {layout!r}, and {why}",
            "Only attention reads tokens of other processes: compute this layer in one process.",
        )


def checked(cls: Layer) -> Layer:
    """A class decorator: arguments of the constructor are checked by their annotations (whole numbers, numbers, flags,
    names, functions, modules) and by their names (the range of a number) before anything is made.

    Raises, when a layer is made:
        ArgumentError: an argument of another kind or out of its range, by its name.
    """
    make = cls.__init__  # type: ignore[misc]
    signature = inspect.signature(make)

    @functools.cache
    def kinds() -> dict[str, Any]:
        return typing.get_type_hints(make)

    @functools.wraps(make)
    def checking(self: Any, *args: Any, **settings: Any) -> None:
        try:
            given = signature.bind(self, *args, **settings)
        except TypeError as error:
            raise TypeError(f"{error}; the arguments are {cls.__name__}({_shown(signature)})") from None
        for name, value in given.arguments.items():
            if kinds().get(name, Any) is not Any:
                check(name, value, kinds()[name])
        make(self, *args, **settings)

    cls.__init__ = checking  # type: ignore[misc]
    return cls


def check(name: str, value: Any, kind: Any) -> None:
    """Raise unless an argument is of its ``kind``, an annotation."""
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if value is None and type(None) in options:
        return
    options = tuple(option for option in options if option is not type(None))
    if float in options:
        _number(name, value)
    elif int in options:
        whole_number(name, value, at_least=MINIMUMS.get(name, 1))
    elif len(options) == 1 and (rule := _broken(name, value, options[0])):
        others = " or None" if options != (kind,) else ""
        raise wrong(name, f"must be {rule}{others}", f"it is {_named(value)}", "Give one, already made.")


def _number(name: str, value: Any) -> None:
    rule, holds = RANGES.get(name, FINITE)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not holds(value):
        raise wrong(name, rule, f"it is {_named(value)}", "Check the number and the order of the arguments.")


def _broken(name: str, value: Any, kind: Any) -> str:
    """The rule that an argument violates, in words; empty if it is valid."""
    origin = typing.get_origin(kind)
    if kind is bool:
        return "" if isinstance(value, bool) else "True or False"
    if kind is str:
        return "" if isinstance(value, str) else "a string"
    if origin is tuple:
        whole = isinstance(value, tuple) and len(value) == len(typing.get_args(kind))
        return "" if whole and all(type(n) is int and n > 0 for n in value) else "a tuple of whole numbers above 0"
    if origin is not None and issubclass(origin, Sequence):
        return _broken_items(value, typing.get_args(kind)[0])
    if origin is not None or getattr(kind, "_is_protocol", False):
        # A function, or an object with the methods of a protocol, which is no class.
        names = [] if origin is not None else [n for n in vars(kind) if not n.startswith("_")]
        fits = all(hasattr(value, n) for n in names) and (callable(value) or bool(names))
        return "" if fits and not (names and isinstance(value, type)) else f"a {getattr(kind, '__name__', 'function')}"
    if isinstance(kind, type):
        return "" if isinstance(value, kind) else f"a {kind.__name__}"
    return ""


def _broken_items(value: Any, kind: Any) -> str:
    kinds = typing.get_args(kind) or (kind,)
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        fits = False
    else:
        fits = all(isinstance(one, kinds) for one in value)
    return "" if fits else "a sequence of " + " or ".join(one.__name__ for one in kinds)


def _named(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else describe(value)


def activation_of(name: str, known: dict[str, Any]) -> Any:
    """The function of that name."""
    if name not in known:
        raise wrong("activation", f"must be one of {', '.join(known)}", f"it is {name!r}", "Correct the name.")
    return known[name]


def of_width(states: Any, width: int, weight: Tensor) -> bool:
    """Whether a layer with this ``weight`` can read ``(..., width)`` states: a few comparisons."""
    return (
        isinstance(states, Tensor)
        and not states.is_nested
        and states.dim() > 0
        and states.shape[-1] == width
        and (states.dtype is weight.dtype or _is_cast(states))
        and states.device == weight.device
    )


def _shown(signature: inspect.Signature) -> str:
    """The arguments of a constructor: those that must be given, and by name what is given by name."""
    parameters = list(signature.parameters.values())[1:]
    needed = [one.name for one in parameters if one.default is one.empty and one.kind is not one.KEYWORD_ONLY]
    named = [f"{one.name}=" for one in parameters if one.default is one.empty and one.kind is one.KEYWORD_ONLY]
    more = ["..."] if len(needed) + len(named) < len(parameters) else []
    return ", ".join([*needed, *named, *more])


def refuse_recorders(layer: nn.Module, states: Tensor, chooses: str) -> None:
    """Raise where the operations of a layer depend on the values of its input, while a tracer records them for others.

    ``torch.compile`` leaves such a step to Python; with ``fullgraph=True`` its error holds the reason.

    Args:
        layer: whose operations they are.
        states: which it reads.
        chooses: what depends on the values, in words.

    Raises:
        BackendError: a recorder would keep what the layer does for these states, and do the same for all others.
    """
    if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
        break_graph(f"{chooses} depends on the values of the input: use torch.compile without fullgraph")
        return
    by = recorder(states)
    if by:
        raise BackendError(
            f"{type(layer).__name__} cannot be recorded by {by}: {chooses} depends on the values of the input, and "
            "the record would treat every input as this one. Run the layer outside of it, or use torch.compile without "
            "fullgraph."
        )


def _is_cast(states: Tensor) -> bool:
    return states.is_floating_point() and torch.is_autocast_enabled(states.device.type)


def check_texts(states: Any, width: int, weight: Tensor, name: str = "states") -> None:
    """Raise unless a layer with this ``weight`` can read ``(B, L, width)`` states, an argument of that name."""
    if not of_width(states, width, weight):
        raise unreadable(states, width, weight, name)
    if states.dim() != 3:
        got = f"they have {states.dim()} dimensions"
        raise wrong(name, "must be (B, L, width)", got, f"One text is a batch of one: {name}[None].")


def unreadable(states: Any, width: int, weight: Tensor, name: str = "states") -> ArgumentError:
    """The error of states that are not `of_width`."""
    dtype = str(weight.dtype).removeprefix("torch.")
    rule = f"must be a {dtype} tensor (..., {width}) on {weight.device}, as the layer is made"
    got = f"they are {describe(states)}" + (f" on {states.device}" if isinstance(states, Tensor) else "")
    return wrong(name, rule, got, "Convert them with .to(), or make the layer of their width.")


def check_ids(name: str, ids: Any, what: str, table: Tensor) -> None:
    """Raise unless ``ids`` can be looked up in a table beside them; of the meta device PyTorch returns any numbers."""
    if not isinstance(ids, Tensor) or ids.is_nested or ids.dtype not in (torch.int64, torch.int32):
        raise wrong(name, f"must be a tensor of int64 {what}", f"it is {describe(ids)}", "Pass whole numbers.")
    if ids.device != table.device:
        rule = f"must be on {table.device}, where the layer is"
        raise wrong(name, rule, f"it is {describe(ids)} on {ids.device}", "Move one with .to().")


def token_vectors(table: nn.Embedding, tokens: Any) -> Tensor:
    """The vectors ``(B, L, width)`` of token ids."""
    check_ids("tokens", tokens, "token ids", table.weight)
    if torch.compiler.is_compiling():
        return table(tokens)  # type: ignore[no-any-return]
    try:
        return table(tokens)  # type: ignore[no-any-return]
    except IndexError:  # on a GPU it is an assertion of the device
        least, most = (int(end) for end in tokens.aminmax())
        rule = f"must lie between 0 and {table.num_embeddings - 1}, the last token of the vocabulary"
        raise wrong(
            "tokens", rule, f"they run from {least} to {most}", "Use the tokenizer of the same model."
        ) from None
