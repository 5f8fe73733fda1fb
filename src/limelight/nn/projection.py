"""Matrix products of layers, faster for few tokens than PyTorch's."""

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
    """``states @ weight.T + bias``: `torch.nn.Linear`, faster for few tokens (`limelight.fused.product`).

    While a text is generated every matrix is multiplied with one vector, and the time is that of reading the matrix.
    """

    capturable = ()

    def forward(self, states: Tensor) -> Tensor:
        """``(..., in_features)`` to ``(..., out_features)``.

        Raises:
            ArgumentError: states of another width, dtype or device.
        """
        if not of_width(states, self.in_features, self.weight):
            raise unreadable(states, self.in_features, self.weight)
        return fused.product(states, self.weight, self.bias)


def together(states: Tensor, *layers: nn.Module) -> list[Tensor]:
    """The result of each layer for the same states; for few tokens in one call, where each is a `Projection`.

    A layer that was replaced, hooked or wrapped is called by itself.
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
    """``step(states)``, piece by piece where a text is long and no hook or gradient observes what lies between.

    Between the matrices of a feed-forward a token has ``inner`` features, several times those of its state. For a
    long text the system would map and clear that memory page by page in each call.

    Args:
        step: a function of each token by itself, ``(N, width)`` to ``(N, width)``.
        states: ``(..., width)``.
        inner: features per token between the matrices.
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
    """Weight and bias of each projection, the ``matrices`` of `limelight.fused.products`."""
    return [(layer.weight, layer.bias) for layer in layers]  # type: ignore[misc]


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer is a `Projection` without hooks."""
    return type(layer) is Projection and has_no_hooks(layer)


def has_no_hooks(layer: nn.Module) -> bool:
    """Whether a layer has no hooks and its own ``forward``."""
    return not (layer._forward_hooks or layer._forward_pre_hooks or "forward" in layer.__dict__) and not (
        module._global_forward_hooks or module._global_forward_pre_hooks
    )
