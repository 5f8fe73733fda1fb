"""The contract of backends: what a call contains, and what is returned.

A backend is a module with a ``NAME``, a one-line ``ABOUT`` and these functions:

- ``reasons_against(call) -> list[str]``: why it cannot serve the call; empty when it can;
- ``forward(call) -> Result``: compute it;
- ``memory(call) -> int``: bytes it takes beside inputs and outputs, roughly;
- ``status() -> str``: whether it is there on this machine, and with what.

Derivatives are taken by `limelight.operator.derivatives` from the definition, a chunk of queries at a time. What a
backend can do beyond this it declares by more functions, each set of which is a protocol below:

- `Differentiable`: ``reasons_against_backward`` and ``backward``, where it has a backward pass;
- `BorrowsBackward`: ``backward_by``, where the kernels of another backend compute some of its gradients;
- `ReadsPages`: ``reasons_against_pages``, where its kernels read keys and values in pages; else they are gathered;
- `ReadsEightBits`: ``reasons_against_eight_bits``, where its kernels read keys and values of 8 bits; else they are
  made dense;
- `Yields`: ``reasons_to_pass_over``, where the next backend is known to be faster at some calls that it can serve.

The families of backends (native, GPU, reference) do not import each other; `limelight.backends.choose` chooses one.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..forms.coordinates import WHOLE, Part
from ..forms.lowering import Lowered, lower
from ..forms.observations import Observations
from ..forms.pages import Pages
from ..forms.quantized import Quantized
from ..forms.scores import Additive, ScoreRule
from ..forms.settings import Settings, frozen
from ..tensors.shapes import Shapes, wrong


class BackendError(RuntimeError):
    """No backend can serve a call, or the named one cannot. The message gives every backend's reasons."""


def out_of_memory(what: str, error: object) -> torch.OutOfMemoryError:
    """The error raised when memory cannot be allocated, with its purpose and the cause."""
    return torch.OutOfMemoryError(f"out of memory for {what}: {error}")


@frozen
class Scales:
    """The scales of keys and values of 8 bits (`limelight.Quantized`), and whether these are rotated."""

    key: Tensor  # (B, Hkv, Lk, 1); with pages, (pages, Hkv, size, 1)
    value: Tensor
    rotated: bool


#: In the place of query, key and value in a call that has none, which keeps everything else of one.
NOTHING = torch.empty(0, dtype=torch.float32, device="cpu")


@frozen
class Call(Settings):
    """One checked call of the operator: tensors with their batch dimension, and settings with the defaults filled in.

    A call is a value: `replace` makes another one, nothing writes to it.

    Attributes:
        query: ``(B, Hq, Lq, D)``.
        key: ``(B, Hkv, Lk, D)``; with ``pages``, ``(pages, Hkv, size, D)``.
        value: ``(B, Hkv, Lk, Dv)``; with ``pages``, ``(pages, Hkv, size, Dv)``.
        shapes: the sizes of the call.
        scales: of keys and values of 8 bits; ``None`` where these have the dtype of the query. Only a backend that
            `ReadsEightBits` is given any.
        pages: where the keys lie in pages; ``None`` where they are rows. Only a backend that `ReadsPages` is given any.
        logsumexp: the backend must return the logsumexp, whatever is observed.
        part: tensors and score rules are those of this part of a larger call, which ``shapes``, ``layout`` and
            ``pattern`` describe. Only the reference is given parts.
        autograd_reason: why the call goes through `limelight.operator.derivatives`, in words: a derivative is wanted,
            or a transform of `torch.func` is active. Empty when it goes straight to its backend.
        only_watched: only a watcher requested the observations. They keep nothing for a backward pass, so that a call
            repeated by activation checkpointing, watched or not, keeps the same tensors.
    """

    scores: tuple[ScoreRule, ...] = ()
    compare: Additive | None = None
    scale: float = 1.0
    seed: int | Tensor = 0
    query: Tensor = NOTHING
    key: Tensor = NOTHING
    value: Tensor = NOTHING
    shapes: Shapes = Shapes(0, 0, 0, 0, 0, 0, 0)
    pages: Pages | None = None
    scales: Scales | None = None
    logsumexp: bool = False
    part: Part = WHOLE
    autograd_reason: str = ""
    only_watched: bool = False
    _lowered: Lowered | None = None
    _operands: tuple[Tensor, ...] | None = None

    def replace(self, **changes: Any) -> Call:
        """A copy with some fields changed."""
        made = object.__new__(Call)
        fields = self.__dict__.copy()
        fields.update(changes)
        if "layout" in changes or "pattern" in changes or "shapes" in changes:
            fields["_lowered"] = None
        if "sink" in changes or "scores" in changes or "compare" in changes:
            fields["_operands"] = None
        made.__dict__ = fields
        return made

    def lowered_like(self, other: Call) -> Call:
        """A copy that need not work out `lowered` where ``other``, of an equal layout and pattern, has done so."""
        return self if self._lowered is other._lowered else self.replace(_lowered=other._lowered)

    def gathered(self) -> Call:
        """A call of the same result whose keys and values are rows, copied from their pages if they lie in pages."""
        if self.pages is None:
            return self
        assert self.layout is not None
        key, value = self.pages.gather("key", self.key), self.pages.gather("value", self.value)
        scales = self.scales
        if scales is not None:
            of_key, of_value = self.pages.gather("key", scales.key), self.pages.gather("value", scales.value)
            scales = Scales(of_key, of_value, scales.rotated)
        return self.replace(key=key, value=value, layout=self.layout.in_rows, pages=None, scales=scales)

    def dense(self) -> Call:
        """A call of the same result whose keys and values have the dtype of the query, copied if they have 8 bits."""
        if self.scales is None:
            return self
        call, dtype = self.gathered(), self.query.dtype
        assert call.scales is not None
        key = Quantized.trusted(call.key, call.scales.key, call.scales.rotated).dense(dtype)
        value = Quantized.trusted(call.value, call.scales.value, call.scales.rotated).dense(dtype)
        return call.replace(key=key, value=value, scales=None)

    @property
    def lowered(self) -> Lowered:
        """Layout and pattern as kernels read them; worked out once."""
        found = self._lowered
        if found is None:
            _, Hq, _, Lq, Lk, _, _ = self.shapes
            try:
                found = lower(self.pattern, self.layout, self.shapes.B, Hq, Lq, Lk)
            except MemoryError as error:
                raise out_of_memory("the intervals and tiles of layout and pattern", error) from error
            self._lowered = found  # type: ignore[misc]  # worked out once, never changed
        return found

    @property
    def operands(self) -> tuple[Tensor, ...]:
        if self._operands is None:
            self._operands = super().operands  # type: ignore[misc]
        return self._operands


