"""The matrix product of a layer, with a way of its own for few tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module

from .. import fused
from ..tensors.torch_internals import is_any_autocast_enabled
from .checks import of_width, unreadable

_PIECE = 4 << 20  # bytes between two matrices that are held at once, and stay in the nearer caches
_LEAST_TOKENS = 512  # with fewer, reading the matrices again takes longer than the memory does


class Projection(nn.Linear):
    """``states @ weight.T + bias``: `torch.nn.Linear`, and quicker for few tokens (`limelight.fused.product`).

    While a text is written every matrix meets one vector, and the time is that of reading the matrix.
    """

    def forward(self, states: Tensor) -> Tensor:
        """``(..., in_features)`` to ``(..., out_features)``."""
        if not of_width(states, self.in_features, self.weight):
            raise unreadable(states, self.in_features, self.weight)
        return fused.product(states, self.weight, self.bias)


def together(states: Tensor, *layers: nn.Module) -> list[Tensor]:
    """What each of the ``layers`` makes of the same states; of few tokens in one call, where each is a `Projection`.

    A layer that somebody replaced, hooked or wrapped is called by itself.
    """
    if not torch.compiler.is_compiling() and all(map(is_plain, layers)):
        first: Any = layers[0]
        if not of_width(states, first.in_features, first.weight):
            raise unreadable(states, first.in_features, first.weight)
        found = fused.products(states, matrices(*layers))
        if found is not None:
            return found
    return [layer(states) for layer in layers]


def widened(layer: nn.Module, states: Tensor) -> Tensor:
    """``layer(states)``; float16 states become float32 where the layer keeps its matrix so (T5's last one)."""
    wide = states.dtype is torch.float16 and getattr(layer, "weight", states).dtype is torch.float32
    if wide and not is_any_autocast_enabled():
        states = states.float()
    return layer(states)  # type: ignore[no-any-return]


def in_pieces(step: Callable[[Tensor], Tensor], states: Tensor, inner: int, inside: Sequence[nn.Module]) -> Tensor:
    """``step(states)``, piece by piece where a text is long and nobody looks at what lies between.

    Between the matrices of a feed-forward a token has ``inner`` numbers, several times those of its state. Those of a
    long text are memory that the system hands out page by page, cleared, each time anew.

    Args:
        step: works on each token by itself, ``(N, width)`` to the same.
        states: ``(..., width)``.
        inner: numbers per token between the matrices.
        inside: the layers of which the step consists.
    """
    if not isinstance(states, Tensor) or states.is_nested or not states.dim():
        first: Any = inside[0]
        raise unreadable(states, first.in_features, first.weight)
    width = states.shape[-1]
    tokens = states.numel() // max(width, 1)
    piece = _PIECE // (inner * states.element_size())
    if not _LEAST_TOKENS <= piece < tokens or not all(map(is_plain, inside)):
        return step(states)
    if not fused.can_fuse(states, *[parameter for layer in inside for parameter in layer.parameters()]):
        return step(states)
    result = torch.empty_like(states, memory_format=torch.contiguous_format)
    pairs = (x.reshape(-1, width).split(piece) for x in (states, result))  # type: ignore[no-untyped-call]
    for some, theirs in zip(*pairs, strict=True):
        theirs.copy_(step(some))
    return result


def matrices(*layers: nn.Module) -> list[tuple[Tensor, Tensor | None]]:
    """What `limelight.fused.products` takes of projections."""
    return [(layer.weight, layer.bias) for layer in layers]  # type: ignore[misc]


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer is a `Projection`, and nobody looks on."""
    return type(layer) is Projection and is_unwatched(layer)


def notable(states: Tensor, *layers: nn.Module) -> list[tuple[Tensor, Tensor | None]] | None:
    """The `matrices` of ``layers`` whose products with ``states`` can be noted (`limelight.fused.Capture.products`)."""
    if not all(map(is_plain, layers)):
        return None
    pairs = matrices(*layers)
    if any(weight.stride(1) != 1 for weight, _ in pairs):
        return None
    return (
        pairs if fused.can_fuse(states, *[tensor for pair in pairs for tensor in pair if tensor is not None]) else None
    )


def is_unwatched(layer: nn.Module) -> bool:
    """Whether nobody hooked a layer or put another function in its place."""
    return not (layer._forward_hooks or layer._forward_pre_hooks or "forward" in layer.__dict__) and not (
        module._global_forward_hooks or module._global_forward_pre_hooks
    )
