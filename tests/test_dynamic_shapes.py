"""Descriptions under torch.compile: made inside or outside, with constants or inputs in them, of any length."""

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import limelight
from limelight import (
    Additive,
    ALiBi,
    Aligned,
    Bias,
    Blocks,
    Causal,
    Explicit,
    KeyMask,
    Packed,
    Padded,
    Prefix,
    RelativeBias,
    SoftCap,
    T5Buckets,
    Window,
)
from limelight.nn import MultiHead

H, D, L = 4, 8, 6
torch.manual_seed(0)
# Of every description with a tensor in it: the tensor, and what a call makes of it.
MADE = {
    "slopes": (torch.rand(H), lambda t: {"scores": (ALiBi(t),)}),
    "slopes of rows": (torch.rand(2, H), lambda t: {"scores": (ALiBi(t),)}),
    "table": (torch.randn(H, 32), lambda t: {"scores": (RelativeBias(t), SoftCap(3.0))}),
    "table and buckets": (torch.randn(1, 8), lambda t: {"scores": (RelativeBias(t, T5Buckets(8, 6)),)}),
    "bias": (torch.randn(H, 1, 1), lambda t: {"scores": (Bias(t),)}),
    "vector": (torch.randn(H, D), lambda t: {"compare": Additive(t)}),
    "sink": (torch.randn(H), lambda t: {"sink": t}),
    "mask": (torch.rand(H, L, 1) < 0.7, lambda t: {"pattern": Causal() & Explicit(t)}),
    "blocks": (torch.rand(1, 3, 3) < 0.7, lambda t: {"pattern": Blocks(t, 2)}),
    "prefix": (torch.tensor([2, 4]), lambda t: {"pattern": Causal() | Prefix(t)}),
    "key mask": (torch.rand(1, L) < 0.7, lambda t: {"layout": KeyMask(t)}),
    "starts": (torch.tensor([3, 1]), lambda t: {"layout": Aligned(t), "pattern": Window(2, 0)}),
    "lengths": (torch.tensor([5, 6]), lambda t: {"layout": Padded(t), "pattern": Causal()}),
    "documents": (torch.tensor([2, 4]), lambda t: {"layout": Packed(t), "pattern": Causal()}),
}


class Inside(nn.Module):
    """Makes a new description in each call, from a tensor of its own."""

    def __init__(self, tensor, make):
        super().__init__()
        self.register_buffer("tensor", tensor)
        self.make = make

    def forward(self, x):
        return limelight.attention(x, x, x, **self.make(self.tensor))


class Outside(nn.Module):
    """Holds the description."""

    def __init__(self, tensor, make):
        super().__init__()
        self.settings = make(tensor)

    def forward(self, x):
        return limelight.attention(x, x, x, **self.settings)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", MADE)
def test_tensors_of_descriptions(name, dynamic):
    for kind in (Inside, Outside):
        torch._dynamo.reset()
        module, x = kind(*MADE[name]), torch.randn(2, H, L, D)
        f = torch.compile(module, backend="eager", fullgraph=True, dynamic=dynamic)
        torch.testing.assert_close(f(x), module(x), msg=kind.__name__)
    torch._dynamo.reset()
    tensor, make = MADE[name]
    given = lambda x, tensor: limelight.attention(x, x, x, **make(tensor))  # noqa: E731
    f = torch.compile(given, backend="eager", fullgraph=True, dynamic=dynamic)
    torch.testing.assert_close(f(x, tensor), given(x, tensor))


def test_many_lengths_take_two_graphs():
    """One for the first length, and one for all others."""
    slopes = nn.Parameter(torch.rand(H))
    forms = {
        "operator": lambda x: limelight.attention(x, x, x, pattern=Causal() & Window(3, 0), scores=(ALiBi(slopes),)),
        "standard slopes": lambda x: limelight.attention(x, x, x, scores=(ALiBi.standard(H),)),
        "rows and lengths": lambda x: limelight.attention(x, x, x, layout=Aligned(query_start=0), dropout=0.0),
    }
    for name, f in forms.items():
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("eager")
        compiled = torch.compile(f, backend=counter, fullgraph=True)
        for length in (5, 9, 17, 3, 40):
            x = torch.randn(2, H, length, D)
            torch.testing.assert_close(compiled(x), f(x), msg=name)
        assert counter.frame_count <= 2, name


@pytest.mark.parametrize(
    "settings", [{}, {"pattern": Causal()}, {"scores": (SoftCap(2.0),)}, {"pattern": Window(2, 0)}]
)
def test_training_with_dropout_compiles(settings):
    """Whatever lists of numbers and tensors the call has none of; seeds are drawn from torch's generator."""
    f = lambda q: limelight.attention(q, q, q, dropout=0.4, **settings)  # noqa: E731
    layer = MultiHead(
        16,
        query_heads=H,
        key_value_heads=2,
        head_width=4,
        dropout=0.4,
        **{k: v for k, v in settings.items() if k == "pattern"},
    ).train()
    for function, shape in ((f, (1, H, 12, D)), (layer, (1, 12, 16))):
        torch._dynamo.reset()
        x = torch.randn(shape, requires_grad=True)
        found = []
        for run in (torch.compile(function, backend="aot_eager", fullgraph=True), function):
            torch.manual_seed(3)
            found.append(torch.autograd.grad(run(x).square().sum(), x)[0])
        torch.testing.assert_close(*found)


def test_second_derivatives_of_a_recorded_dropout():
    """By the operators themselves, with a seed that is a tensor, so that there are no whole numbers in the call."""
    seed, x = torch.tensor(5), torch.randn(1, H, 7, D, dtype=torch.float64, requires_grad=True)
    f = lambda x: limelight.attention(x, x, x, dropout=0.4, seed=seed)  # noqa: E731

    def second(f):
        first = torch.autograd.grad(f(x).square().sum(), x, create_graph=True)[0]
        return torch.autograd.grad(first.square().sum(), x)[0]

    program = torch.export.export(Outside(seed, lambda t: {"dropout": 0.4, "seed": t}), (x,)).module()
    torch.testing.assert_close(second(program), second(f))


def test_a_predicate_is_exported_with_every_size_open():
    class Module(nn.Module):
        def forward(self, x, keys):
            rule = limelight.Predicate(lambda at: (at.query_position - at.key_position + at.head) % 3 != 0)
            return limelight.attention(x, x, x, layout=KeyMask(keys), pattern=rule)

    dim = torch.export.Dim
    sizes = {"x": {0: dim("B", max=64), 2: dim("L", max=512)}, "keys": {0: dim("B", max=64), 1: dim("L", max=512)}}
    program = torch.export.export(Module(), (torch.randn(3, H, 10, D), torch.ones(3, 10) > 0), dynamic_shapes=sizes)
    for B, length in ((3, 10), (1, 1), (5, 37)):
        x, keys = torch.randn(B, H, length, D), torch.rand(B, length) < 0.7
        torch.testing.assert_close(program.module()(x, keys), Module()(x, keys))
