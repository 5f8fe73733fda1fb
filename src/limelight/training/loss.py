"""The loss over a vocabulary, a run of tokens at a time, so that the logits are never held whole.

With logits ``z = cap(scale * x @ E.T + b)`` of one token, its target ``t`` and ``V`` tokens in the vocabulary::

    loss = logsumexp(z) - (1 - smoothing) z_t - smoothing / V * sum_v z_v
    d loss / d z_v = softmax(z)_v - (1 - smoothing) [v = t] - smoothing / V

so the gradient of a run of tokens is known as soon as its logits are, and they can be dropped. What is kept for the
backward pass is the gradient of the states, ``(N, width)``, and that of the table, ``(V, width)``: memory is linear,
and no product is computed twice. (Hsu et al. 2024, Liger Kernel, arXiv:2410.10989, section 3.2; Wijmans et al. 2024,
arXiv:2411.09009, compute the logits again instead. Label smoothing: Szegedy et al. 2015, arXiv:1512.00567.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import fused
from ..tensors.shapes import describe, wrong

IGNORED = -100  # a target that asks nothing, as in torch.nn.functional.cross_entropy
RUN_BYTES = 3 * 2**25  # of logits that are held at a time
PIECE = 4096  # rows of the table whose gradient is added at a time


def vocabulary_loss(
    states: Tensor,
    table: Tensor,
    targets: Tensor,
    *,
    offset: Tensor | None = None,
    scale: float = 1.0,
    cap: float | None = None,
    smoothing: float = 0.0,
    run: int | None = None,
) -> Tensor:
    """The sum over tokens of the cross-entropy of ``scale * states @ table.T + offset`` with ``targets``, in nats.

    Under autocast the products are computed in its dtype; the softmax is taken in float32 or wider.

    >>> import torch
    >>> states, table, targets = torch.randn(5, 8), torch.randn(100, 8), torch.tensor([3, 99, -100, 0, 7])
    >>> loss = vocabulary_loss(states, table, targets, smoothing=0.1)
    >>> whole = torch.nn.functional.cross_entropy(states @ table.T, targets, label_smoothing=0.1, reduction="sum")
    >>> torch.allclose(loss, whole)
    True

    Args:
        states: ``(..., width)``, the last vectors of a model.
        table: ``(V, width)``, the output embedding.
        targets: ``(...)`` int64 token ids; -100 asks nothing, and the state there may be anything.
        offset: ``(V,)``, added to the logits.
        scale: what the states are multiplied with.
        cap: logits are bent into ``(-cap, cap)`` by ``cap * tanh(z / cap)``.
        smoothing: the share of the target's weight that is spread evenly over the vocabulary.
        run: tokens at a time; by default as many as keep their logits below 96 MiB. It changes rounding alone.

    Raises:
        ArgumentError: shapes that do not fit, a target outside the vocabulary, a smoothing outside ``[0, 1]``.
    """
    _check(states, table, targets, offset, smoothing)
    states, targets = states.flatten(0, -2), targets.flatten()
    asked = targets != IGNORED
    if not bool(asked.all()):
        states, targets = states[asked], targets[asked]  # select, never multiply by zero
    if targets.numel() and not (int(targets.min()) >= 0 and int(targets.max()) < len(table)):
        got = f"they run from {int(targets.min())} to {int(targets.max())}"
        raise wrong("targets", f"must lie between 0 and {len(table) - 1}, or be {IGNORED}", got, "Check the tokenizer.")
    if torch.is_autocast_enabled(states.device.type) and states.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(states.device.type)
        states, table = states.to(dtype), table.to(dtype)
    if run is None:
        run = max(1, RUN_BYTES // (4 * len(table)))
    with torch.autocast(states.device.type, enabled=False):
        return _Runs.apply(states, table, offset, targets, scale, cap, smoothing, run)  # type: ignore[no-any-return,no-untyped-call]


class _Runs(torch.autograd.Function):
    """Loss and gradients of one run of tokens after the other."""

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        table: Tensor,
        offset: Tensor | None,
        targets: Tensor,
        scale: float,
        cap: float | None,
        smoothing: float,
        run: int,
    ) -> Tensor:
        wide = torch.promote_types(states.dtype, torch.float32)
        wants_states, wants_table, wants_offset = ctx.needs_input_grad[:3]
        d_states = torch.empty_like(states) if wants_states else None
        d_table = torch.zeros_like(table, dtype=wide) if wants_table else None
        d_offset = torch.zeros_like(offset, dtype=wide) if wants_offset and offset is not None else None
        total = torch.zeros((), dtype=wide, device=states.device)
        # Memory for one run, taken once: fresh pages for every run cost as much time as a product.
        rows = min(run, len(states))
        products = states.new_empty(rows, len(table))
        logits = products if products.dtype == wide else torch.empty_like(products, dtype=wide)
        logs = torch.empty_like(logits)
        for start in range(0, len(states), run):
            x, t = states[start : start + run], targets[start : start + run, None]
            products, logits, logs = products[: len(x)], logits[: len(x)], logs[: len(x)]
            fused.matmul(x, table.T, out=products)
            if logits is not products:
                logits.copy_(products)
            if scale != 1.0:
                logits *= scale
            if offset is not None:
                logits += offset
            if cap is not None:
                logits.div_(cap).tanh_().mul_(cap)
            torch.log_softmax(logits, 1, out=logs)
            total -= (1 - smoothing) * logs.gather(1, t).sum()
            if smoothing:
                total -= smoothing / len(table) * logs.sum()
            if not any(ctx.needs_input_grad):
                continue
            gradient = logs.exp_()
            if smoothing:
                gradient -= smoothing / len(table)
            gradient.scatter_add_(1, t, gradient.new_full(t.shape, smoothing - 1))
            if cap is not None:
                gradient *= 1 - logits.div_(cap).square_()
            if d_offset is not None:
                d_offset += gradient.sum(0)
            if scale != 1.0:
                gradient *= scale
            narrow = gradient if logits is products else products.copy_(gradient)
            if d_states is not None:
                fused.matmul(narrow, table, out=d_states[start : start + run])
            if d_table is not None:
                _add_product(d_table, narrow.T, x)
        ctx.save_for_backward(
            d_states,
            None if d_table is None else d_table.to(table.dtype),
            None if d_offset is None or offset is None else d_offset.to(offset.dtype),
        )
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return *(None if saved is None else saved * gradient.to(saved.dtype) for saved in ctx.saved_tensors), *[
            None
        ] * 5


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left @ right``; a narrower product is added a piece at a time, while it lies in the cache."""
    if left.dtype == total.dtype:
        fused.matmul(left, right, out=total, add=True)
        return
    for start in range(0, len(total), PIECE):
        total[start : start + PIECE] += left[start : start + PIECE] @ right


def _check(states: Tensor, table: Tensor, targets: Tensor, offset: Tensor | None, smoothing: float) -> None:
    if states.dim() < 2 or table.dim() != 2 or states.shape[-1] != table.shape[1]:
        got = f"they are {describe(states)} and {describe(table)}"
        raise wrong("states", "must be (..., width) where `table` is (V, width)", got, "Check which is which.")
    if targets.shape != states.shape[:-1] or targets.dtype != torch.int64:
        got = f"it is {describe(targets)} beside states of shape {tuple(states.shape)}"
        raise wrong("targets", "must hold one int64 token id for each state", got, "Use .long() and check the shape.")
    if offset is not None and offset.shape != table.shape[:1]:
        raise wrong("offset", f"must have the shape ({len(table)},)", f"it is {describe(offset)}", "Leave it out.")
    if not 0.0 <= smoothing <= 1.0:
        raise wrong("smoothing", "must lie between 0 and 1", f"it is {smoothing}", "0 smooths nothing.")