def unknown_positions(call: Call) -> list[str]:
    """Why a backend that reads positions as "index + offset" cannot serve a call.

    Of a layout without offsets it has the keys that each query sees, enough for most calls, but no positions.
    """
    if call.layout is None or call.layout.has_offsets:
        return []
    users = ["dropout"] if call.dropout else []
    users += ["the observed distance"] if call.observe is not None and call.observe.distance else []
    users += [repr(rule) for rule in call.scores if rule.needs_positions]
    if not users:
        return []
    return [f"{call.layout!r} gives no offsets, and positions are needed for {', '.join(users)}"]


@dataclass(slots=True, eq=False, repr=False)
class Result:
    """The results of a backend's forward pass."""

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
        """Return the output of a call, its logsumexp where asked, and its observations."""

    def memory(self, call: Call) -> int:
        """Bytes taken beside inputs and outputs."""

    def status(self) -> str:
        """Whether the backend is there on this machine."""


def check_local(name: str, tensor: Tensor) -> None:
    """Raise where a tensor is a `torch.distributed.tensor.DTensor`: attention does not communicate between ranks.

    Raises:
        ArgumentError: it is one.
    """
    module = sys.modules.get("torch.distributed.tensor")  # where it was not imported, there is no instance
    if module is not None and isinstance(tensor, module.DTensor):
        raise wrong(
            name,
            "must be a local tensor",
            f"it is a DTensor with the placements {tensor.placements}",
            "Pass .to_local() where heads or batch rows are sharded, which need nothing from other ranks; else "
            ".full_tensor().",
        )


@runtime_checkable
class ReadsPages(Protocol):
    """A backend whose kernels read keys and values in pages."""

    def reasons_against_pages(self, call: Call) -> list[str]:
        """Why keys and values must be gathered for a call that it serves otherwise."""


@runtime_checkable
class ReadsEightBits(Protocol):
    """A backend whose kernels read keys and values of 8 bits."""

    def reasons_against_eight_bits(self, call: Call) -> list[str]:
        """Why keys and values must be made dense for a call that it serves otherwise."""


@runtime_checkable
class MayFail(Protocol):
    """A backend that a setting of the machine can make fail, which it does not say in `reasons_against`: a call is then
    refused with the error, and not computed by another backend.
    """

    def why_failing(self) -> str:
        """Why every call that the backend is given fails; empty when none does."""


@runtime_checkable
class Yields(Protocol):
    """A backend that leaves some of the calls it could serve to the next one."""

    def reasons_to_pass_over(self, call: Call) -> list[str]:
        """Why the next backend is faster at a call; empty when it is not known to be."""


@runtime_checkable
class BorrowsBackward(Protocol):
    """A backend some of whose gradients are computed by the kernels of another."""

    def backward_by(self, call: Call) -> str:
        """The name of the backend whose kernels compute the gradients of a call, and why."""


@runtime_checkable
class Differentiable(Protocol):
    """A backend with a backward pass."""

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
        """Gradients of the query, the key, the value, and each of `Settings.operands`, in this order.

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


_PAGES: dict[Backend, ReadsPages | None] = {}  # a check of a protocol takes microseconds


def reasons_against_pages(backend: Backend, call: Call) -> list[str]:
    """Why keys and values that lie in pages must be gathered for a backend; empty where it reads them in place."""
    if backend not in _PAGES:
        _PAGES[backend] = backend if isinstance(backend, ReadsPages) else None
    reads = _PAGES[backend]
    return [f"{backend.NAME} reads no pages"] if reads is None else reads.reasons_against_pages(call)


_EIGHT_BITS: dict[Backend, ReadsEightBits | None] = {}


def reasons_against_eight_bits(backend: Backend, call: Call) -> list[str]:
    """Why keys and values of 8 bits must be made dense for a backend; empty where it reads them."""
    if backend not in _EIGHT_BITS:
        _EIGHT_BITS[backend] = backend if isinstance(backend, ReadsEightBits) else None
    reads = _EIGHT_BITS[backend]
    return [f"{backend.NAME} reads no keys of 8 bits"] if reads is None else reads.reasons_against_eight_bits(call)


_BACKWARD: dict[Backend, Differentiable | None] = {}


def differentiable(backend: Backend) -> Differentiable | None:
    """The backend itself where it has a backward pass, else ``None``."""
    if backend not in _BACKWARD:
        _BACKWARD[backend] = backend if isinstance(backend, Differentiable) else None
    return _BACKWARD[backend]
