"""The host side of what makes a score a weight, for the gradients and the observations."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..contract import Call
from . import machine, operands, tuning


class Normalizers(NamedTuple):
    """Of each query, ``(B, Hq, Lq)`` float32: the weight of a score ``s`` after the rules is
    ``2^((s - shift) factor - rest)``. ``fast`` is the rest where the shift is 0, and NaN elsewhere: what is made of it
    is not finite, and made again by a kernel that knows the other two."""

    fast: Tensor
    shift: Tensor
    rest: Tensor

    def share_of_sink(self, call: Call, logsumexp: Tensor) -> Tensor:
        """What the sink takes of each row."""
        assert call.sink is not None
        logit = call.sink.float()[None, :, None]
        unit = 1.0 if operands.natural(call) else call.scale
        above = ((logit - self.shift * unit) * operands.LOG2_E).clamp(max=1e30)  # as in the kernel
        share = torch.exp2((above - self.rest).clamp(max=0.0))
        return torch.where(self.fast.isnan(), share, torch.exp(logit - logsumexp))


def normalizers(call: Call, logsumexp: Tensor, blind: bool) -> Normalizers:
    """The normalizers of a call by its ``logsumexp``; zeros of queries that belong to no segment, or of a call in which
    nobody sees anything (``blind``)."""
    from .kernels import normalizers as kernels

    _, Hq, Hkv, Lq, _, D, Dv = call.shapes
    device = logsumexp.device
    found = Normalizers(*torch.zeros((3, *logsumexp.shape), dtype=torch.float32, device=device))
    query, key = operands.readable(call.query), operands.readable(call.key)
    widest = max(tuning.width(D), tuning.width(Dv))
    tile = tuning.summing_tile(machine.generation(device), call.query.dtype.itemsize, widest)
    sight = operands.sight(call.lowered, tile.rows, device)
    if not blind and sight.tiles:
        rules = operands.rules(call)
        kernels.normalizers[sight.tiles, Hq, sight.rows](
            query, key, logsumexp, None if call.sink is None else call.sink.detach().contiguous(), *found,
            query.stride()[:3], key.stride()[:3], Hq, Hq // Hkv, Lq, *sight.operands, *operands.scoring(call, rules),
            form=operands.form_of(call, rules, sight, 1, 1, tile), num_warps=tile.warps, num_stages=1,
        )  # fmt: skip
    return found
