"""The exact union of attention over several sets of keys."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..tensors.shapes import check_tensor, sequence, wrong


def merge(outputs: Sequence[Tensor], logsumexps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The exact union of attention over disjoint sets of keys.

    With ``L = log sum_n exp(L_n)``: ``out = sum_n exp(L_n - L) out_n``. Differentiable in everything. A sink may be
    part of one of the calls only.

    Args:
        outputs: ``(..., Lq, Dv)`` each.
        logsumexps: ``(..., Lq)`` each, from ``observe=Observe(logsumexp=True)``.

    Returns:
        ``(output, logsumexp)`` of the whole; a query that saw nothing anywhere has zeros and ``-inf``.
    """
    what = "a sequence of tensors, one for each set of keys"
    outputs = [check_tensor("outputs", x) for x in sequence("outputs", outputs, what, "merge([a, b], [la, lb])")]
    logsumexps = [
        check_tensor("logsumexps", x) for x in sequence("logsumexps", logsumexps, what, "merge([a, b], [la, lb])")
    ]
    if len(outputs) == 0 or len(outputs) != len(logsumexps):
        got = f"there are {len(outputs)} outputs and {len(logsumexps)} logsumexps"
        raise wrong("logsumexps", "must be as many as `outputs`, at least one", got, "Ask for Observe(logsumexp=True).")
    for output, part in zip(outputs, logsumexps, strict=True):
        if output.shape[:-1] != part.shape or output.shape != outputs[0].shape:
            got = f"an output of shape {tuple(output.shape)} has one of {tuple(part.shape)}"
            raise wrong(
                "logsumexps", "must have the shape of their output without its width", got, "Do not reduce them."
            )
    parts = torch.stack(list(logsumexps))  # (N, ..., Lq)
    most = parts.detach().amax(0)
    most = torch.where(most == -torch.inf, 0.0, most)
    shares = torch.where(parts == -torch.inf, 0.0, torch.exp(parts - most))
    total = shares.sum(0)
    empty = total == 0
    total = torch.where(empty, 1.0, total)
    logsumexp = torch.where(empty, -torch.inf, most + torch.log(total))
    shares = (shares / total)[..., None]
    stacked = torch.stack(list(outputs)).to(shares.dtype)
    # A part that saw nothing is selected away: its share is no factor.
    output = torch.where(shares == 0, 0.0, shares * torch.where(shares == 0, 0.0, stacked)).sum(0)
    return output.to(outputs[0].dtype), logsumexp
