"""Host side of the normalizers, which turn scores into weights for the gradients and the observations."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..contract import Call
from . import arguments, machine, tuning
from .launching import launch
from .score_rules import rule_arguments
from .visibility import visibility


class Normalizers(NamedTuple):
    """Normalizers of each query, ``(B, Hq, Lq)`` float32: a score ``s`` after the rules has the weight
    ``2^((s - shift) factor - rest)``.

    ``fast`` is the rest where the shift is 0, and NaN elsewhere: results computed from it are not finite there, and a
    rescue kernel, which reads ``shift`` and ``rest``, computes them again.
    """

    fast: Tensor
    shift: Tensor
    rest: Tensor

    def share_of_sink(self, call: Call, logsumexp: Tensor) -> Tensor:
        """The weight of the sink in each row, ``(B, Hq, Lq)``."""
        assert call.sink is not None
        logit = call.sink.float()[None, :, None]
        unit = 1.0 if arguments.scales_first(call) else call.scale
        above = ((logit - self.shift * unit) * arguments.LOG2_E).clamp(max=1e30)  # as in the kernel
        share = torch.exp2((above - self.rest).clamp(max=0.0))
        return torch.where(self.fast.isnan(), share, torch.exp(logit - logsumexp))


def normalizers(call: Call, logsumexp: Tensor, nothing_visible: bool) -> Normalizers:
    """The normalizers of a call, from its ``logsumexp``.

    They are zero for queries that belong to no segment, and for a call in which no query sees any key
    (``nothing_visible``).
    """
    from .kernels import normalizers as kernels

    _, Hq, Hkv, Lq, _, D, Dv = call.shapes
    device = logsumexp.device
    make = torch.empty if call.lowered.covers and not nothing_visible else torch.zeros
    found = Normalizers(*make((3, *logsumexp.shape), dtype=torch.float32, device=device))
    query, key = arguments.with_unit_stride(call.query), arguments.with_unit_stride(call.key)
    widest = max(tuning.width(D), tuning.width(Dv))
    tile = tuning.summing_tile(machine.generation(device), call.query.dtype.itemsize, widest)
    visible = visibility(call.lowered, tile.rows, device)
    if not nothing_visible and visible.tiles:
        rules = rule_arguments(call)
        launch(
            kernels.normalizers, (visible.tiles, Hq, visible.rows),
            query, key, logsumexp, arguments.sink(call), *found,
            query.stride()[:3], arguments.stored_strides(call, key), Hq, Hq // Hkv, Lq, *visible.of_tile,
            *arguments.scoring(call, rules),
            const=arguments.constants(call, rules, visible, 1, 1, tile), num_warps=tile.warps, num_stages=1,
        )  # fmt: skip
    return found
