"""Calls of every form, run by a backend or by the plain computation, and the measure of their errors."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import limelight
from limelight import (
    Additive,
    ALiBi,
    Bias,
    Causal,
    Explicit,
    KeyMask,
    Keys,
    Observe,
    Packed,
    Padded,
    RelativeBias,
    SoftCap,
    Window,
)
from limelight.backends import reference
from limelight.forms.settings import Settings
from limelight.operator.calling import prepare


def forms(device: torch.device, B: int, Hq: int, Lq: int, Lk: int, D: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every form of the operator, for some sizes; learned operands are float32 and have gradients."""
    normal = functools.partial(torch.randn, device=device, requires_grad=True)
    flags = lambda *shape: torch.rand(*shape, device=device) < 0.4  # noqa: E731
    half_q, half_k = Lq // 2, Lk // 2
    yield "full", {}
    yield "causal", {"pattern": Causal()}
    yield "window", {"pattern": Causal() & Window(Lk // 3, 0)}
    yield "window and first keys", {"pattern": Causal() & (Window(Lk // 5, 0) | Keys(first=3))}
    yield "bits", {"pattern": Explicit(flags(B, Hq, Lq, Lk)) & Causal()}
    yield "holes", {"layout": KeyMask(flags(B, Lk))}
    yield "packed", {"layout": Packed((half_q, Lq - half_q), (Lk - half_k, half_k)), "pattern": Causal()}
    yield "padded", {"layout": Padded(torch.randint(0, Lq + 1, (B,)), torch.randint(0, Lk + 1, (B,)))}
    yield "dropout", {"pattern": Causal(), "dropout": 0.2, "seed": 7}
    yield "sink", {"pattern": Causal(), "sink": normal(Hq)}
    # As ALiBi's own, at most a half. Where slopes favour far keys by hundreds, the rounding of the output that `delta`
    # is made of shows in their gradients in 16 bits, times the distance.
    slopes = (torch.rand(Hq, device=device) / 2).requires_grad_()
    yield "slopes", {"pattern": Causal(), "scores": (ALiBi(slopes),)}
    yield "soft cap", {"pattern": Causal(), "scores": (SoftCap(5.0),)}
    yield "bias", {"scores": (Bias(normal(Hq, Lq, Lk)),)}
    yield "bias of keys", {"scores": (Bias(normal(Lk)), SoftCap(5.0))}
    yield "table", {"scores": (RelativeBias(normal(Hq, 32)),)}
    if D <= 32 and Lq * Lk <= 2**16:
        yield "additive", {"compare": Additive(normal(Hq, D))}


SIZES = (  # B, Hq, Hkv, Lq, Lk, D, Dv
    (1, 1, 1, 1, 1, 16, 16),
    (2, 4, 2, 113, 203, 64, 64),
    (1, 8, 1, 3, 799, 128, 128),
    (2, 6, 2, 257, 129, 80, 48),
    (1, 4, 2, 700, 900, 128, 128),
    (1, 2, 1, 300, 500, 192, 96),
    (1, 4, 4, 1023, 1024, 32, 32),
    (1, 2, 2, 300, 300, 256, 256),
    (1, 2, 1, 70, 90, 512, 100),
)


TINY = ((1, 2, 1, 5, 19, 8, 12),)


def run(backend: str, tensors: list[Tensor], grad: Tensor, settings: dict[str, Any]) -> list[Any]:
    """Return output, logsumexp (except of `flash1`), and gradients of query, key, value and learned operands."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    learned = prepare(*tensors, Settings(**settings)).operands
    for tensor in learned:
        tensor.grad = None
    with rounded(tensors[0].dtype) if backend == "plain" else nullcontext():
        name = "reference" if backend == "plain" else backend
        if backend == "flash1":  # plain forms only, so no observation
            output, logsumexp = limelight.attention(*leaves, backend=name, **settings), None
        else:
            output, seen = limelight.attention(*leaves, backend=name, observe=Observe(logsumexp=True), **settings)
            logsumexp = seen.logsumexp.detach()
        output.backward(grad)
    return [output.detach(), logsumexp, *[leaf.grad for leaf in (*leaves, *learned)]]


def rounded(dtype: torch.dtype) -> Any:
    """Make the reference round weights and gradients of scores to ``dtype`` before their products, as kernels do."""
    return rounded_to(lambda x: x.to(dtype).to(x.dtype))


def rounded_to(rounding: Callable[[Tensor], Tensor]) -> Any:
    """Make the reference round weights and gradients of scores by a function before their products."""
    mix, backward = reference.mix, reference._ScoresForward.backward
    stack = ExitStack()
    stack.enter_context(mock.patch.object(reference, "mix", lambda w, b, keep: mix(rounding(w), b, keep)))
    scores = staticmethod(lambda ctx, grad: backward(ctx, rounding(grad)))
    stack.enter_context(mock.patch.object(reference._ScoresForward, "backward", scores))
    return stack


def to_float8(weights: Tensor) -> Tensor:
    """Round weights to float8 (e4m3), scaled so that the largest of each row is 448, the maximum."""
    scale = weights.amax(-1, keepdim=True).clamp(min=1e-30) / 448
    return (weights / scale).to(torch.float8_e4m3fn).to(weights.dtype) * scale


def excess(ours: Tensor, plain: Tensor, truth: Tensor, dtype: torch.dtype) -> float:
    """Return the error over the allowed one: 1.5 times the plain computation's, plus a rounding step of the maximum."""
    finite = truth.isfinite()
    if not torch.equal(ours.isfinite(), finite):
        return float("inf")
    if not finite.any():
        return 0.0
    truth, ours, plain = truth[finite], ours[finite].double(), plain[finite].double()
    step = (torch.finfo(dtype).eps + 16 * torch.finfo(torch.float32).eps) * max(1.0, truth.abs().max().item())
    allowed = [1.5 * norm(plain - truth) + step for norm in NORMS]
    return max((norm(ours - truth) / limit).item() for norm, limit in zip(NORMS, allowed, strict=True))


NORMS: tuple[Callable[[Tensor], Tensor], ...] = (lambda x: x.abs().max(), lambda x: x.square().mean().sqrt())


def poison(device: torch.device) -> None:
    """Fill the memory that the allocator returns next with NaN."""
    if device.type == "cuda":
        for size in (2**12, 2**16, 2**20, 2**24):
            for _ in range(8):
                torch.full((size,), float("nan"), device=device)
