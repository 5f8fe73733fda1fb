"""What a backend is given and what it gives back.

A backend is a module with a ``NAME``, a one-line ``ABOUT`` and these functions:

- ``reasons_against(call) -> list[str]``: why it cannot serve the call; empty when it can;
- ``forward(call) -> Result``: compute it;
- ``memory(call) -> int``: bytes it takes beside inputs and outputs, roughly;
- ``status() -> str``: whether it is there on this machine, and with what.

Backends never import each other. Whoever chooses one is `limelight.backends.choose`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..layouts import Layout
from ..lowering import Lowered, lower
from ..observations import Observations, Observe
from ..patterns import Pattern
from ..scores import Additive, ScoreRule
from ..shapes import Shapes


class BackendError(RuntimeError):
    """No backend can serve a call, or the named one cannot. The message gives every backend's reasons."""


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
    # Derivatives are wanted, or a transform of torch.func or a tensor subclass looks on: only plain tensor
    # operations, which PyTorch knows how to differentiate, may be used.
    traced: str = ""
    # Only a watcher wants the observations: they keep nothing for a backward pass, so that a call repeated by
    # activation checkpointing, watched or not, keeps the same tensors.
    only_watched: bool = False

    _lowered: Lowered | None = None

    @property
    def lowered(self) -> Lowered:
        """Layout and pattern as kernels read them; worked out once."""
        if self._lowered is None:
            _, Hq, _, Lq, Lk, _, _ = self.shapes
            self._lowered = lower(self.pattern, self.layout, self.shapes.B, Hq, Lq, Lk)
        return self._lowered


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
