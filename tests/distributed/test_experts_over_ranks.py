"""Mixtures of experts over ranks: outputs and gradients are those of one process."""

import copy

import pytest
import torch
import torch.distributed as dist
from support.networks import decoder, made
from support.processes import run_processes

from limelight.distributed import ContextParallel, divide_experts, expert_mesh, make_mesh
from limelight.models import recipe
from limelight.nn import FeedForward, GatedFeedForward, MixtureOfExperts, Switch, TopK
from limelight.nn.experts import ExpertElsewhere
from limelight.tensors.shapes import ArgumentError

RANKS, EXPERTS, NEVER = 3, 6, 4
#: Router, shared experts, dtype, relative tolerance.
CASES = {
    "top 2": (recipe(TopK, k=2), None, torch.float64, 1e-12),
    "top 3, shared": (recipe(TopK, k=3), recipe(FeedForward, inner=8, activation="relu"), torch.float64, 1e-12),
    "full experts": (recipe(Switch, capacity=1), None, torch.float64, 1e-12),
    "bfloat16": (recipe(TopK, k=3), None, torch.bfloat16, 2e-2),
}
LENGTHS = ((4, 0, 3), (0, 0, 2))  # of the texts of each rank: one rank is empty, and then two


def layer_of(name):
    router, shared, dtype, _ = CASES[name]
    torch.manual_seed(0)
    layer = MixtureOfExperts(8, inner=12, activation="silu", experts=EXPERTS, router=router, shared=shared).to(dtype)
    layer.router.weight.data[NEVER] = -10.0  # of positive states no expert is chosen less
    return layer


def compared(name, lengths):
    """The relative differences of a rank's output and gradients from those of one process."""
    mesh = expert_mesh(make_mesh("cpu"), RANKS)["experts"]
    whole, rank = layer_of(name), dist.get_rank()
    cut = copy.deepcopy(whole)
    divide_experts(cut, mesh)
    dtype = CASES[name][2]
    texts = [torch.rand(2, n, 8, dtype=dtype, generator=torch.Generator().manual_seed(n)) for n in lengths]
    texts = [text.requires_grad_() for text in texts]
    theirs = [whole(text) for text in texts]
    sum((out * out.detach().sin()).sum() for out in theirs).backward()
    own = texts[rank].detach().clone().requires_grad_()
    ours = cut(own)
    (ours * ours.detach().sin()).sum().backward()
    shared = [cut.router.weight] if cut.shared is None else [cut.router.weight, *cut.shared.parameters()]
    for parameter in shared:
        dist.all_reduce(parameter.grad)
    pairs = {"output": (ours, theirs[rank]), "states": (own.grad, texts[rank].grad)}
    known = dict(whole.named_parameters())
    for key, parameter in cut.named_parameters():
        expected = known[key].grad  # None of an expert that no token has chosen
        pairs[key] = parameter.grad, torch.zeros_like(parameter) if expected is None else expected
    assert known[f"experts.{NEVER}.up.weight"].grad is None
    held = [n for n, expert in enumerate(cut.experts) if not isinstance(expert, ExpertElsewhere)]
    assert held == [2 * rank, 2 * rank + 1]
    assert ours.dtype == dtype
    return {key: ((a - b).norm() / b.norm().clamp(min=1e-3)).item() for key, (a, b) in pairs.items()}


def on_three_ranks():
    mesh = make_mesh("cpu")
    with pytest.raises(ArgumentError, match=r"`experts` must divide the number of processes, but 2 does not"):
        expert_mesh(mesh, 2)
    with pytest.raises(ArgumentError, match=r"`mesh.size\(\)` must divide the experts of every .* 3 .* 4 of l"):
        divide_experts(made("mixtral"), mesh["data"])
    with pytest.raises(ArgumentError, match=r"`mesh.size\(\)` must be 1 for a model without mixtures"):
        divide_experts(made("llama"), mesh["data"])
    dropping = recipe(GatedFeedForward, dropout=0.1)
    experts = recipe(MixtureOfExperts, inner=8, activation="silu", experts=4, expert=dropping)
    tokens, spread = torch.zeros(1, 600, dtype=torch.int64), ContextParallel.balanced(dist.group.WORLD, 600)
    with pytest.raises(ArgumentError, match="`layout` must be that of whole texts for dropout inside of experts"):
        decoder(feed_forward=experts, limit=None).train()(spread.mine(tokens), layout=spread)
    return {(name, lengths): compared(name, lengths) for name in CASES for lengths in LENGTHS}


def test_outputs_and_gradients_are_those_of_one_process():
    for found in run_processes(on_three_ranks, RANKS):
        for (name, lengths), differences in found.items():
            for key, difference in differences.items():
                assert difference <= CASES[name][3], (name, lengths, key)
