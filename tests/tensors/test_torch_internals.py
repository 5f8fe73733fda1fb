"""Every function of PyTorch that is not public exists in this PyTorch, and does what Limelight uses it for."""

import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

import limelight
from limelight.tensors import torch_internals as internals


@internals.saved_by_export
class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor | None


x = torch.ones(3)


def inside_jit_trace(function):
    """What a function gives while `torch.jit.trace` records."""
    found = []
    torch.jit.trace(lambda x: (found.append(function()), x + 1)[1], (x,), check_trace=False)
    return found[0]


def inside_make_fx(function, **settings):
    found = []
    make_fx(lambda x: (found.append(function()), x + 1)[1], **settings)(x)
    return found[0]


def inside_transform(function, transform=torch.func.vmap):
    found = []
    transform(lambda x: (found.append(function(x)), x)[1])(x)
    return found[0]


def test_dispatch_modes_are_counted():
    assert internals.dispatch_mode_count() == 0
    assert not internals.is_observed()
    assert internals.is_plain_eager()
    with FlopCounterMode(display=False):
        assert internals.dispatch_mode_count() == 1
        assert internals.is_observed()
        assert not internals.is_plain_eager()
        assert internals.tracing_mode() == ""


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_tracers_are_seen():
    assert not internals.is_jit_tracing()
    assert inside_jit_trace(internals.is_jit_tracing)
    assert inside_jit_trace(internals.is_observed)
    assert not internals.under_pre_dispatch()
    assert inside_make_fx(internals.under_pre_dispatch, pre_dispatch=True)
    assert inside_make_fx(internals.tracing_mode) == "make_fx"


def test_transforms_are_seen():
    assert not internals.are_transforms_active()
    assert internals.transforms() == ()
    assert inside_transform(lambda x: internals.are_transforms_active() and internals.is_observed())
    for transform, functionalizes in ((torch.func.vmap, False), (torch.func.functionalize, True)):
        assert inside_transform(
            lambda x: [internals.is_functionalize(t) for t in internals.transforms()], transform
        ) == [functionalizes]
    assert not internals.is_transform_tensor(x)
    assert inside_transform(internals.is_transform_tensor)
    assert not internals.is_functional(x)
    assert inside_transform(internals.is_functional, torch.func.functionalize)


def test_autocast_and_forward_mode_are_seen():
    assert not internals.is_any_autocast_enabled()
    with torch.autocast("cpu"):
        assert internals.is_any_autocast_enabled()
    assert not internals.in_forward_mode()
    with forward_ad.dual_level():
        assert internals.in_forward_mode()
        assert not internals.is_plain_eager()
        assert not internals.is_observed()


def test_a_backward_pass_is_seen():
    assert internals.backward_pass_id() == -1
    seen = []
    leaf = x.clone().requires_grad_()
    leaf.register_hook(lambda grad: seen.append((internals.backward_pass_id(), internals.legacy_vmap_level())))
    leaf.sum().backward()
    assert seen[0][0] >= 0
    assert seen[0][1] == 0


def test_batches_of_the_older_vmap_are_taken_apart():
    seen = []

    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, grad):
            level = internals.legacy_vmap_level()
            plain = internals.remove_batch_dim(grad, level, 2, 0)
            seen.append((level, internals.has_storage(grad), internals.has_storage(plain), plain.shape))
            return internals.add_batch_dim(2 * plain, 0, level)

    leaf = x.clone().requires_grad_()
    grads = torch.stack((x, 3 * x))
    (found,) = torch.autograd.grad(Doubled.apply(leaf), leaf, grads, is_grads_batched=True)
    assert seen == [(1, False, True, (2, 3))]
    assert torch.equal(found, 2 * grads)


def test_references_of_a_storage_are_counted():
    storage = torch.ones(4).untyped_storage()
    assert internals.storage_references(storage) == 1
    tensor = torch.empty(0).set_(storage)
    assert internals.storage_references(storage) == 2
    del tensor
    assert internals.storage_references(storage) == 1


def test_functions_of_a_subclass_give_plain_tensors():
    class Ours(torch.Tensor):
        __torch_function__ = internals.disabled_torch_function

    class Theirs(torch.Tensor):
        pass

    assert type(x.as_subclass(Ours) + 1) is torch.Tensor
    assert type(x.as_subclass(Theirs) + 1) is Theirs
    with internals.DisableTorchFunctionSubclass():
        assert type(x.as_subclass(Theirs) + 1) is torch.Tensor


def test_autograd_records_inside_a_registered_operator():
    recorded = []

    @torch.library.custom_op("limelight_test::probe", mutates_args=())
    def probe(x: torch.Tensor) -> torch.Tensor:
        leaf = x.detach().requires_grad_()
        for context in (torch.no_grad(), internals.autograd_enabled_in_operator()):
            with context, torch.enable_grad():
                recorded.append((2 * leaf).requires_grad)
        return x.clone()

    probe(x)
    assert recorded == [False, True]


