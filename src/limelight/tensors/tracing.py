"""Which of PyTorch's tracers and dispatch modes see an operation before its kernel runs.

A native kernel reads and writes memory by its address, which no tracer sees: a graph would hold the empty result and
no operation that fills it. So every native call is preceded by this check; where a tracer is active, a registered
operator (`limelight.operator.compiled`) or PyTorch's own operations are called, which every tracer records.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from .torch_internals import (
    FakeTensor,
    FunctionalTensor,
    TracerWarning,
    are_transforms_active,
    dispatch_mode_count,
    is_dynamo_imported,
    is_functionalize,
    is_jit_tracing,
    is_observed,
    tracing_mode,
    transforms,
    under_pre_dispatch,
)

P = ParamSpec("P")
R = TypeVar("R")

#: A mode of the user that sees operations while they are computed: a counter, a logger, a checkpointing policy.
MODE = "a TorchDispatchMode"

# torch.jit.trace warns where a size becomes a bool: in these modules that checks an argument, or chooses among equal
# computations.
warnings.filterwarnings(
    "ignore",
    category=TracerWarning,
    module=r"limelight\.(backends\.reference|compat\.[\w.]+|forms\.\w+|fused\.\w+|nn\.checks|operator\.\w+|tensors\.\w+)$",
)


#: Whether anything but the compiler (`torch.compiler.is_compiling`) sees operations on plain tensors.
active = is_observed


def seen_by(tensor: object = None) -> str:
    """Name what intercepts an operation on a tensor before its kernel runs; empty for nothing.

    `MODE` is a mode of the user: values are computed, and the mode may read them. Everything else records operations
    or computes the shapes of their results alone, and no value may be read. A transform of `torch.func` that computes
    (all but ``functionalize``) is none of them.
    """
    if torch.compiler.is_compiling():
        return "torch.compile and torch.export"
    found = _observer() if is_observed() else ""
    if type(tensor) is Tensor and tensor.is_cpu:  # the common case, without a further check
        return found
    if (not found or found is MODE) and isinstance(tensor, Tensor):
        if isinstance(tensor, (FakeTensor, FunctionalTensor)):
            return f"a {type(tensor).__name__}"
        if tensor.is_meta:
            return "the meta device"
    return found


def recorder(tensor: object = None) -> str:
    """Name what records an operation on a tensor, or computes only its shape; empty where values are computed."""
    found = seen_by(tensor)
    return "" if found is MODE else found


def readable(value: object) -> bool:
    """Whether the values of a tensor may be read, or a size compared, without changing what is recorded."""
    return not recorder(value)


def is_transformed() -> bool:
    """Whether a transform of `torch.func` that computes is active: ``functionalize`` only records."""
    return are_transforms_active() and (torch.compiler.is_compiling() or not all(map(is_functionalize, transforms())))


def is_functionalized() -> bool:
    """Whether a ``torch.func.functionalize`` is active around the call."""
    return are_transforms_active() and (not torch.compiler.is_compiling() and any(map(is_functionalize, transforms())))


def uncompiled(reason: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator of functions that `torch.compile` calls between two graphs and does not record.

    That is ``torch.compiler.disable``, which would import the compiler, a second of work, where nothing is compiled.

    Args:
        reason: with which ``fullgraph=True`` raises.
    """

    def decorated(function: Callable[P, R]) -> Callable[P, R]:
        disabled: list[Callable[P, R]] = []

        @wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> R:
            if not is_dynamo_imported():
                return function(*args, **kwargs)
            if not disabled:
                disabled.append(torch.compiler.disable(function, reason=reason))  # type: ignore[no-untyped-call]
            return disabled[0](*args, **kwargs)

        return called

    return decorated


def _observer() -> str:
    if is_jit_tracing():
        return "torch.jit.trace"
    if under_pre_dispatch():
        return "make_fx"
    if mode := tracing_mode():
        return mode
    if is_functionalized():
        return "torch.func.functionalize"
    return MODE if dispatch_mode_count() else ""
