"""Generation on several processes: the tokens, and their probabilities, are those of one process."""

import re

import pytest
import torch
import torch.distributed as dist
from support.networks import BART, GROUPED, T5, decoder
from support.processes import run_processes
from torch.distributed.tensor.parallel import parallelize_module

from limelight import Causal, KeyMask, Padded, Pretrained, Window
from limelight.distributed import ContextParallel, ContextParallelPrefill, make_mesh, patterns_of, tensor_plan
from limelight.forms.scores import T5Buckets
from limelight.generation import Beam, Sample
from limelight.models import recipe
from limelight.models.new import new
from limelight.nn import Cache, DistanceBias, Keep
from limelight.tensors.shapes import ArgumentError

LONG = GROUPED | {"max_position_embeddings": 512}
GPT2 = {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
MODELS = {
    "grouped heads": lambda: new("llama", **LONG),
    "biases, tied": lambda: new("gpt2", **GPT2),
    "windows, caps, tied": lambda: new("gemma2", **LONG, head_dim=8, query_pre_attn_scalar=8, sliding_window=100),
    "window and sinks": lambda: decoder(attention={"sink": True, "pattern": Causal() & Window(99, 0)}, limit=512),
    "distances": lambda: decoder(scores=recipe(DistanceBias, buckets=T5Buckets(8, 16)), limit=512),
    "experts": lambda: new("mixtral", **LONG, num_local_experts=4),
}
PROMPT = [(7 * n + n // 50) % 61 for n in range(420)]


def model_of(make):
    """A model that writes, with biases and sinks that matter; equal in every process."""
    torch.manual_seed(3)
    network = make().eval().requires_grad_(False)
    for name, parameter in network.named_parameters():
        if parameter.dim() == 1 and "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return Pretrained("tiny", network, "here", (), "it has none")


def written(model, **settings):
    """What is written after a long prompt, after two of different lengths, and by a beam and by chance."""
    return [
        *model.generate(PROMPT, tokens=6, logprobs=True, **settings),
        *model.generate([PROMPT, PROMPT[:3]], tokens=4, logprobs=True, **settings),
        *model.generate(PROMPT, Beam(3), tokens=4, logprobs=True, **settings),
        *model.generate(PROMPT, Sample(1.0), seed=1, copies=2, tokens=4, logprobs=True, **settings),
    ]


def apart(ours, theirs):
    """The largest difference of log-probabilities, infinite where a token differs."""
    if [one.ids for one in ours] != [one.ids for one in theirs]:
        return float("inf")
    return max(
        abs(a - b)
        for one, other in zip(ours, theirs, strict=True)
        for a, b in zip(one.logprobs, other.logprobs, strict=True)
    )


def compare(name, tensor, context):
    """The difference to one process."""
    mesh, model, cut = make_mesh("cpu", tensor=tensor, context=context), model_of(MODELS[name]), model_of(MODELS[name])
    settings = {}
    if tensor > 1:
        parallelize_module(cut.network, mesh["tensor"], tensor_plan(cut.network, tensor))
    if context > 1:
        settings["prefill"] = ContextParallelPrefill(mesh["context"], heads_at_once=1 if name == "experts" else None)
    return apart(written(cut, **settings), written(model))


def on_two_ranks():
    found = {(name, "context"): compare(name, 1, 2) for name in MODELS}
    return found | {(name, "tensor"): compare(name, 2, 1) for name in ("grouped heads", "biases, tied")}


def on_four_ranks():
    return {name: compare(name, 2, 2) for name in ("grouped heads", "biases, tied", "window and sinks")}


@pytest.mark.parametrize(("cases", "ranks"), [(on_two_ranks, 2), (on_four_ranks, 4)])
def test_texts_are_those_of_one_process(cases, ranks):
    for found in run_processes(cases, ranks):
        assert max(found.values()) < 1e-5, found


def read():
    """Differences of the logits after a divided prompt, its cache's bytes over those of a whole one, and refusals."""
    found = {}
    for name in ("grouped heads", "windows, caps, tied"):
        network = model_of(MODELS[name]).network
        for case, layout in (("whole", None), ("padded", Padded(torch.tensor([420, 300]), side="left"))):
            tokens, after = torch.tensor([PROMPT, PROMPT[::-1]]), torch.tensor([[3, 4], [5, 6]])
            spread = ContextParallel.balanced(dist.group.WORLD, 420, patterns=patterns_of(network), layout=layout)
            caches = Cache(), Cache()
            with torch.no_grad():
                network(tokens, layout=layout, cache=caches[0], logits=False)
                network(spread.mine(tokens), layout=spread, cache=caches[1], logits=False)
                expected, ours = (network(after, cache=cache).logits for cache in caches)
            found[name, case] = (expected - ours).abs().max().item(), caches[1].bytes / caches[0].bytes
    spread = ContextParallel.balanced(dist.group.WORLD, 420)
    mine, network, t5 = spread.mine(tokens), model_of(MODELS["grouped heads"]).network, new("t5", **T5)
    encoded = t5.encode(mine, layout=spread)
    calls = {
        "continued": lambda: network(mine, layout=spread, cache=caches[1]),
        "kept": lambda: network(mine, layout=spread, cache=Cache(keep=Keep(64))),
        "masked": lambda: network(
            mine,
            layout=ContextParallel(dist.group.WORLD, spread.runs, KeyMask(torch.ones(1, 420, dtype=torch.bool))),
            cache=Cache(),
        ),
        "cross": lambda: t5(mine, layout=spread, source=encoded, cache=Cache()),
        "encoder": lambda: model_of(lambda: new("bart", **BART)).generate(
            PROMPT[:20], tokens=2, target=[1], prefill=ContextParallelPrefill(dist.group.WORLD)
        ),
    }
    refusals = {}
    for name, call in calls.items():
        with torch.no_grad(), pytest.raises(ArgumentError) as raised:
            call()
        refusals[name] = str(raised.value)
    return found, refusals


REFUSALS = {
    "continued": "`cache` must be empty and keep every key .* it holds tokens",
    "kept": "`cache` must be empty and keep every key .* Keep",
    "masked": "`layout` must be Padded, with one set of lengths",
    "cross": "`layout` must be that of whole texts for cross-attention with a cache",
    "encoder": "`prefill` is for models without an encoder, but this is bart",
}


def test_a_cache_holds_a_divided_prompt_as_a_whole_one():
    for found, refusals in run_processes(read, 2):
        assert all(apart < 1e-5 and size == 1 for apart, size in found.values()), found
        for name, message in refusals.items():
            assert re.search(REFUSALS[name], message), message
