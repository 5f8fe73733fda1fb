"""One token by itself goes another way to the same numbers."""

import pytest
import torch

from limelight.nn import Projection
from limelight.nn.projection import together
from limelight.tensors.shapes import ArgumentError


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_token_is_as_exact_as_several(dtype, bias):
    torch.manual_seed(0)
    layer = Projection(193, 77, bias).to(dtype)
    states = torch.randn(1, 5, 193).to(dtype)
    truth = torch.nn.functional.linear(states.double(), layer.weight.double(), layer.bias.double() if bias else None)
    together = layer(states)
    alone = torch.cat([layer(states[:, i : i + 1]) for i in range(5)], dim=1)
    assert alone.shape == together.shape == (1, 5, 77)
    step = torch.finfo(dtype).eps * truth.abs().max()
    assert (alone - truth).abs().max() <= 1.5 * (together - truth).abs().max() + step
    assert torch.equal(layer(states[0, 0]), alone[0, 0])


def test_one_token_has_gradients():
    layer, states = Projection(6, 4).double(), torch.randn(1, 1, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, states)
    assert torch.autograd.gradcheck(lambda weight: torch.func.functional_call(layer, {"weight": weight}, states),
                                    layer.weight.detach().requires_grad_())  # fmt: skip


def test_autocast_and_other_dtypes_go_the_usual_way():
    layer = Projection(6, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(1, 1, 6)).dtype == torch.bfloat16
    with pytest.raises(ArgumentError, match="`states` must be a float32"):
        layer(torch.randn(1, 1, 6).double())


def test_layers_that_read_the_same_are_called_together_unless_somebody_looks():
    torch.manual_seed(0)
    layers, states = [Projection(40, 8), Projection(40, 6, False), Projection(40, 50)], torch.randn(2, 3, 40)
    with torch.no_grad():
        expected = [layer(states) for layer in layers]
        for found, one in zip(together(states, *layers), expected, strict=True):
            assert torch.equal(found, one)
        seen = []
        layers[1].register_forward_hook(lambda *_: seen.append(1))
        layers[2] = torch.nn.Sequential(layers[2], torch.nn.Identity())
        for found, one in zip(together(states, *layers), expected, strict=True):
            assert torch.equal(found, one)
        assert seen == [1]
    many = torch.randn(5, 40, 40, requires_grad=True)
    together(many, *layers)[2].sum().backward()
    assert many.grad is not None
