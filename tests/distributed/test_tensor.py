"""Tensor parallelism: losses and gradients of networks divided over ranks are those of one process."""

import pytest
import torch
from support.networks import BART, GROUPED, MODELS, decoder, gradients, loss_of, made, objective_loss, worst_of
from support.processes import run_processes
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import parallelize_module

from limelight.distributed import tensor_plan
from limelight.models.new import new
from limelight.nn import SSRU, Cache, MixtureOfHeads
from limelight.tensors.shapes import ArgumentError

ALL = tuple(name for name in MODELS if name != "experts")
DECODERS = ("llama", "gpt2", "gemma2", "mixtral", "sinks", "alibi")
TRAINED = ("llama", "gpt2", "t5", "gemma2", "mixtral", "bart", "sinks")


def decoded(network):
    """The logits of a text whose last tokens come one by one, as in generation."""
    tokens, cache = torch.arange(2 * 12).view(2, 12) * 7 % 61, Cache()
    with torch.no_grad():
        parts = [network(some, cache=cache).logits for some in tokens.split((8, 1, 1, 1, 1), dim=1)]
    return torch.cat(parts, dim=1)


def compare(names):
    """On each rank: the relative differences of loss and gradients, and how much of the parameters a rank has."""
    found = {}
    for name in names:
        for loss in (loss_of, *([objective_loss] if name in TRAINED else [])):
            whole, cut = made(name).eval(), made(name).eval()
            expected = loss(whole)
            expected.backward()
            mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),), mesh_dim_names=("tensor",))
            parallelize_module(cut, mesh["tensor"], tensor_plan(cut, mesh.size()))
            ours = loss(cut)
            ours.backward()
            if name in DECODERS:
                torch.testing.assert_close(decoded(cut), decoded(whole), rtol=1e-5, atol=1e-5)
            worst = worst_of(gradients(cut), gradients(whole))
            held = sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in cut.parameters())
            share = held / sum(p.numel() for p in whole.parameters())
            found[name, loss.__name__] = abs(ours.item() / expected.item() - 1), worst, share
    return found


@pytest.mark.parametrize(("processes", "names"), [(2, ALL), (4, ("llama", "sinks"))])
def test_losses_and_gradients_are_those_of_one_process(processes, names):
    results = run_processes(compare, processes, names)
    for case, (loss, (gradient, name), share) in results[0].items():
        assert loss < 1e-5, (case, loss)
        assert gradient < 1e-5, (case, name, gradient)
        assert share < 0.61 if processes == 2 else share < 0.41, (case, share)
    assert {name for name, _ in results[0]} == {*names}


def refuse():
    network = decoder()
    mesh = init_device_mesh("cpu", (3,), mesh_dim_names=("tensor",))
    before = {name: id(parameter) for name, parameter in network.named_parameters()}
    with pytest.raises(ArgumentError, match=r"3 does not divide the 4 key-value heads of layers.0.attention.inner"):
        parallelize_module(network, mesh["tensor"], tensor_plan(network))
    assert before == {name: id(parameter) for name, parameter in network.named_parameters()}


def test_heads_that_do_not_divide_are_refused():
    run_processes(refuse, 3)
    with pytest.raises(ArgumentError, match=r"`size` must divide the key-value heads .* Use 1, 2, 4\."):
        tensor_plan(decoder(), 3)
    with pytest.raises(ArgumentError, match=r"2 does not divide the 49 feed-forward features of layers\.0"):
        tensor_plan(new("llama", **{**GROUPED, "intermediate_size": 49}), 2)


def test_parts_that_cannot_be_divided_are_refused_by_name():
    marian = new("marian", **BART)
    assert tensor_plan(marian)
    marian.layers[0].attention.inner = SSRU(32, query_heads=4, key_value_heads=4, head_width=8)
    with pytest.raises(ArgumentError, match=r"`network` must consist of .* layers.0.attention.inner: it is SSRU"):
        tensor_plan(marian)
    mixture = decoder()
    mixture.layers[1].attention.inner = MixtureOfHeads(
        32, query_heads=8, key_value_heads=4, head_width=4, shared=2, k=2
    )
    with pytest.raises(ArgumentError, match=r"layers.1.attention.inner: it is MixtureOfHeads"):
        tensor_plan(mixture)
