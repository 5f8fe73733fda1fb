"""How exact a backend must be: 1.5 times the error of the plain computation in the same precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor

import limelight
from limelight import Observe
from limelight.backends import reference
from support.strategies import Example


@contextmanager
def rounded(dtype: torch.dtype) -> Iterator[None]:
    """Inside, the reference rounds its weights to ``dtype`` before they meet the values, as kernels do."""
    mix = reference.mix
    with mock.patch.object(reference, "mix", lambda w, b, keep: mix(w.to(dtype).to(w.dtype), b, keep)):
        yield


@contextmanager
def rounded_gradients(dtype: torch.dtype) -> Iterator[None]:
    """Inside, the reference also rounds the gradients of its scores before they meet queries and keys."""
    backward = reference._ScoresForward.backward

    def rounding(ctx, grad):
        return backward(ctx, grad.to(dtype).to(grad.dtype))

    with rounded(dtype), mock.patch.object(reference._ScoresForward, "backward", staticmethod(rounding)):
        yield


def check_close(
    ours: Tensor, plain: Tensor, truth: Tensor, what: str, slack: float = 1.0, size: float = 0.0, dtype=torch.float32
) -> None:
    """At most 1.5 times the error of the plain computation, plus ``slack`` rounding steps of ``float32`` and one of
    ``dtype`` of the largest number, or of ``size`` where that is larger. What is not finite is so in both.
    """
    assert ours.shape == truth.shape, what
    truth = truth.double()
    same = torch.isfinite(truth)
    assert torch.equal(ours.double()[~same].nan_to_num(7), truth[~same].nan_to_num(7)), f"{what}: not finite elsewhere"
    if not same.any():
        return
    eps = slack * torch.finfo(torch.float32).eps + (torch.finfo(dtype).eps if dtype != torch.float32 else 0.0)
    truth, step = truth[same], eps * max(size, truth[same].abs().max().item())
    ours, plain = ours.double()[same] - truth, plain.double()[same] - truth
    for name, norm in (("maximum", lambda x: x.abs().max()), ("RMS", lambda x: x.square().mean().sqrt())):
        assert norm(ours) <= 1.5 * norm(plain) + step, f"{what}: {name} {norm(ours):.2e}, plain {norm(plain):.2e}"


def check_logsumexp(example: Example, ours: Tensor, plain: Tensor, truth: Tensor, slack: float) -> None:
    """A logsumexp may be near 0 by cancellation; its error is that of the scores, which is absolute. Large ones are
    judged by themselves: they are off by a rounding step of theirs.
    """
    large = truth.isfinite() & (truth.abs() > 1e9)
    step = 2 * torch.finfo(truth.dtype).eps * truth[large].abs()
    assert ((ours[large].double() - truth[large].double()).abs() <= step).all(), "a large logsumexp"
    ordinary = lambda x: torch.where(large, 0.0, x)  # noqa: E731
    check_close(*map(ordinary, (ours, plain, truth)), "logsumexp", slack, 1.0, ours.dtype)


def steps(example: Example) -> float:
    """Rounding steps that a right answer may be off in a call with few numbers: one, and as many as the largest score.

    The rounding of a score is that of its terms, ``sum_d |q_d k_d|``, and moves the weight by as large a share. Of
    thousands of numbers the plain computation meets such a case too, and one step is enough.
    """
    group = example.sizes.Hq // example.sizes.Hkv
    terms = example.query.double().abs() @ example.key.double().abs().repeat_interleave(group, 1).mT
    scale = example.settings["scale"] or example.sizes.D**-0.5
    ordinary = lambda x: torch.where(x.isfinite() & (x < 1e9), x, 0.0)  # noqa: E731  (larger ones: `strategies.EXTREME`)
    if example.settings.get("compare") is not None:
        terms, scale = example.settings["compare"].vector.double().abs().sum(-1).max(), 1.0  # |tanh| is at most 1
    tensors = (x.double() for x in (example.query, example.key, example.value))
    _, seen = limelight.attention(
        *tensors, **(example.settings | {"backend": "reference", "observe": Observe(max_score=True)})
    )
    sizes = (ordinary(terms * scale), ordinary(seen.max_score.abs()))
    return 1.0 + max(x.max().item() if x.numel() else 0.0 for x in sizes)
