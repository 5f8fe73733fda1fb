"""Cross-entropy over a large vocabulary, a chunk of tokens at a time, so that the logits are never held whole.

With logits ``z = cap(scale * x @ E.T + b)`` of one token, its target ``t`` and ``V`` tokens in the vocabulary::

    loss = logsumexp(z) - (1 - smoothing) z_t - smoothing / V * sum_v z_v
    d loss / d z_v = softmax(z)_v - (1 - smoothing) [v = t] - smoothing / V

so the gradient of a chunk of tokens follows from its logits at once, and these can be dropped. Saved for the backward
pass are the gradient of the states, ``(N, width)``, and that of the table, ``(V, width)``: memory is linear, and no
product is computed twice. (Hsu et al. 2024, Liger Kernel, arXiv:2410.10989, section 3.2; Wijmans et al. 2024,
arXiv:2411.09009, recompute the logits instead. Label smoothing: Szegedy et al. 2015, arXiv:1512.00567.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import fused
from ..tensors.distributed import local_part
from ..tensors.shapes import describe, wrong
from .vocabulary import Rows, rows_of

IGNORED = -100  # the ignore_index of torch.nn.functional.cross_entropy
CHUNK_BYTES = 3 * 2**25  # of logits in memory at a time
ROWS = 4096  # rows of the table whose gradient is added at a time


def vocabulary_loss(
    states: Tensor,
    table: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float = 1.0,
    cap: float | None = None,
    label_smoothing: float = 0.0,
    chunk: int | None = None,
) -> Tensor:
    """Return the cross-entropy of ``scale * states @ table.T + bias`` with ``targets``, summed over tokens, in nats.

    Under autocast the products are computed in its dtype; the softmax is taken in float32 or wider.

    >>> import torch
    >>> states, table, targets = torch.randn(5, 8), torch.randn(100, 8), torch.tensor([3, 99, -100, 0, 7])
    >>> loss = vocabulary_loss(states, table, targets, label_smoothing=0.1)
    >>> whole = torch.nn.functional.cross_entropy(states @ table.T, targets, label_smoothing=0.1, reduction="sum")
    >>> torch.allclose(loss, whole)
    True

    Args:
        states: ``(..., width)``, the last hidden states of a model.
        table: ``(V, width)``, the output embedding; or a ``DTensor`` of it, of which each rank has some rows (tensor
            parallelism): every rank then returns the same loss and the same gradient of the states.
        targets: ``(...)`` int64 token ids; -100 is ignored, and the state there may be anything, even NaN.
        bias: ``(V,)``, added to the logits.
        scale: factor of the logits before the bias.
        cap: soft cap of the logits, ``cap * tanh(z / cap)``.
        label_smoothing: share of each target's probability that is spread evenly over the vocabulary.
        chunk: tokens at a time; by default as many as keep their logits below 96 MiB. It affects rounding alone.

    Raises:
        ArgumentError: shapes do not fit, a target is outside the vocabulary, or ``label_smoothing`` outside
            ``[0, 1]``.
    """
    _check(states, table, targets, bias, label_smoothing)
    states, targets = states.flatten(0, -2), targets.flatten()
    counted = targets != IGNORED
    if not bool(counted.all()):
        states, targets = states[counted], targets[counted]  # select, never multiply by zero
    if targets.numel() and not (int(targets.min()) >= 0 and int(targets.max()) < len(table)):
        got = f"they run from {int(targets.min())} to {int(targets.max())}"
        raise wrong("targets", f"must lie between 0 and {len(table) - 1}, or be {IGNORED}", got, "Check the tokenizer.")
    vocabulary, rows, table = len(table), rows_of(table), local_part(table)
    bias = None if bias is None else local_part(bias)
    if torch.is_autocast_enabled(states.device.type) and states.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(states.device.type)
        states, table = states.to(dtype), table.to(dtype)
    if chunk is None:
        chunk = max(1, CHUNK_BYTES // (4 * len(table)))
    settings = _Settings(scale, cap, label_smoothing, vocabulary, rows)
    with torch.autocast(states.device.type, enabled=False):
        return _Chunked.apply(states, table, bias, targets, settings, chunk)  # type: ignore[no-any-return,no-untyped-call]


class _Settings(NamedTuple):
    """What the loss depends on beside tensors."""

    scale: float
    cap: float | None
    smoothing: float
    vocabulary: int
    rows: Rows


@dataclass
class _Head:
    """The output embedding with its bias, scale and cap: logits of a chunk, and what their gradient becomes."""

    table: Tensor
    bias: Tensor | None
    scale: float
    cap: float | None

    def logits(self, states: Tensor, products: Tensor, out: Tensor) -> Tensor:
        """Compute the logits of a chunk into ``out``, by way of ``products``, which may be the same memory."""
        fused.matmul(states, self.table.T, out=products)
        if out is not products:
            out.copy_(products)
        if self.scale != 1.0:
            out *= self.scale
        if self.bias is not None:
            out += self.bias
        return out if self.cap is None else out.div_(self.cap).tanh_().mul_(self.cap)


class _Chunked(torch.autograd.Function):
    """Loss and gradients, one chunk of tokens after the other."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        table: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        settings: _Settings,
        chunk: int,
    ) -> Tensor:
        scale, cap, smoothing, vocabulary, rows = settings
        head, wide = _Head(table, bias, scale, cap), torch.promote_types(states.dtype, torch.float32)
        gradients = _Gradients.of(ctx.needs_input_grad, states, head, wide)
        total = torch.zeros((), dtype=wide, device=states.device)
        # Memory for one chunk, allocated once: fresh pages for every chunk take as long as a product.
        products = states.new_empty(min(chunk, len(states)), len(table))
        logits = products if products.dtype == wide else torch.empty_like(products, dtype=wide)
        logs = torch.empty_like(logits)
        for start in range(0, len(states), chunk):
            x, t = states[start : start + chunk], targets[start : start + chunk, None]
            products, logits, logs = products[: len(x)], logits[: len(x)], logs[: len(x)]
            rows.log_softmax(head.logits(x, products, logits), out=logs)
            total -= (1 - smoothing) * rows.picked(logs, t)
            if smoothing:
                total -= smoothing / vocabulary * logs.sum()
            if gradients is None:
                continue
            d_logits = logs.exp_()
            if smoothing:
                d_logits -= smoothing / vocabulary
            rows.add_at(d_logits, t, smoothing - 1)
            gradients.add(d_logits, logits, products, x, start)
        if gradients is not None and gradients.states is not None:
            gradients.states = rows.total(gradients.states)
        ctx.save_for_backward(*(gradients.saved() if gradients is not None else (None, None, None)))
        return rows.total(total)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        saved = (None if one is None else one * gradient.to(one.dtype) for one in ctx.saved_tensors)
        return *saved, None, None, None


