"""What depends on values is never recorded: the record would treat every input as the one it was made with."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from limelight import BackendError, nn
from limelight.models import recipe

LAYERS = {
    "experts": lambda: nn.MixtureOfExperts(16, inner=8, activation="silu", experts=4),
    "switch": lambda: nn.MixtureOfExperts(16, inner=8, activation="silu", experts=4, router=nn.Switch),
    "heads": lambda: nn.MixtureOfHeads(16, query_heads=4, key_value_heads=4, head_width=4, shared=1, k=2),
    "heads by their queries": lambda: nn.MixtureOfHeads(
        16, query_heads=4, key_value_heads=4, head_width=4, shared=1, k=2, router=nn.QueryNorm
    ),
    "inside": lambda: nn.Block(
        nn.PreNorm(nn.MultiHead(16, query_heads=4, key_value_heads=4, head_width=4), nn.RMSNorm(16)),
        nn.PreNorm(nn.MixtureOfExperts(16, inner=8, activation="silu", experts=4), nn.RMSNorm(16)),
    ),
}
RECORDERS = {
    "torch.jit.trace": torch.jit.trace,
    "make_fx": lambda layer, x: make_fx(layer)(x),
    "make_fx of functionalize": lambda layer, x: make_fx(torch.func.functionalize(layer))(x),
    "make_fx before dispatch": lambda layer, x: make_fx(layer, pre_dispatch=True)(x),
    "functionalize": lambda layer, x: torch.func.functionalize(layer)(x),
    "torch.export": lambda layer, x: torch.export.export(layer, (x,)),
}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("record", RECORDERS)
def test_recorders_are_refused(record, layer):
    made = LAYERS[layer]().eval()
    with pytest.raises(BackendError, match=r"^MixtureOf(Expert|Head)s cannot be recorded by .* depends on the values"):
        RECORDERS[record](made, torch.randn(2, 5, 16))


@pytest.mark.parametrize("layer", LAYERS)
def test_without_numbers_nothing_is_chosen(layer):
    made = LAYERS[layer]().to("meta")
    with pytest.raises(BackendError, match="cannot be recorded by the meta device"):
        made(torch.randn(2, 5, 16, device="meta"))


@pytest.mark.parametrize("layer", LAYERS)
def test_the_compiler_leaves_the_choice_to_python(layer):
    made = LAYERS[layer]().eval()
    compiled = torch.compile(made, backend="eager")
    with torch.no_grad():
        for x in torch.randn(3, 2, 5, 16):
            torch.testing.assert_close(compiled(x), made(x))


@pytest.mark.parametrize("layer", LAYERS)
def test_one_graph_of_everything_is_refused_with_the_reason(layer):
    torch._dynamo.reset()  # graphs of the same code, with breaks, would be run
    compiled = torch.compile(LAYERS[layer]().eval(), backend="eager", fullgraph=True)
    with torch.no_grad(), pytest.raises(torch._dynamo.exc.Unsupported, match=r"use torch\.compile without fullgraph"):
        compiled(torch.randn(2, 5, 16))


def test_whole_models():
    experts = recipe(nn.MixtureOfExperts, experts=4)
    network = torch.nn.Sequential(nn.TokenEmbedding(10, 16), experts(16, inner=8, activation="silu")).eval()
    with pytest.raises(BackendError, match=r"MixtureOfExperts cannot be recorded by torch\.jit\.trace"):
        torch.jit.trace(network, torch.randint(10, (1, 6)))
