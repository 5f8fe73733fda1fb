"""The functions of PyTorch that are not public and that Limelight uses, each with its purpose.

PyTorch may rename them in any release; `tests/tensors/test_torch_internals.py` calls every one of them. Nothing else in
Limelight names ``torch._C`` or another private module. They are bound here once, since a small call uses a dozen.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack as without_transforms
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.autograd import forward_ad
from torch.jit._trace import TracerWarning
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]
from torch.utils import _python_dispatch, _pytree

__all__ = [
    "DisableTorchFunctionSubclass",
    "FakeTensor",
    "FunctionalTensor",
    "TracerWarning",
    "UninitializedTensorMixin",
    "add_batch_dim",
    "allocator",
    "are_transforms_active",
    "autograd_enabled_in_operator",
    "backward_pass_id",
    "break_graph",
    "current_dispatch_mode",
    "disabled_torch_function",
    "dispatch_mode_count",
    "has_storage",
    "in_forward_mode",
    "is_any_autocast_enabled",
    "is_composite",
    "is_dynamo_imported",
    "is_functional",
    "is_functionalize",
    "is_jit_tracing",
    "is_observed",
    "is_plain_eager",
    "is_tracer_type",
    "is_transform_tensor",
    "legacy_vmap_level",
    "remove_batch_dim",
    "saved_by_export",
    "set_group_timeout",
    "storage_references",
    "tracing_mode",
    "transforms",
    "tree_leaves",
    "tree_map",
    "under_pre_dispatch",
    "vmap_level",
    "vmap_samples",
    "without_transforms",
]

# --- Which tracers, modes and transforms are active ------------------------------------------------------------------

#: How many ``TorchDispatchMode``s see the operations, those of tracers included.
dispatch_mode_count = torch._C._len_torch_dispatch_stack

#: The innermost ``TorchDispatchMode``, or ``None``.
current_dispatch_mode = _python_dispatch._get_current_dispatch_mode

#: Whether `torch.jit.trace` records.
is_jit_tracing = torch._C._is_tracing

#: Whether a transform of `torch.func` is active.
are_transforms_active = torch._C._are_functorch_transforms_active

#: Whether autocast is enabled for any device; `torch.is_autocast_enabled` has to be called for each.
is_any_autocast_enabled = torch._C._is_any_autocast_enabled

_MODES = (
    (torch._C._TorchDispatchModeKey.PROXY, "make_fx"),
    (torch._C._TorchDispatchModeKey.FUNCTIONAL, "FunctionalTensorMode"),
    (torch._C._TorchDispatchModeKey.FAKE, "FakeTensorMode"),
)
_get_dispatch_mode = torch._C._get_dispatch_mode

_is_key_included = torch._C._dispatch_tls_is_dispatch_key_included
_PRE_DISPATCH = torch._C.DispatchKey.PreDispatch


def is_observed() -> bool:
    """Whether a dispatch mode, a tracer or a transform sees the operations: the next four checks in one."""
    return bool(dispatch_mode_count() or is_jit_tracing() or are_transforms_active() or _is_key_included(_PRE_DISPATCH))


def is_plain_eager() -> bool:
    """Whether operations only compute: no compiler, tracer, dispatch mode, transform or forward mode is active."""
    return not (
        torch.compiler.is_compiling()
        or dispatch_mode_count()
        or is_jit_tracing()
        or are_transforms_active()
        or _is_key_included(_PRE_DISPATCH)
        or forward_ad._current_level >= 0
    )


def under_pre_dispatch() -> bool:
    """Whether ``make_fx(pre_dispatch=True)`` or `torch.export` records before autograd."""
    return _is_key_included(_PRE_DISPATCH)


def tracing_mode() -> str:
    """The dispatch mode of a tracer that is active, in words; empty for none."""
    for key, name in _MODES:
        if _get_dispatch_mode(key) is not None:
            return name
    return ""


def in_forward_mode() -> bool:
    """Whether the call is inside `torch.autograd.forward_ad.dual_level`."""
    return forward_ad._current_level >= 0


def transforms() -> Sequence[Any]:
    """The transforms of `torch.func` that are active, the outermost first."""
    return torch._C._functorch.get_interpreter_stack() or ()


# `without_transforms()`: within it no transform of `torch.func` is active; a tensor of one must not be computed with.


def in_vmap_alone() -> bool:
    """Whether transforms of `torch.func` are active, and each of them is ``vmap``."""
    active = transforms()
    return bool(active) and all(one.key() == torch._C._functorch.TransformType.Vmap for one in active)


def is_functionalize(transform: Any) -> bool:
    """Whether one of `transforms` is ``functionalize``, which records and computes nothing."""
    return bool(transform.key() == torch._C._functorch.TransformType.Functionalize)


def legacy_vmap_level() -> int:
    """How many batched backward passes (``is_grads_batched=True``), which use PyTorch's older vmap, are nested."""
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    return level


