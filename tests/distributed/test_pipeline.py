"""Pipeline parallelism: losses and gradients of networks cut into stages are those of one process."""

import pytest
import torch
import torch.distributed as dist
from support.networks import BART, GROUPED, TEXT, decoder, gradients, made, worst_of
from support.processes import run_processes
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe, ScheduleInterleaved1F1B
from torch.distributed.tensor.parallel import parallelize_module
from torch.nn import functional

from limelight import Packed, Padded
from limelight.distributed import (
    ContextParallel,
    add_shared_gradients,
    make_mesh,
    parameter_mesh,
    patterns_of,
    shard,
    stages,
    tensor_plan,
)
from limelight.models.new import new
from limelight.tensors.shapes import ArgumentError

B, L = 8, 24
TOKENS = torch.arange(B * L).view(B, L) * 7 % 61
PADDED = Padded(torch.tensor([24, 3, 24, 10, 1, 24, 17, 20]))
FOUR = {"num_hidden_layers": 4}
DEEP = {
    "llama": lambda: new("llama", **GROUPED | FOUR),
    "qwen3, tied": lambda: new("qwen3", **GROUPED | FOUR, head_dim=8, tie_word_embeddings=True),
    "albert, deep": lambda: new("albert", **TEXT | FOUR, embedding_size=16, max_position_embeddings=64),
}


def network_of(name):
    """Equal in every process, without dropout."""
    torch.manual_seed(3)
    return (DEEP[name]() if name in DEEP else made(name)).eval()


def loss_of(output, targets):
    """Of logits; of states where there is no head."""
    if output.shape[2] == 61:
        return functional.cross_entropy(output.flatten(0, 1), targets.flatten())
    return (output * torch.arange(32.0).sin()).square().mean()


def compare(name, kind=Schedule1F1B, layout=None, count=2, **sizes):
    """The differences of the loss and of the gradients of this rank's stages, and the names that these have."""
    whole, cut = network_of(name), network_of(name)
    output = whole(TOKENS, layout=layout)
    expected = loss_of(output.states if output.logits is None else output.logits, TOKENS.roll(-1, 1))
    expected.backward()

    mesh = make_mesh("cpu", **({"stages": count} | sizes))
    tokens, targets, share, context = TOKENS, TOKENS.roll(-1, 1), 1.0, mesh["context"].get_group()
    if context.size() > 1:
        layout = ContextParallel.balanced(context, L, patterns=patterns_of(cut), layout=layout)
        tokens, targets, share = layout.mine(tokens), layout.mine(targets), len(layout.index) / L
    rank, ranks, own = mesh["stages"].get_local_rank(), mesh["stages"].size(), []
    parts = stages(cut, count)
    for number in range(rank, count, ranks):
        if mesh["tensor"].size() > 1:
            parallelize_module(parts[number], mesh["tensor"], tensor_plan(parts[number]))
        if mesh["shard"].size() > 1:
            shard(parts[number], parameter_mesh(mesh)["data", "shard"])
        group = mesh["stages"].get_group()
        own.append(PipelineStage(parts[number], number, count, torch.device("cpu"), group=group))
    schedule = kind(own if len(own) > 1 else own[0], 4, loss_fn=lambda *both: loss_of(*both) * share)

    inputs, losses = ([tokens] if own[0].is_first else []), []
    others = {"target": targets, "losses": losses} if own[-1].is_last else {}
    schedule.step(*inputs, **others, layout=layout, **({"rows": torch.arange(B)} if layout is PADDED else {}))
    add_shared_gradients(*own)

    first = {name: p.grad for name, p in whole.named_parameters(remove_duplicate=False)}
    found = {(stage.stage_index, name): g for stage in own for name, g in gradients(stage.submod).items()}
    if context.size() > 1:
        for gradient in found.values():
            dist.all_reduce(gradient, group=context)
    worst = worst_of(found, {key: first[key[1]] for key in found})
    loss = torch.stack(losses).mean() if own[-1].is_last else expected.detach()
    if own[-1].is_last and context.size() > 1:
        dist.all_reduce(loss, group=context)
    return abs(loss.item() / expected.item() - 1), worst, tuple(name for _, name in found)


def on_two_ranks():
    names = ("llama", "gpt2", "albert", "bert", "gemma2", "mixtral", "sinks", "alibi", "distances")
    return {name: compare(name) for name in names} | {
        "GPipe": compare("llama", ScheduleGPipe),
        "packed": compare("gpt2", layout=Packed((10, 14))),
        "padded": compare("bert", layout=PADDED),
        "four stages, tied": compare("qwen3, tied", ScheduleInterleaved1F1B, count=4, stages=2),
        "four stages, shared layers": compare("albert, deep", ScheduleInterleaved1F1B, count=4, stages=2),
    }


def on_four_ranks():
    return {name: compare(name, count=4) for name in DEEP} | {
        "tensor": compare("gpt2", tensor=2),
        "shard": compare("qwen3, tied", shard=2),
        "context": compare("sinks", layout=Packed((10, 14)), context=2),
    }


@pytest.mark.parametrize(("cases", "ranks"), [(on_two_ranks, 2), (on_four_ranks, 4)])
def test_losses_and_gradients_are_those_of_one_process(cases, ranks):
    results = run_processes(cases, ranks)
    for rank, found in enumerate(results):
        for case, (loss, (gradient, name), _) in found.items():
            assert loss < 1e-5, (rank, case, loss)
            assert gradient < 1e-5, (rank, case, name, gradient)
    layers = {name.split(".")[1] for name in results[-1]["llama"][2] if name.startswith("layers.")}
    assert layers == ({"3"} if ranks == 4 else {"2", "3"})


def test_stages_have_the_names_of_the_network():
    network = DEEP["qwen3, tied"]()
    parts = stages(network, 3)
    assert [list(part.layers) for part in parts] == [["0"], ["1", "2"], ["3"]]
    assert [part.attention_names for part in parts] == [
        ("layers.0.attention",),
        ("layers.1.attention", "layers.2.attention"),
        ("layers.3.attention",),
    ]
    names = [set(part.state_dict()) for part in parts]
    assert set.union(*names) == set(network.state_dict())
    assert names[0] & names[2] == {"embedding.tokens.weight"}
    assert {name: one.stages for name, one in parts[0].shared.items()} == {"embedding.tokens.weight": (0, 2)}
    assert [list(part.layers) for part in stages(network, 2, layers=(1, 3))] == [["0"], ["1", "2", "3"]]
    states = TOKENS
    for part in parts:
        states = part(states)
    torch.testing.assert_close(states, network(TOKENS).logits, rtol=0, atol=0)


def test_what_cannot_be_cut_is_refused():
    with pytest.raises(ArgumentError, match=r"`network` must be one stack of layers .* in every layer"):
        stages(new("bart", **BART), 2)
    with pytest.raises(ArgumentError, match=r"`count` must be at most the number of layers, but it is 3"):
        stages(decoder(), 3)
    with pytest.raises(ArgumentError, match=r"`layers` must have a number for each stage, .* \[2, 1\]"):
        stages(decoder(), 2, layers=(2, 1))
    with pytest.raises(ArgumentError, match=r"`inputs` must be the states \(B, L, 32\) of the stage before"):
        stages(decoder(), 2)[1](TOKENS)
