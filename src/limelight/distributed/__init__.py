"""Models over several processes, on PyTorch's own `DeviceMesh`, DTensor, FSDP2 and ``torch.distributed.checkpoint``.

`tensor_plan` divides the heads, features and vocabulary of a network (tensor parallelism), `shard` its parameters,
gradients and optimizer state (FSDP2), `make_mesh` the processes.
"""

from .mesh import make_mesh
from .sharded import shard
from .tensor import tensor_plan

__all__ = ["make_mesh", "shard", "tensor_plan"]
