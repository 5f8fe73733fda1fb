"""Every kind of tensor that PyTorch can make, as every tensor argument of the library.

``python -m support.odd_tensors ARGUMENT`` prints the outcome for each kind, and flushes each line before the next kind
is tried, so that a crash shows which one it was. `tests/test_operands.py` runs it.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

import limelight
from limelight import (
    Additive,
    ALiBi,
    Aligned,
    Bias,
    Blocks,
    Explicit,
    KeyMask,
    Observe,
    Packed,
    Padded,
    Paged,
    Prefix,
    RelativeBias,
    T5Buckets,
    fused,
)  # fmt: skip

q, k, v = torch.randn(1, 2, 5, 4), torch.randn(1, 2, 6, 4), torch.randn(1, 2, 6, 4)
pages = torch.randn(2, 2, 16, 4)
attend = limelight.attention


def sixteen(*sizes: int) -> Tensor:
    """A tensor in bfloat16, for which the products of many rows are left to PyTorch."""
    return torch.randn(sizes).bfloat16()


def _backward(grad: Tensor) -> Tensor:
    leaf = q.clone().requires_grad_()
    return torch.autograd.grad(attend(leaf, k, v, scores=(ALiBi(torch.ones(2)),)), leaf, grad)[0]


def _plain_backward(grad: Tensor) -> Tensor:
    leaf = q.clone().requires_grad_()
    return torch.autograd.grad(attend(leaf, k, v), leaf, grad)[0]


#: For each argument a valid tensor, and a call that takes a tensor in its place.
ARGUMENTS: dict[str, tuple[Tensor, Callable[[Tensor], object]]] = {
    "query": (q, lambda t: attend(t, k, v)),
    "query of the definition": (q, lambda t: attend(t, k, v, backend="reference")),
    "key": (k, lambda t: attend(q, t, v)),
    "value": (v, lambda t: attend(q, k, t)),
    "all three": (q, lambda t: attend(t, t, t)),
    "query with a gradient": (q, lambda t: attend(t, k.clone().requires_grad_(), v)),
    "sink": (torch.randn(2), lambda t: attend(q, k, v, sink=t)),
    "bias": (torch.randn(5, 6), lambda t: attend(q, k, v, scores=(Bias(t),))),
    "bias with a gradient": (torch.randn(5, 6), lambda t: attend(q.clone().requires_grad_(), k, v, scores=(Bias(t),))),
    "slopes": (torch.rand(2), lambda t: attend(q, k, v, scores=(ALiBi(t),))),
    "table": (torch.randn(2, 8), lambda t: attend(q, k, v, scores=(RelativeBias(t, T5Buckets(8, 6)),))),
    "vector": (torch.randn(4), lambda t: attend(q, k, v, compare=Additive(t))),
    "features": (torch.randn(6, 3), lambda t: attend(q, k, v, observe=Observe(features=t))[1].features),
    "rows": (torch.tensor([1, 3]), lambda t: attend(q, k, v, observe=Observe(rows=t))[1].rows),
    "pairs": (torch.tensor([[1, 3]]), lambda t: attend(q, k, v, observe=Observe(pairs=t))[1].pairs),
    "seed": (torch.tensor(5), lambda t: attend(q, k, v, dropout=0.5, seed=t)),
    "key mask": (torch.ones(1, 6, dtype=torch.bool), lambda t: attend(q, k, v, layout=KeyMask(t))),
    "packed": (torch.tensor([2, 3]), lambda t: attend(q, k, v, layout=Packed(t, (3, 3)))),
    "keys in pages": (pages, lambda t: attend(q, t, pages, layout=Paged((5,), (20,), [[1, 0]]))),
    "values in pages": (pages, lambda t: attend(q, pages, t, layout=Paged((5,), (20,), [[1, 0]]))),
    "page table": (torch.tensor([[1, 0]]), lambda t: attend(q, pages, pages, layout=Paged((5,), (20,), t))),
    "paged": (torch.tensor([20]), lambda t: attend(q, pages, pages, layout=Paged((5,), t, [[1, 0]]))),
    "padded": (torch.tensor([5]), lambda t: attend(q, k, v, layout=Padded(t, 6))),
    "aligned": (torch.tensor([5]), lambda t: attend(q, k, v, layout=Aligned(t))),
    "explicit": (torch.ones(5, 6, dtype=torch.bool), lambda t: attend(q, k, v, pattern=Explicit(t))),
    "blocks": (torch.ones(3, 3, dtype=torch.bool), lambda t: attend(q, k, v, pattern=Blocks(t, 2))),
    "prefix": (torch.tensor([2]), lambda t: attend(q, k, v, pattern=Prefix(t))),
    "gradient": (torch.randn(1, 2, 5, 4), _backward),
    "gradient of a plain call": (torch.randn(1, 2, 5, 4), _plain_backward),
    "states of a norm": (torch.randn(3, 8), lambda t: fused.rms_norm(t, torch.ones(8), 1e-6)),
    "weight of a norm": (torch.randn(8), lambda t: fused.rms_norm(torch.ones(3, 8), t, 1e-6)),
    "states of a product": (torch.randn(3, 8), lambda t: fused.product(t, torch.ones(4, 8), torch.ones(4))),
    "weight of a product": (torch.randn(4, 8), lambda t: fused.product(torch.ones(3, 8), t, torch.ones(4))),
    "bias of a product": (torch.randn(4), lambda t: fused.product(torch.ones(3, 8), torch.ones(4, 8), t)),
    "rows of a product": (torch.randn(20, 8), lambda t: fused.product(t, torch.ones(4, 8), torch.ones(4))),
    "left": (torch.randn(20, 8), lambda t: fused.matmul(t, torch.ones(8, 4))),
    "out": (torch.zeros(20, 4), lambda t: fused.matmul(torch.ones(20, 8), torch.ones(8, 4), out=t)),
    "gate": (torch.randn(3, 8), lambda t: fused.gated(functional.silu, t, torch.ones(3, 8))),
    "gate of another function": (torch.randn(3, 8), lambda t: fused.gated(functional.relu, t, torch.ones(3, 8))),
    "x of the GELU": (torch.randn(3, 8), lambda t: torch.ones(3, 8) * fused.gelu_tanh(t)),
    "states in 16 bits": (sixteen(20, 8), lambda t: fused.product(t, sixteen(4, 8).fill_(1))),
    "left in 16 bits": (sixteen(20, 8), lambda t: fused.matmul(t, sixteen(8, 4).fill_(1))),
    "right in 16 bits": (sixteen(8, 4), lambda t: fused.matmul(sixteen(20, 8).fill_(1), t)),
    "states of a norm beside a wide weight": (
        sixteen(3, 8), lambda t: fused.rms_norm(t, torch.ones(8), 1e-6, 1.0),
    ),
    "heads beside narrow tables": (
        torch.randn(1, 2, 3, 4), lambda t: fused.rotate_halves(t, *sixteen(2, 1, 1, 3, 4).fill_(1)),
    ),
    "heads": (torch.randn(1, 2, 3, 4), lambda t: fused.rotate_halves(t, *torch.ones(2, 1, 1, 3, 4))),
    "own": (torch.randn(1, 1, 3, 4), lambda t: fused.rotate_halves(torch.ones(1, 2, 3, 4), t, torch.ones(1, 1, 3, 4))),
}  # fmt: skip


#: Those of `limelight.fused`.
STEPS = list(ARGUMENTS)[list(ARGUMENTS).index("states of a norm") :]


class Subclass(Tensor):
    """A subclass without a mind of its own."""


def _resized(tensor: Tensor, share: int) -> Tensor:
    held = tensor.untyped_storage()
    held.resize_(share * held.nbytes() // 4)
    return tensor


def _escaped(transform: Callable[..., Callable[..., object]]) -> Callable[[Tensor], Tensor]:
    def make(tensor: Tensor) -> Tensor:
        caught: list[Tensor] = []
        transform(lambda t: (caught.append(t), t.sum())[1])(tensor)
        return caught[0]

    return make


def _fake(tensor: Tensor) -> Tensor:
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode().from_tensor(tensor)


def _distributed(tensor: Tensor) -> Tensor:
    import torch.distributed as dist
    from torch.distributed.tensor import DTensor, Replicate

    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    return DTensor.from_local(tensor, dist.device_mesh.init_device_mesh("cpu", (1,)), [Replicate()])


def _lazily_negated(tensor: Tensor) -> Tensor:
    return torch._neg_view(-tensor) if tensor.dtype != torch.bool else tensor


KINDS: dict[str, Callable[[Tensor], object]] = {
    "plain": lambda t: t,
    "parameter": lambda t: torch.nn.Parameter(t, requires_grad=False),
    "negated": _lazily_negated,
    "imaginary part": lambda t: torch.complex(torch.zeros_like(t), -t).conj().imag,
    "lazily cloned": torch._lazy_clone,
    "inference": lambda t: torch.inference_mode()(t.clone)(),
    "zeros without memory": lambda t: torch._efficientzerotensor(t.shape, dtype=t.dtype),
    "freed": lambda t: _resized(t, 0),
    "shrunk": lambda t: _resized(t, 2),
    "subclass": lambda t: t.as_subclass(Subclass),
    "fake": _fake,
    "distributed": _distributed,
    "masked": lambda t: torch.masked.masked_tensor(t, torch.ones_like(t, dtype=torch.bool)),
    "meta": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse(),
    "sparse rows": lambda t: t.to_sparse_csr(),
    "mkldnn": lambda t: t.to_mkldnn(),
    "nested": lambda t: torch.nested.nested_tensor(list(t) if t.dim() else [t]),
    "jagged": lambda t: torch.nested.nested_tensor(list(t), layout=torch.jagged),
    "quantized": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    "of vmap": _escaped(torch.vmap),
    "of grad": _escaped(torch.func.grad),
    "of functionalize": _escaped(torch.func.functionalize),
    "complex": lambda t: t.to(torch.complex64),
    "uninitialized": lambda t: torch.nn.UninitializedParameter(),
    "class": lambda t: torch.nn.Parameter,
    "a list": lambda t: t.tolist(),
}  # fmt: skip


def main(argument: str) -> None:
    """Print a line for each kind."""
    warnings.simplefilter("ignore")
    good, call = ARGUMENTS[argument]
    for kind, make in KINDS.items():
        torch.manual_seed(0)
        want = call(good)
        try:
            odd = make(good.clone())
        except Exception:
            print(f"{kind}: cannot be made", flush=True)
            continue
        try:
            found = call(odd)  # type: ignore[arg-type]
        except Exception as error:
            print(f"{kind}: {type(error).__name__}: {' '.join(str(error).split())[:150]}", flush=True)
            continue
        if type(found) not in (Tensor, torch.nn.Parameter) or not found.is_cpu:
            print(f"{kind}: a {type(found).__name__}", flush=True)
            continue
        if found.dtype is not good.dtype and good.is_floating_point():
            print(f"{kind}: as PyTorch's own operations, {found.dtype}", flush=True)
            continue
        if kind == "zeros without memory":
            want = call(torch.zeros_like(good))
        close = torch.allclose(found, want, atol=1e-5, equal_nan=True)  # type: ignore[arg-type]
        print(f"{kind}: {'right' if close else 'WRONG'}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
