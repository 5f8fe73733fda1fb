"""Sharded parameters: losses, gradients and steps are those of one process."""

import pytest
import torch
from support.networks import batch_of, gradients, made, worst_of
from support.processes import run_processes
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import parallelize_module

from limelight.distributed import expert_mesh, make_mesh, parameter_mesh, shard, tensor_plan
from limelight.distributed.sharded import clip_gradients
from limelight.tensors.shapes import ArgumentError
from limelight.training import Objective, adamw

ADAMW = {"rate": 1e-2, "weight_decay": 0.1, "betas": (0.9, 0.95), "epsilon": 1e-8}


def loss_of(name, network, objective, number):
    """The loss of training on batch ``number``; of networks that are not trained, of their states."""
    if name in ("albert", "bert"):
        states = objective(batch_of(network, number).tokens).states
        return (states * torch.arange(32.0).sin()).square().mean()
    return objective(batch_of(network, number)) / 24


def wrapped(name, network):
    return network if name in ("albert", "bert") else Objective(network, label_smoothing=0.1).train()


def compare(name, **sizes):
    """The differences of the loss, the gradients, their norm and the weights after a step."""
    whole, cut = made(name), made(name)
    mesh = make_mesh("cpu", **sizes)
    objective, sharded = wrapped(name, whole), wrapped(name, cut)
    if sizes.get("tensor", 1) > 1:
        parallelize_module(cut, mesh["tensor"], tensor_plan(cut))
    assert shard(sharded, mesh["data", "shard"]) is sharded
    assert all(isinstance(parameter, DTensor) for parameter in cut.parameters())
    ranks = mesh["data"].size() * mesh["shard"].size()
    number = mesh["data"].get_local_rank() * mesh["shard"].size() + mesh["shard"].get_local_rank()
    losses = [loss_of(name, whole, objective, one) for one in range(ranks)]
    for loss in losses:  # one after the other: a tied table has several gradients from each
        (loss / ranks).backward()
    ours = loss_of(name, cut, sharded, number)
    ours.backward()
    for theirs, parameter in zip(whole.parameters(), cut.parameters(), strict=True):
        if theirs.grad is None:  # of an expert without tokens on any rank
            assert name == "experts"
            assert not parameter.grad.full_tensor().any()
            theirs.grad = torch.zeros_like(theirs)
    difference = abs(ours.item() / losses[number].item() - 1)
    bits = all(torch.equal(g, gradients(whole)[n]) for n, g in gradients(cut).items() if g is not None)
    worst = worst_of(gradients(cut), gradients(whole))
    optimizers = [adamw(network, **ADAMW) for network in (whole, cut)]
    norms = torch.nn.utils.clip_grad_norm_(whole.parameters(), 0.5).item(), clip_gradients(cut, 0.5)
    for optimizer in optimizers:
        optimizer.step()
    theirs = dict(whole.named_parameters())
    moved = max((p.full_tensor() - theirs[n]).abs().max().item() for n, p in cut.named_parameters())
    return difference, bits, worst, abs(norms[1] / norms[0] - 1), moved


def on_two_ranks():
    names = ("llama", "gpt2", "albert", "t5", "mixtral", "experts")
    return {name: compare(name, shard=2) for name in names}


def test_two_shards_have_the_bits_of_one_process():
    for name, (loss, bits, (gradient, _), norm, moved) in run_processes(on_two_ranks, 2)[0].items():
        assert loss == 0.0, name
        # what the layers of a decoder add to the gradient of an encoder's states, autograd adds in another order
        assert gradient < 1e-6 if name == "t5" else bits, (name, gradient)
        assert norm < 1e-6, name
        assert moved < 1e-5, name  # a thousandth of the step; AdamW divides small gradients by themselves


def on_four_ranks():
    with pytest.raises(ArgumentError, match=r"`shard` must divide the number of processes, but 3 does not"):
        make_mesh("cpu", shard=3)
    with pytest.raises(ArgumentError, match=r"`shard \* tensor` must .*2 \* 4 = 8 does not divide 4"):
        make_mesh("cpu", shard=2, tensor=4)
    mesh = make_mesh("cpu", shard=2, context=2)
    assert parameter_mesh(mesh)["data", "shard"].mesh.tolist() == [[0, 1, 2, 3]]
    assert expert_mesh(mesh, 2).mesh.flatten(-2).tolist() == [[[[0, 1], [2, 3]]]]  # stages, data, shard, experts
    mesh = make_mesh("cpu", tensor=2)
    assert parameter_mesh(mesh) is mesh
    assert expert_mesh(mesh, 2).mesh.tolist() == [[[[[0, 1], [2, 3]]]]]
    cases = {}
    for name in ("t5", "qwen3"):
        cases[name, "shard, tensor"] = compare(name, shard=2, tensor=2)
    return cases | {
        ("sinks", "data, tensor"): compare("sinks", tensor=2),
        ("gpt2", "data, shard"): compare("gpt2", shard=2),
    }


def test_four_ranks_of_shards_replicas_and_tensor_parallelism():
    for case, (loss, _, (gradient, name), norm, moved) in run_processes(on_four_ranks, 4)[0].items():
        assert loss < 1e-5, case
        assert gradient < 1e-5, (case, name)
        assert norm < 1e-5, case
        assert moved < 1e-4, case