#: A batch of the older vmap as a plain tensor with the batch dimension, and the reverse.
remove_batch_dim, add_batch_dim = torch._remove_batch_dim, torch._add_batch_dim


def break_graph(reason: str) -> None:
    """End the graph that `torch.compile` records; ``fullgraph=True`` raises with the reason."""
    torch._dynamo.graph_break(msg=reason)


def is_dynamo_imported() -> bool:
    """Whether `torch.compile` may have compiled something in this process."""
    return "torch._dynamo" in sys.modules


#: A number of the backward pass that runs on this thread; -1 outside of one.
backward_pass_id = torch._C._current_graph_task_id

#: The values in nested tuples, lists and dictionaries, and the same nest with a function of each.
tree_leaves, tree_map = _pytree.tree_leaves, _pytree.tree_map

# --- What a tensor is ------------------------------------------------------------------------------------------------

#: Whether a tensor has a storage; `torch.Tensor.untyped_storage` raises for one that has none.
has_storage = torch._C._has_storage

#: Whether a tensor belongs to ``functionalize``.
is_functional = torch._is_functional_tensor

#: Whether a tensor belongs to a transform of `torch.func`, active or ended.
is_transform_tensor = torch._C._functorch.is_functorch_wrapped_tensor


def vmap_level(tensor: torch.Tensor) -> int:
    """The level of the `torch.vmap` of which a tensor is a batch; 0 of any other tensor."""
    functorch = torch._C._functorch
    return int(functorch.maybe_get_level(tensor)) if functorch.is_batchedtensor(tensor) else 0


def vmap_samples(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The samples of a batch of `torch.vmap`."""
    functorch = torch._C._functorch
    return tuple(functorch.get_unwrapped(tensor).unbind(functorch.maybe_get_bdim(tensor)))


def is_composite(operation: Any) -> bool:
    """Whether an operator is defined by other operators, of which a dispatch mode can record each."""
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(operation.name(), "CompositeImplicitAutograd"))


def is_tracer_type(kind: type) -> bool:
    """Whether a tensor subclass is one in which a tracer wraps the tensors of a call."""
    return kind.__module__.startswith("torch._subclasses.")


def storage_references(storage: torch.UntypedStorage) -> int:
    """How many tensors and Python objects share a storage."""
    return torch._C._storage_Use_Count(storage._cdata)


def allocator(device: torch.device) -> Callable[[Sequence[int], Sequence[int], torch.dtype], torch.Tensor]:
    """``(sizes, strides, dtype) -> tensor`` on a device, which is the current one of its kind: `torch.empty_strided`
    without the dispatcher, which takes half of its time. No mode sees the allocation.
    """
    found = getattr(torch._C._dynamo.guards, f"_empty_strided_{device.type}", None)
    if device.type in ("cpu", "cuda") and found is not None:
        return found  # type: ignore[no-any-return]
    return lambda sizes, strides, dtype: torch.empty_strided(sizes, strides, dtype=dtype, device=device)


# --- How a tensor subclass and an operator are dispatched ------------------------------------------------------------

#: A context in which functions do not call ``__torch_function__`` of subclasses.
DisableTorchFunctionSubclass = torch._C.DisableTorchFunctionSubclass

#: ``__torch_function__`` of a subclass whose functions return plain tensors.
disabled_torch_function = torch._C._disabled_torch_function_impl


def autograd_enabled_in_operator() -> AbstractContextManager[Any]:
    """A context inside a registered operator, where PyTorch has switched autograd off, in which it records again."""
    included, excluded = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
    keys = torch._C.DispatchKey
    for key in (keys.AutogradCPU, keys.AutogradOther, keys.ADInplaceOrView):
        excluded = excluded.remove(key)
    return torch._C._ForceDispatchKeyGuard(included, excluded)


# --- What an exported program can be saved with ----------------------------------------------------------------------

Kind = TypeVar("Kind", bound=type)


def saved_by_export(kind: Kind) -> Kind:
    """Register a named tuple, so that `torch.export.save` can write programs that take or return it.

    `torch.export.load` makes it again, in a process that has imported the module of the class.
    """
    _pytree._register_namedtuple(kind, serialized_type_name=f"{kind.__module__}.{kind.__qualname__}")
    return kind


# --- How long processes wait for one another -------------------------------------------------------------------------


def set_group_timeout(group: Any, timeout: timedelta) -> None:
    """Set how long the collective operations of a process group wait; those of a mesh have PyTorch's default else."""
    from torch.distributed.distributed_c10d import _set_pg_timeout  # which some builds of PyTorch leave out

    _set_pg_timeout(timeout, group)
