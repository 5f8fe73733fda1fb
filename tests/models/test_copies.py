"""A copied model computes the same bits by the same ways; nothing in it is known by its identity."""

import copy
import io
import pickle

import pytest
import torch
from support.peers import EVERY, PICTURES, given, made

from limelight import ArgumentError, fused
from limelight.checkpoints.load import load
from limelight.nn import ACTIVATIONS, Cache, FeedForward, GatedFeedForward
from limelight.nn.capture import Graph


def by_torch_save(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def assigned(module):
    twin = copy.deepcopy(module)
    twin.load_state_dict({name: values.clone() for name, values in module.state_dict().items()}, assign=True)
    return twin


WAYS = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "torch.save": by_torch_save,
    "assign": assigned,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("make", [FeedForward, GatedFeedForward])
def test_a_copy_computes_its_activation_the_same_way(make, activation, way):
    layer = make(8, inner=12, activation=activation)
    assert (WAYS[way](layer).activation in fused.SIGMOID_FORMS) == (layer.activation in fused.SIGMOID_FORMS)
    states = torch.randn(1, 3, 8)
    assert torch.equal(WAYS[way](layer)(states), layer(states))


def test_the_gates_that_the_library_computes():
    names = {name for name, function in ACTIVATIONS.items() if function in fused.SIGMOID_FORMS}
    assert names == {"silu", "swish", "gelu_fast", "gelu_new", "gelu_pytorch_tanh"}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", [name for name in EVERY if name not in PICTURES])
def test_a_copied_model(tmp_path, name, way):
    theirs = made(name)
    theirs.save_pretrained(tmp_path)
    network = load(tmp_path).network
    inputs, more, *_ = given(name, theirs.float())
    with torch.no_grad():
        first, other = network(*inputs, **more), WAYS[way](network)
        second = other(*inputs, **more)
    assert torch.equal(first.states, second.states)
    assert first.logits is None or torch.equal(first.logits, second.logits)
    assert {p.data_ptr() for p in network.parameters()}.isdisjoint(p.data_ptr() for p in other.parameters())


@pytest.fixture
def llama(tmp_path):
    made("llama").save_pretrained(tmp_path)
    return load(tmp_path).network


IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])


def begun(network):
    """A cache after four tokens, the last of them replayed."""
    cache = Cache()
    with torch.no_grad():
        network(IDS[:, :2], cache=cache)
        network(IDS[:, 2:3], cache=cache)
        network(IDS[:, 3:4], cache=cache)
    assert any(isinstance(one, Graph) and not one.reason for one in cache._graphs.values()), "nothing was captured"
    return cache


def test_a_copied_cache_goes_on_apart(llama):
    with torch.no_grad():
        whole = llama(IDS).states
        cache = begun(llama)
        twin = copy.deepcopy(cache)
        other = llama(torch.tensor([[1]]), cache=cache).states
        again = llama(IDS[:, 4:5], cache=twin).states
    torch.testing.assert_close(again[0, 0], whole[0, 4])
    assert not torch.allclose(other[0, 0], whole[0, 4])


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_a_cache_copied_with_its_model(llama, way):
    network, cache = WAYS[way]((llama, begun(llama)))
    with torch.no_grad():
        torch.testing.assert_close(network(IDS[:, 4:5], cache=cache).states[0, 0], llama(IDS).states[0, 4])


def test_a_cache_of_other_layers(llama):
    cache = pickle.loads(pickle.dumps(begun(llama)))
    assert not cache._graphs  # they hold addresses
    with pytest.raises(ArgumentError, match=r"`cache` must have been filled by the layers .* 4 tokens"):
        llama(IDS[:, 4:5], cache=cache)
