"""The plain computation that a kernel must be as exact as: the definition with float32 sums, whose weights and whose
gradients of scores are rounded to the dtype of the inputs before they enter a product, forward and backward.

In the definition both enter products as the first operand of `reference.mix`: weights with the values, the gradient of
the scores with the keys and (transposed) with the queries, weights (transposed) with the gradient of the output.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor

from limelight.backends import reference
from limelight.operator import derivatives


class _Rounded(torch.autograd.Function):
    """A number rounded as it is read: its gradient is that of what it was rounded to."""

    @staticmethod
    def forward(ctx, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        return tensor.to(dtype).to(tensor.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


@contextmanager
def rounded(dtype: torch.dtype) -> Iterator[None]:
    """Inside, the reference is the plain computation in ``dtype``, held whole, and differentiated by PyTorch."""
    mix = reference.mix
    with (
        mock.patch.object(reference, "mix", lambda w, b, keep: mix(_Rounded.apply(w, dtype), b, keep)),
        mock.patch.object(derivatives, "MAX_WHOLE_BYTES", 2**40),
    ):
        yield
