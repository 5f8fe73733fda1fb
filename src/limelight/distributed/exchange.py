"""The exchange: each rank gets the keys and values that its queries see, by one uneven all-to-all or an all-gather."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .plan import Plan
from .runs import count

#: Over more ranks than those of a node, the gradients of gathered keys return by a reduce-scatter. It sends float32, in
#: 16 bits twice the bytes, but adds up before it leaves a node; the order of its sums is that of the collective.
NODE = 8

# PyTorch 2.13 renamed both.
_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_scatter: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class Pending:
    """An exchange that goes on in the background: what it received is read by `wait`.

    Args:
        work: of the collective call; ``None`` where nothing is sent.
        buffers: that it reads and writes, kept until it has ended.
        unpack: the parts from each rank, once it has ended.
    """

    def __init__(self, work: Any, buffers: tuple[Tensor, ...], unpack: Callable[[], list[list[list[Tensor]]]]) -> None:
        self._work, self._buffers, self._unpack = work, buffers, unpack

    def wait(self) -> list[list[list[Tensor]]]:
        """The ranges that came from each rank, each as its parts of two tensors."""
        if self._work is not None:
            self._work.wait()
        return self._unpack()


def begin(key: Tensor, value: Tensor, plan: Plan, group: Any) -> Pending | None:
    """Send keys and values for an `exchanged` that follows, which gets what is returned as its ``pending``."""
    return None if plan.is_identity else _begin(key, value, plan, group)


def exchanged(
    key: Tensor, value: Tensor, plan: Plan, group: Any, pending: Pending | None = None
) -> tuple[Tensor, Tensor]:
    """The keys and values of a rank's own call, gathered from the ranks that hold them. Every rank calls it.

    Linear in both. Its transpose, the backward pass, returns each gradient to the rank that holds the key and adds
    those of all ranks in float32 (float64 for float64), rounded once: in the order of the ranks, or by a reduce-scatter
    where keys are gathered over more than `NODE` ranks.

    Args:
        key: ``(B, H, L, D)``, the rank's own.
        value: ``(B, H, L, Dv)``.
        plan: who needs what.
        group: the process group.
        pending: the exchange of these keys and values, where it has begun.

    Returns:
        ``(B, H, N, D)`` and ``(B, H, N, Dv)`` with ``N = plan.gathered``; zeros between pieces.
    """
    if plan.is_identity:
        return key, value
    return _Exchange.apply(key, value, plan, group, pending)  # type: ignore[no-any-return, no-untyped-call]


def unset(key: Tensor, value: Tensor, plan: Plan, group: Any) -> tuple[Tensor, Tensor]:
    """Tensors like those of `exchanged`, without the exchange: what they hold is not defined."""
    made = [x.new_empty(*x.shape[:2], plan.gathered, x.shape[3]).requires_grad_(x.requires_grad) for x in (key, value)]
    return (key, value) if plan.is_identity else (made[0], made[1])


def returned(key: Tensor, value: Tensor, plan: Plan, group: Any) -> tuple[Tensor, Tensor]:
    """The transpose of `exchanged`: numbers of gathered keys, added up at the ranks that hold the keys."""
    if plan.is_identity:
        return key, value
    return _Return.apply(key, value, plan, group)  # type: ignore[no-any-return, no-untyped-call]


class _Exchange(torch.autograd.Function):
    """Linear, and the transpose of `_Return`; so each is the other's derivative, of any order."""

    @staticmethod
    def forward(key: Tensor, value: Tensor, plan: Plan, group: Any, pending: Pending | None) -> tuple[Tensor, Tensor]:
        tensors = (key, value)
        incoming = (pending or _begin(key, value, plan, group)).wait()
        made = [x.new_zeros(*x.shape[:2], plan.gathered, x.shape[3]) for x in tensors]
        for ranges, parts in zip(plan.received, incoming, strict=True):
            for (_, copies), part in zip(ranges, parts, strict=True):
                for first, last, place in copies:
                    for to, x in zip(made, part, strict=True):
                        to[:, :, place : place + last - first] = x[:, :, first:last]
        return made[0], made[1]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, _, ctx.plan, ctx.group, _ = inputs

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        return (*_Return.apply(*gradients, ctx.plan, ctx.group), None, None, None)  # type: ignore[no-untyped-call]

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Any, ...]:
        return _Exchange.apply(*tangents[:2], ctx.plan, ctx.group, None)  # type: ignore[no-any-return, no-untyped-call]

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], key: Tensor, value: Tensor, plan: Plan, group: Any, _: None
    ) -> Any:
        return _for_samples(_Exchange, info, in_dims, key, value, plan, group, None)