@dataclass
class _Gradients:
    """The gradients of states, table and bias, each ``None`` where it is not wanted."""

    head: _Head
    states: Tensor | None
    table: Tensor | None
    bias: Tensor | None

    @staticmethod
    def of(wanted: tuple[bool, ...], states: Tensor, head: _Head, wide: torch.dtype) -> _Gradients | None:
        """Allocate the gradients that are wanted; ``None`` if there are none."""
        if not any(wanted):
            return None
        return _Gradients(
            head,
            torch.empty_like(states) if wanted[0] else None,
            torch.zeros_like(head.table, dtype=wide) if wanted[1] else None,
            torch.zeros_like(head.bias, dtype=wide) if wanted[2] and head.bias is not None else None,
        )

    def add(self, d_logits: Tensor, logits: Tensor, products: Tensor, states: Tensor, start: int) -> None:
        """Add what a chunk contributes; its ``logits`` and ``products`` are overwritten."""
        if self.head.cap is not None:
            d_logits *= 1 - logits.div_(self.head.cap).square_()
        if self.bias is not None:
            self.bias += d_logits.sum(0)
        if self.head.scale != 1.0:
            d_logits *= self.head.scale
        narrow = d_logits if logits is products else products.copy_(d_logits)
        if self.states is not None:
            fused.matmul(narrow, self.head.table, out=self.states[start : start + len(states)])
        if self.table is not None:
            _add_product(self.table, narrow.T, states)

    def saved(self) -> tuple[Tensor | None, ...]:
        """Return the gradients in the dtypes of their parameters."""
        table = None if self.table is None else self.table.to(self.head.table.dtype)
        bias = None if self.bias is None or self.head.bias is None else self.bias.to(self.head.bias.dtype)
        return self.states, table, bias


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add ``left @ right`` to ``total``; a product of another dtype is added `ROWS` at a time, while in the cache."""
    if left.dtype == total.dtype:
        fused.matmul(left, right, out=total, add=True)
        return
    for start in range(0, len(total), ROWS):
        total[start : start + ROWS] += left[start : start + ROWS] @ right


def _check(states: Tensor, table: Tensor, targets: Tensor, bias: Tensor | None, label_smoothing: float) -> None:
    if states.dim() < 2 or table.dim() != 2 or states.shape[-1] != table.shape[1]:
        got = f"they are {describe(states)} and {describe(table)}"
        raise wrong("states", "must be (..., width) where `table` is (V, width)", got, "Check which is which.")
    if targets.shape != states.shape[:-1] or targets.dtype != torch.int64:
        got = f"it is {describe(targets)} and the states have shape {tuple(states.shape)}"
        raise wrong("targets", "must hold one int64 token id for each state", got, "Use .long() and check the shape.")
    if bias is not None and bias.shape != table.shape[:1]:
        raise wrong("bias", f"must have the shape ({len(table)},)", f"it is {describe(bias)}", "Leave it out.")
    if not 0.0 <= label_smoothing <= 1.0:
        raise wrong("label_smoothing", "must lie between 0 and 1", f"it is {label_smoothing}", "0 turns it off.")
