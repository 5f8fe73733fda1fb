"""What `torch.utils.flop_counter.FlopCounterMode` counts for the registered operators (`limelight.operator.compiled`).

As PyTorch does for its own attention, every pair of query and key counts, whatever the pattern shows: a number by
which calls can be compared, not what is computed. `limelight.explain` reports how many pairs are visible.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack


def register() -> None:
    """Make the formulas known to PyTorch's counter, where it has been imported, and to the counters that are active.

    Importing the counter takes seconds (it imports Triton), so this is called with each call of the operators.
    """
    module = sys.modules.get("torch.utils.flop_counter")
    if module is None:
        return
    formulas = {torch.ops.limelight.attention: forward, torch.ops.limelight.attention_backward: backward}
    for operator, formula in formulas.items():
        if operator not in module.flop_registry:
            module.register_flop_formula(operator, get_raw=True)(formula)
    for mode in _get_current_dispatch_mode_stack():
        counter = getattr(mode, "counter", None)
        if isinstance(counter, module.FlopCounterMode):  # it copied the registry when it was made
            counter.flop_registry.update(formulas)


def forward(tensors: Sequence[Tensor], numbers: Sequence[int], *_: Any, out_val: Any = None) -> int:
    """Two products over all pairs: queries with keys, weights with values."""
    return _pairs(tensors, numbers) * 2 * (tensors[0].shape[3] + tensors[2].shape[3])


def backward(
    tensors: Sequence[Tensor],
    numbers: Sequence[int],
    reals: Sequence[float],
    recipe: str,
    orders: str,
    *,
    out_val: Any = None,
) -> int:
    """Five products over all pairs for the first derivative, one of them the scores once more.

    A derivative of order ``n > 1`` is computed from the definition: each order takes the products of the one before
    it three times, once for its value and twice for its gradients.
    """
    D, Dv, order = tensors[0].shape[3], tensors[2].shape[3], orders.count(";")
    return _pairs(tensors, numbers) * 2 * (3 * D + 2 * Dv if order == 1 else 3**order * (D + Dv))


def _pairs(tensors: Sequence[Tensor], numbers: Sequence[int]) -> int:
    B, Hq, Lq, _ = tensors[0].shape
    return B * Hq * Lq * (tensors[1].shape[2] if numbers[1] < 0 else numbers[1])