class _Return(torch.autograd.Function):
    """The transpose of `_Exchange`."""

    @staticmethod
    def forward(key: Tensor, value: Tensor, plan: Plan, group: Any) -> tuple[Tensor, Tensor]:
        tensors = (key, value)
        outgoing = [[[_sum(x, *item) for x in tensors] for item in ranges] for ranges in plan.received]
        if plan.gathers and len(plan.held) > NODE:
            return _reduced(outgoing, tensors, plan, group)
        lengths = [[last - first for first, last in ranges] for ranges in plan.sent]
        incoming = _all_to_all(outgoing, lengths, tensors, plan, group).wait()
        held = sum(last - first for first, last in plan.held[plan.rank])
        sums = [x.new_zeros(*x.shape[:2], held, x.shape[3], dtype=_dtype_of_sums(x.dtype)) for x in tensors]
        for ranges, parts in zip(plan.sent, incoming, strict=True):
            for (first, last), part in zip(ranges, parts, strict=True):
                for to, x in zip(sums, part, strict=True):
                    to[:, :, first:last] += x
        return sums[0].to(key.dtype), sums[1].to(value.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, _, ctx.plan, ctx.group = inputs

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        return (*_Exchange.apply(*gradients, ctx.plan, ctx.group, None), None, None)  # type: ignore[no-untyped-call]

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Any, ...]:
        return _Return.apply(*tangents[:2], ctx.plan, ctx.group)  # type: ignore[no-any-return, no-untyped-call]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], key: Tensor, value: Tensor, plan: Plan, group: Any) -> Any:
        return _for_samples(_Return, info, in_dims, key, value, plan, group)


