"""Which of PyTorch's tracers and modes see an operation before its kernel does.

A native kernel reads and writes memory by its address, which no tracer sees: a graph would hold the empty result and
nothing that fills it. So every native call is preceded by this question; where the answer is yes, a registered operator
(`limelight.operator.compiled`) or PyTorch's own operations are called, which every tracer records.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.jit._trace import TracerWarning

#: A mode of the user that sees operations while they are computed: a counter, a logger, a checkpointing policy.
MODE = "a TorchDispatchMode"

_PRE_DISPATCH = torch._C.DispatchKey.PreDispatch
_TRACERS = (
    (torch._C._TorchDispatchModeKey.PROXY, "make_fx"),
    (torch._C._TorchDispatchModeKey.FUNCTIONAL, "FunctionalTensorMode"),
    (torch._C._TorchDispatchModeKey.FAKE, "FakeTensorMode"),
)

# torch.jit.trace warns where a size becomes a bool: here that checks an argument, or chooses among equal computations.
warnings.filterwarnings(
    "ignore",
    category=TracerWarning,
    module=r"limelight\.(attention|backends\.reference|compat|compiled|fused|layouts|nn\.checks|patterns|scores|shapes)$",
)


def active() -> bool:
    """Whether anything but the compiler (`torch.compiler.is_compiling`) sees operations on plain tensors."""
    return bool(
        torch._C._len_torch_dispatch_stack()
        or torch._C._is_tracing()
        or torch._C._are_functorch_transforms_active()
        or torch._C._dispatch_tls_is_dispatch_key_included(_PRE_DISPATCH)
    )


def seen_by(tensor: object = None) -> str:
    """What sees an operation on a tensor before its kernel does, in words; empty for nothing.

    `MODE` is a mode of the user: numbers are computed, and the mode may look at them. Everything else records
    operations or wants the shapes of their results alone, and no number may be read. A transform of `torch.func` that
    computes (all but ``functionalize``) is none of them.
    """
    if torch.compiler.is_compiling():
        return "torch.compile and torch.export"
    found = _active() if active() else ""
    if type(tensor) is Tensor and tensor.is_cpu:  # the common one, without a question more
        return found
    if (not found or found is MODE) and isinstance(tensor, Tensor):
        if isinstance(tensor, (FakeTensor, FunctionalTensor)):
            return f"a {type(tensor).__name__}"
        if tensor.is_meta:
            return "the meta device"
    return found


def recorder(tensor: object = None) -> str:
    """The same of what records the operation, or wants its shape alone, instead of computing numbers."""
    found = seen_by(tensor)
    return "" if found is MODE else found


def readable(value: object) -> bool:
    """Whether the numbers in a tensor may be read, or a size compared, without changing what is recorded."""
    return not recorder(value)


def is_transformed() -> bool:
    """Whether a transform of `torch.func` that computes stands around the call: ``functionalize`` only records."""
    return torch._C._are_functorch_transforms_active() and (
        torch.compiler.is_compiling() or not all(map(_functionalizes, _transforms()))
    )


def is_functionalized() -> bool:
    """Whether ``torch.func.functionalize`` stands around the call."""
    return torch._C._are_functorch_transforms_active() and (
        not torch.compiler.is_compiling() and any(map(_functionalizes, _transforms()))
    )


def _transforms() -> Sequence[Any]:
    return torch._C._functorch.get_interpreter_stack() or ()


def _functionalizes(transform: Any) -> bool:
    return bool(transform.key() == torch._C._functorch.TransformType.Functionalize)


def _active() -> str:
    if torch._C._is_tracing():
        return "torch.jit.trace"
    if torch._C._dispatch_tls_is_dispatch_key_included(_PRE_DISPATCH):
        return "make_fx"
    for key, name in _TRACERS:
        if torch._C._get_dispatch_mode(key) is not None:
            return name
    if is_functionalized():
        return "torch.func.functionalize"
    return MODE if torch._C._len_torch_dispatch_stack() else ""
