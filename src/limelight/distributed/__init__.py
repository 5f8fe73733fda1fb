"""Texts and models over several processes, on `torch.distributed`.

`ContextParallel` is a layout whose tokens lie on the ranks of a process group: ``attention(q, k, v, layout=...)``, a
layer or a whole model computes with it what one process computes, for every pattern and setting.

`tensor_plan` divides the heads, features and vocabulary of a network (tensor parallelism), `divide_experts` the experts
of its mixtures, `stages` its layers (pipeline parallelism), `shard` its parameters, gradients and optimizer state
(FSDP2), `make_mesh` the processes: PyTorch's own `DeviceMesh`, DTensor, FSDP2, ``torch.distributed.pipelining`` and
``torch.distributed.checkpoint``.
"""

from .context import ContextParallel
from .dealing import deal, imbalance, pairs_of_tokens
from .experts import divide_experts
from .mesh import expert_mesh, make_mesh, parameter_mesh
from .patterns import patterns_of
from .pipeline import Stage, add_shared_gradients, stages
from .plan import Plan, make_plan
from .prefill import ContextParallelPrefill
from .report import ContextReport
from .runs import keys_moved
from .sharded import shard
from .tensor import tensor_plan

__all__ = [
    "ContextParallel",
    "ContextParallelPrefill",
    "ContextReport",
    "Plan",
    "Stage",
    "add_shared_gradients",
    "deal",
    "divide_experts",
    "expert_mesh",
    "imbalance",
    "keys_moved",
    "make_mesh",
    "make_plan",
    "pairs_of_tokens",
    "parameter_mesh",
    "patterns_of",
    "shard",
    "stages",
    "tensor_plan",
]