def _dtype_of_sums(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _sum(gathered: Tensor, length: int, copies: tuple[tuple[int, int, int], ...]) -> Tensor:
    """The sum over the copies of a range among the gathered keys; one that is whole is a view."""
    if len(copies) == 1 and copies[0][:2] == (0, length):
        return gathered[:, :, copies[0][2] : copies[0][2] + length]
    shape = *gathered.shape[:2], length, gathered.shape[3]
    total = gathered.new_zeros(shape, dtype=_dtype_of_sums(gathered.dtype))
    for first, last, place in copies:
        total[:, :, first:last] += gathered[:, :, place : place + last - first]
    return total.to(gathered.dtype)


def _begin(key: Tensor, value: Tensor, plan: Plan, group: Any) -> Pending:
    tensors = (key, value)
    if plan.gathers:
        return _all_gather(tensors, plan, group)
    outgoing = [[[x[:, :, a:b] for x in tensors] for a, b in ranges] for ranges in plan.sent]
    lengths = [[length for length, _ in ranges] for ranges in plan.received]
    return _all_to_all(outgoing, lengths, tensors, plan, group)


def _all_gather(tensors: tuple[Tensor, Tensor], plan: Plan, group: Any) -> Pending:
    """Begin to send all keys and values to all ranks, of each as many as the rank with most holds."""
    shapes = [(*x.shape[:2], x.shape[3]) for x in tensors]
    per_token = sum(B * H * width for B, H, width in shapes)
    sending = tensors[0].new_empty(plan.largest * per_token)
    flat = torch.cat([x.reshape(-1) for x in tensors])
    sending[: len(flat)] = flat
    received = sending.new_empty(len(plan.held) * len(sending))
    work = _gather(received, sending, group=group, async_op=True)

    def unpack() -> list[list[list[Tensor]]]:
        found = []
        for held, need, piece in zip(plan.held, plan.needed, received.view(len(plan.held), -1), strict=True):
            n, parts, first = count(held), [], 0
            for B, H, width in shapes:
                parts.append(piece[first : first + B * H * n * width].view(B, H, n, width))
                first += B * H * n * width
            found.append([[x[:, :, a:b] for x in parts] for a, b in need])
        return found

    return Pending(work, (received, sending), unpack)


def _reduced(
    outgoing: list[list[list[Tensor]]], tensors: tuple[Tensor, Tensor], plan: Plan, group: Any
) -> tuple[Tensor, Tensor]:
    """The transpose of `_all_gather`: numbers of this rank's keys, added up over all ranks by a reduce-scatter.

    Args:
        outgoing: for each rank, for each range that came from it, the parts of two tensors.
        tensors: two tensors whose batch rows, heads and widths the parts have.
        plan: whose rank is this one.
        group: the process group.
    """
    shapes = [(*x.shape[:2], x.shape[3]) for x in tensors]
    sizes = [B * H * plan.largest * width for B, H, width in shapes]
    dtype = _dtype_of_sums(tensors[0].dtype)
    sending = tensors[0].new_zeros(len(plan.held), sum(sizes), dtype=dtype)
    for row, ranges, need in zip(sending, outgoing, plan.needed, strict=True):
        for part, (B, H, width), place in zip((0, 1), shapes, (0, sizes[0]), strict=True):
            whole = row[place : place + sizes[part]].view(B, H, plan.largest, width)
            for both, (first, last) in zip(ranges, need, strict=True):
                whole[:, :, first:last] = both[part]
    received = sending.new_empty(sum(sizes))
    _scatter(received, sending.view(-1), group=group)
    held = count(plan.held[plan.rank])
    made = [
        x.view(B, H, plan.largest, width)[:, :, :held].to(like.dtype)
        for x, (B, H, width), like in zip(torch.split(received, sizes), shapes, tensors, strict=True)
    ]
    return made[0], made[1]


def _all_to_all(
    outgoing: list[list[list[Tensor]]],
    lengths: list[list[int]],
    tensors: tuple[Tensor, Tensor],
    plan: Plan,
    group: Any,
) -> Pending:
    """Begin to exchange ranges, each as a part of each of two tensors; a rank's own are not copied.

    Args:
        outgoing: for each rank, for each range, the parts.
        lengths: for each rank, tokens of each range that it sends.
        tensors: two tensors whose batch rows, heads and widths the parts have.
        plan: whose rank is this one.
        group: the process group.
    """
    if not plan.sends:
        return Pending(None, (), lambda: [ranges * (rank == plan.rank) for rank, ranges in enumerate(outgoing)])
    shapes = [(*x.shape[:2], x.shape[3]) for x in tensors]
    per_token = sum(B * H * width for B, H, width in shapes)
    others = [rank != plan.rank for rank in range(len(outgoing))]
    sizes = [other * per_token * sum(some) for other, some in zip(others, lengths, strict=True)]
    flat = [
        torch.cat([x.reshape(-1) for parts in ranges for x in parts]) if other and ranges else None
        for other, ranges in zip(others, outgoing, strict=True)
    ]
    like = tensors[0]
    sending = torch.cat([like.new_empty(0), *(x for x in flat if x is not None)])
    received = like.new_empty(sum(sizes))
    sent = [0 if x is None else len(x) for x in flat]
    work = dist.all_to_all_single(received, sending, sizes, sent, group=group, async_op=True)

    def unpack() -> list[list[list[Tensor]]]:
        found = []
        for rank, piece in enumerate(torch.split(received, sizes)):
            if rank == plan.rank:
                found.append(outgoing[rank])
                continue
            parts = iter(torch.split(piece, [n * B * H * width for n in lengths[rank] for B, H, width in shapes]))
            found.append([[next(parts).view(B, H, n, width) for B, H, width in shapes] for n in lengths[rank]])
        return found

    return Pending(work, (received, sending), unpack)


def _for_samples(
    function: Any, info: Any, in_dims: tuple[int | None, ...], key: Tensor, value: Tensor, *others: Any
) -> Any:
    """The samples of `torch.vmap` as batch rows."""
    moved = [
        x.unsqueeze(0).expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
        for x, dim in zip((key, value), in_dims, strict=False)
    ]
    made = function.apply(*[x.flatten(0, 1) for x in moved], *others)
    return tuple([x.unflatten(0, (info.batch_size, -1)) for x in made]), (0, 0)
