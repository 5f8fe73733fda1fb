"""The rows of an output embedding that a process has: all of them, or a part (tensor parallelism)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..tensors.distributed import local_part
from ..tensors.shapes import PLAIN


@dataclass(frozen=True)
class Rows:
    """All rows, in one process."""

    def log_softmax(self, logits: Tensor, out: Tensor) -> None:
        """Compute ``logits - logsumexp(logits)`` over the vocabulary into ``out``."""
        torch.log_softmax(logits, 1, out=out)

    def picked(self, logs: Tensor, targets: Tensor) -> Tensor:
        """Return the sum of the entries ``(n, rows)`` of the targets ``(n, 1)``, as far as they lie in these rows."""
        return logs.gather(1, targets).sum()

    def add_at(self, entries: Tensor, targets: Tensor, value: float) -> None:
        """Add a value to the entry of each target that lies in these rows."""
        entries.scatter_add_(1, targets, entries.new_full(targets.shape, value))

    def total(self, tensor: Tensor) -> Tensor:
        """Return the sum of what each process has computed from its rows."""
        return tensor


@dataclass(frozen=True)
class SharedRows(Rows):
    """The rows ``first`` to ``first + count`` of this process; the others are those of its process group."""

    first: int
    count: int
    group: Any

    def log_softmax(self, logits: Tensor, out: Tensor) -> None:
        """Compute ``logits - logsumexp(logits)`` over the whole vocabulary into ``out``, for these rows."""
        own = logits.logsumexp(1)
        each = [torch.empty_like(own) for _ in range(self.group.size())]
        dist.all_gather(each, own, group=self.group)
        torch.sub(logits, torch.stack(each).logsumexp(0)[:, None], out=out)

    def picked(self, logs: Tensor, targets: Tensor) -> Tensor:
        own, places = self._own(targets)
        return torch.where(own, logs.gather(1, places), 0).sum()

    def add_at(self, entries: Tensor, targets: Tensor, value: float) -> None:
        own, places = self._own(targets)
        entries.scatter_add_(1, places, torch.where(own, value, 0.0).to(entries.dtype))

    def total(self, tensor: Tensor) -> Tensor:
        wide = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
        wide = wide.clone() if wide is tensor else wide
        dist.all_reduce(wide, group=self.group)
        return wide.to(tensor.dtype)

    def _own(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Which targets lie in these rows, and a place in the rows for each."""
        places = targets - self.first
        own = (places >= 0) & (places < self.count)
        return own, places.clamp(0, self.count - 1)


def rows_of(table: Tensor) -> Rows:
    """Return the rows of an output embedding ``(V, width)`` that this process has.

    Args:
        table: a plain tensor, or a ``DTensor`` of one mesh dimension, divided by its rows.
    """
    if type(table) in PLAIN or not hasattr(table, "device_mesh"):
        return Rows()
    distributed: Any = table
    mesh = distributed.device_mesh
    each = -(-len(table) // mesh.size())  # as torch.chunk
    return SharedRows(each * mesh.get_local_rank(), len(local_part(table)), mesh.get_group())
