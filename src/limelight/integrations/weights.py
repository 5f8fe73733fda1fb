"""All attention weights, for callers that request them: ``output_attentions=True``, ``need_weights=True``.

They are the rows of an observation, exact, and take the memory that was asked for, ``B * Hq * Lq * Lk`` numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..backends.reference import accumulator, mix
from ..forms.coordinates import Where
from ..forms.layouts import Aligned, Layout
from ..forms.observations import Observations, Observe
from ..forms.philox import kept
from ..operator.attention import attention
from .account import Account


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    calls: Account | None,
    layout: Layout | None = None,
    dropout: float = 0.0,
    sinks: Tensor | None = None,
    unseen: float = 0.0,
    **settings: Any,
) -> tuple[Tensor, Tensor]:
    """Output and weights of `limelight.attention`, these as PyTorch returns them: ``(B, Hq, Lq, Lk)``, after dropout.

    Output and weights have the dtype of the output. Where a gradient is wanted, the output is computed from the
    weights, so that ``weights.grad`` is that of the loss; a weight of 0 has none.

    Args:
        query: ``(B, Hq, Lq, D)``.
        key: ``(B, Hkv, Lk, D)``.
        value: ``(B, Hkv, Lk, Dv)``.
        calls: the account in which the bytes of the weights are counted.
        layout: the positions of tokens and which exist.
        dropout: probability with which a weight is dropped.
        sinks: ``(B, Hq, Lq, 1)`` logits of sinks, one for each query.
        unseen: what a query that sees none of its keys gets, as weights and output: 0, or NaN.
        settings: the other arguments of `limelight.attention`.
    """
    seed = torch.randint(2**63 - 1, (), dtype=torch.int64, device="cpu") if dropout else None
    output, seen = attention(
        query, key, value, layout=layout, dropout=dropout, seed=seed,
        observe=Observe(rows=torch.arange(query.shape[2], device="cpu"), logsumexp=True), **settings,
    )  # fmt: skip
    assert seen.rows is not None
    assert seen.logsumexp is not None
    rows = seen.rows
    if sinks is not None:
        share = share_of_keys(seen, sinks)
        rows, output = rows * share, (output * share).to(output.dtype)
    if seed is not None:
        rows = torch.where(_kept(query, key, layout, dropout, seed), rows / (1.0 - dropout), 0.0)
    if unseen and key.shape[2]:
        nothing = (seen.logsumexp == -torch.inf)[..., None]
        rows, output = torch.where(nothing, unseen, rows), torch.where(nothing, unseen, output)
    weights = rows.to(output.dtype)
    if calls is not None:
        calls.weights += weights.nbytes
    if torch.is_grad_enabled() and (weights.requires_grad or value.requires_grad):
        output = mixed(weights, value)
    return output, weights


def share_of_keys(seen: Observations, sinks: Tensor) -> Tensor:
    """The weight that the keys keep where every query has a sink, ``exp(L) / (exp(L) + exp(sink))``."""
    assert seen.logsumexp is not None
    return torch.sigmoid(seen.logsumexp[..., None] - sinks.to(seen.logsumexp.dtype))


def mixed(weights: Tensor, value: Tensor) -> Tensor:
    """``weights @ value`` for each query head; what has the weight 0 does not exist."""
    exact = accumulator(weights.dtype)
    values = value.to(exact).repeat_interleave(weights.shape[1] // value.shape[1], dim=1)
    return mix(weights.to(exact), values, weights.detach() != 0).to(weights.dtype)


def _kept(query: Tensor, key: Tensor, layout: Layout | None, dropout: float, seed: Tensor) -> Tensor:
    """Which weights a call with this seed keeps, ``(B, Hq, Lq, Lk)``."""
    B, Hq, Lq, _ = query.shape
    layout = layout or Aligned()
    coordinates = layout.coordinates(B, Lq, key.shape[2], query.device)
    at = Where.of(coordinates, B, Hq)
    row = at.batch * layout.documents + coordinates.query_document[:, None, :, None]
    return kept(dropout, seed.to(query.device), row, at.head, at.query_position, at.key_position)
