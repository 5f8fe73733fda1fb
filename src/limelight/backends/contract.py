"""What a backend is given and what it gives back.

A backend is a module with a ``NAME``, a one-line ``ABOUT`` and these functions:

- ``reasons_against(call) -> list[str]``: why it cannot serve the call; empty when it can;
- ``forward(call) -> Result``: compute it;
- ``memory(call) -> int``: bytes it takes beside inputs and outputs, roughly;
- ``status() -> str``: whether it is there on this machine, and with what.

Derivatives of a backend are taken by `limelight.operator.derivatives`, from the definition, a run of queries at a
time. One that has a faster way offers two more functions (`Differentiable`):

- ``reasons_against_backward(call) -> list[str]``: why it cannot take the gradients of this call;
- ``backward(call, output, logsumexp, grad_output, grad_logsumexp, wanted) -> gradients``;

and where some of its gradients come from the kernels of another, ``backward_by(call) -> str``: whose, and why.

Backends never import each other. Whoever chooses one is `limelight.backends.choose`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..forms.coordinates import WHOLE, Part
from ..forms.layouts import Layout
from ..forms.lowering import Lowered, lower
from ..forms.observations import Observations, Observe
from ..forms.patterns import Pattern
from ..forms.scores import Additive, ScoreRule
from ..tensors.shapes import Shapes


class BackendError(RuntimeError):
    """No backend can serve a call, or the named one cannot. The message gives every backend's reasons."""


def out_of_memory(what: str, error: object) -> torch.OutOfMemoryError:
    """The one error of memory that the system does not give: what it was for, and what was said."""
    return torch.OutOfMemoryError(f"out of memory for {what}: {error}")


@dataclass(eq=False)
class Call:
    """One checked call of the operator. Tensors have their batch dimension; defaults are filled in."""

    query: Tensor
    key: Tensor
    value: Tensor
    shapes: Shapes
    scale: float
    layout: Layout | None = None
    pattern: Pattern | None = None
    compare: Additive | None = None
    scores: tuple[ScoreRule, ...] = ()
    sink: Tensor | None = None
    dropout: float = 0.0
    seed: int | Tensor = 0
    observe: Observe | None = None
    # The backend shall return the logsumexp, whatever is observed.
    logsumexp: bool = False
    # Tensors and score rules are those of this part of a larger call, which `shapes`, `layout` and `pattern` describe.
    # Only the reference is asked for parts.
    part: Part = WHOLE
    # Derivatives are wanted, or a transform of torch.func looks on: why the call goes through
    # `limelight.operator.derivatives`, in words; empty when it goes straight to its backend.
    traced: str = ""
    # Only a watcher wants the observations: they keep nothing for a backward pass, so that a call repeated by
    # activation checkpointing, watched or not, keeps the same tensors.
    only_watched: bool = False

    _lowered: Lowered | None = None
    _operands: tuple[Tensor, ...] | None = None

    def of(self, query: Tensor, key: Tensor, value: Tensor) -> Call:
        """The same call of other tensors of the same shapes, what was worked out included."""
        new = object.__new__(Call)  # a tenth of the time of `copy.copy`
        new.__dict__ = {**self.__dict__, "query": query, "key": key, "value": value}
        return new

    @property
    def lowered(self) -> Lowered:
        """Layout and pattern as kernels read them; worked out once."""
        if self._lowered is None:
            _, Hq, _, Lq, Lk, _, _ = self.shapes
            try:
                self._lowered = lower(self.pattern, self.layout, self.shapes.B, Hq, Lq, Lk)
            except MemoryError as error:
                raise out_of_memory("the intervals and tiles of layout and pattern", error) from error
        return self._lowered


def unknown_positions(call: Call) -> list[str]:
    """Why a backend that reads positions as "index + offset" cannot serve a call.

    Of a layout without offsets it has the keys that each query sees, enough for most calls, but no positions.
    """
    if call.layout is None or call.layout.has_offsets:
        return []
    asks = ["dropout"] if call.dropout else []
    asks += ["the observed distance"] if call.observe is not None and call.observe.distance else []
    asks += [repr(rule) for rule in call.scores if rule.needs_positions]
    if not asks:
        return []
    return [f"it does not know where the queries of {call.layout!r} stand, for which {', '.join(asks)} asks"]


@dataclass(slots=True)
class Result:
    """What a backend gives back."""

    output: Tensor  # (B, Hq, Lq, Dv), the dtype of the query
    logsumexp: Tensor | None = None  # (B, Hq, Lq)
    observations: Observations | None = None


class Backend(Protocol):
    """The shape of a backend module."""

    NAME: str
    ABOUT: str

    def reasons_against(self, call: Call) -> list[str]:
        """Why the backend cannot serve the call."""

    def forward(self, call: Call) -> Result:
        """Compute the call."""

    def memory(self, call: Call) -> int:
        """Bytes taken beside inputs and outputs."""

    def status(self) -> str:
        """Whether the backend is there on this machine."""


class Differentiable(Protocol):
    """A backend that takes gradients itself."""

    def reasons_against_backward(self, call: Call) -> list[str]:
        """Why `backward` cannot serve a call that `forward` serves."""

    def backward(
        self,
        call: Call,
        output: Tensor,
        logsumexp: Tensor,
        grad_output: Tensor,
        grad_logsumexp: Tensor | None,
        wanted: tuple[bool, ...],
    ) -> tuple[Tensor | None, ...]:
        """Gradients of the query, the key, the value, and each of `operands`, in this order.

        Args:
            call: the call of the forward pass, its tensors detached.
            output: what `forward` gave, ``(B, Hq, Lq, Dv)``.
            logsumexp: what `forward` gave, ``(B, Hq, Lq)``.
            grad_output: gradient of the output, any strides.
            grad_logsumexp: gradient of the logsumexp, any strides; ``None`` for zeros.
            wanted: which gradients are wanted.

        Returns:
            Each in the shape and dtype of its tensor; ``None`` where it is not wanted.
        """


def operands(call: Call) -> tuple[Tensor, ...]:
    """The float tensors beside query, key and value: the sink, those of the score rules, those of `compare`."""
    if call.sink is None and call.compare is None and not call.scores:
        return ()
    found = call._operands
    if found is None:
        found = () if call.sink is None else (call.sink,)
        for description in (*call.scores, call.compare):
            if description is not None:
                found += description.tensors()
        call._operands = found
    return found