def test_kinds_of_tensors():
    with internals.FakeTensor.__init__.__globals__["FakeTensorMode"]():
        assert isinstance(torch.ones(3), internals.FakeTensor)
    assert issubclass(internals.FunctionalTensor, torch.Tensor)
    assert internals.is_tracer_type(internals.FakeTensor)
    assert internals.is_tracer_type(internals.FunctionalTensor)
    assert not internals.is_tracer_type(torch.nn.Parameter)
    assert issubclass(internals.TracerWarning, Warning)
    assert isinstance(torch.nn.LazyLinear(3).weight, internals.UninitializedTensorMixin)


def test_dynamo_is_imported_by_the_first_compilation():
    code = """if True:
    import sys, torch
    from limelight.tensors import torch_internals as internals
    print(internals.is_dynamo_imported())
    torch.compile(lambda x: x, backend="eager")(torch.ones(1))
    print(internals.is_dynamo_imported())"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\nTrue\n"


def test_the_timeout_of_a_process_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        internals.set_group_timeout(dist.group.WORLD, timedelta(seconds=7))
        backend = dist.group.WORLD._get_backend(torch.device("cpu"))
        assert backend.options._timeout == timedelta(seconds=7)
    finally:
        dist.destroy_process_group()


def test_every_name_has_a_test():
    tested = Path(__file__).read_text()
    assert [name for name in internals.__all__ if f"internals.{name}" not in tested] == []
    assert [name for name in internals.__all__ if not hasattr(internals, name)] == []


PRIVATE = re.compile(r"torch\._[A-Za-z]|torch\.jit\._|forward_ad\._|parameter import Uninitialized")


def test_no_other_module_uses_private_names():
    folder = Path(limelight.__file__).parent
    found = {
        str(path.relative_to(folder))
        for path in folder.rglob("*.py")
        if path.name != "torch_internals.py" and PRIVATE.search(path.read_text())
    }
    assert found == set()


def test_transforms_are_left():
    def inside(x):
        with internals.without_transforms():
            return internals.are_transforms_active(), (torch.ones(2) + 1).sum().item()

    assert inside_transform(inside) == (False, 4.0)
    assert inside_transform(lambda x: internals.are_transforms_active())


def test_nests_of_values():
    nest = (1, [2, {"a": 3}])
    assert internals.tree_leaves(nest) == [1, 2, 3]
    assert internals.tree_map(lambda x: x + 1, nest) == (2, [3, {"a": 4}])


def test_the_innermost_dispatch_mode():
    class Mode(torch.utils._python_dispatch.TorchDispatchMode):
        pass

    assert internals.current_dispatch_mode() is None
    with Mode() as outer:
        assert internals.current_dispatch_mode() is outer
        with Mode() as inner:
            assert internals.current_dispatch_mode() is inner


def test_composite_operators():
    assert internals.is_composite(torch.ops.aten.matmul.default)
    assert not internals.is_composite(torch.ops.aten.mm.default)


def test_samples_of_vmap():
    found = []

    def f(x, y):
        found.append((internals.vmap_level(x), internals.vmap_level(y)))
        found.append([sample.shape for sample in internals.vmap_samples(x)])
        return x

    assert internals.vmap_level(torch.ones(3)) == 0
    torch.vmap(f, in_dims=(1, None))(torch.ones(2, 3), torch.ones(2))
    assert found == [(1, 0), [(2,)] * 3]


def test_a_graph_is_broken_with_the_reason():
    def broken(x):
        internals.break_graph("the reason")
        return x + 1

    assert torch.compile(broken, backend="eager")(torch.ones(2)).tolist() == [2, 2]
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="the reason"):
        torch.compile(broken, backend="eager", fullgraph=True)(torch.ones(2))


def test_a_named_tuple_is_saved_by_export(tmp_path):
    class Part(torch.nn.Module):
        def forward(self, x):
            return Pair(x + 1, None)

    torch.export.save(torch.export.export(Part(), (torch.ones(2),)), tmp_path / "part.pt2")
    found = torch.export.load(tmp_path / "part.pt2").module()(torch.ones(2))
    assert isinstance(found, Pair)
    assert found.first.tolist() == [2, 2]
    assert found.second is None


def test_allocation_without_the_dispatcher():
    for kind in ("cpu", "meta"):
        found = internals.allocator(torch.device(kind))((2, 3), (1, 2), torch.bfloat16)
        assert (found.shape, found.stride(), found.dtype, found.device.type) == ((2, 3), (1, 2), torch.bfloat16, kind)
        assert not found.requires_grad
    with torch.inference_mode():
        assert internals.allocator(torch.device("cpu"))((2,), (1,), torch.float32).is_inference()
