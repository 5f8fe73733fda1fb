"""Attention over several processes, on `torch.distributed`.

`ContextParallel` is a layout whose tokens lie on the ranks of a process group: ``attention(q, k, v, layout=...)``, a
layer or a whole model computes with it what one process computes, for every pattern and setting.
"""

from .context import ContextParallel
from .dealing import deal, imbalance, pairs_of_tokens
from .patterns import patterns_of
from .plan import Plan, make_plan
from .report import ContextReport, keys_moved

__all__ = [
    "ContextParallel",
    "ContextReport",
    "Plan",
    "deal",
    "imbalance",
    "keys_moved",
    "make_plan",
    "pairs_of_tokens",
    "patterns_of",
]
