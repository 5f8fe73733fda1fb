"""Whole models whose tokens lie on several processes: states, logits and gradients are those of one process."""

import re
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from support.processes import run_processes

from limelight import Causal, KeyMask, Packed, Padded, Window
from limelight.distributed import ContextParallel, exchange, patterns_of
from limelight.forms.layouts import Subset
from limelight.models import DecoderOnly, EncoderDecoder, recipe
from limelight.models.new import new
from limelight.nn import (
    SSRU,
    ClassHead,
    DynamicNTK,
    LinearBias,
    MixtureOfExperts,
    MixtureOfHeads,
    Rotary,
    Sinusoids,
    SpectrumEmbedding,
    Switch,
)
from limelight.tensors.shapes import ArgumentError

LENGTH, SOURCE = 1000, 500
TEXT = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT |= {"max_position_embeddings": LENGTH}
GROUPED = TEXT | {"num_key_value_heads": 2}
T5 = {"vocab_size": 61, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
BART = {"vocab_size": 61, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "max_position_embeddings": LENGTH}
BART |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 40, "decoder_ffn_dim": 40}


def decoder(*attentions, **changes):
    """A Llama of other recipes: settings of the attention of each layer, fields of its configuration."""
    config = new("llama", **GROUPED).config
    if "attention" in changes:
        return DecoderOnly(replace(config, **changes))
    recipes = tuple(
        recipe(one.make, **{**dict(one.settings), **given})
        for one, given in zip(config.attentions, attentions or ({}, {}), strict=True)
    )
    return DecoderOnly(replace(config, attention=recipes, **changes))


def windows_and_sinks():
    return decoder({"sink": True, "pattern": Causal() & Window(99, None)}, {"sink": True})


def growing():
    return decoder(*[{"rotary": Rotary(8, scaling=DynamicNTK(4.0, 200))}] * 2, limit=None)


PACKED = Packed((300, 1, 450, 0, 249))
PADDED = Padded(torch.tensor([700, LENGTH]))
MASKED = KeyMask(torch.arange(LENGTH)[None] % 7 != 3)
#: The network, the layout of its tokens, that of its source.
CASES = {
    "llama": (lambda: new("llama", **GROUPED), None, None),
    "llama, packed": (lambda: new("llama", **GROUPED), PACKED, None),
    "llama, growing base": (growing, None, None),
    "llama, ALiBi": (lambda: decoder(scores=recipe(LinearBias)), PACKED, None),
    "windows and sinks": (windows_and_sinks, None, None),
    "windows and sinks, packed": (windows_and_sinks, PACKED, None),
    "gpt2": (lambda: new("gpt2", vocab_size=61, n_embd=32, n_layer=2, n_head=4, n_positions=LENGTH), None, None),
    "gpt2, packed": (lambda: new("gpt2", vocab_size=61, n_embd=32, n_layer=2, n_head=4, n_positions=450), PACKED, None),
    "gemma2": (lambda: new("gemma2", **GROUPED, head_dim=8, query_pre_attn_scalar=8, sliding_window=64), None, None),
    "mistral": (lambda: new("mistral", **GROUPED, sliding_window=128), None, None),
    "mixtral": (lambda: new("mixtral", **GROUPED, num_local_experts=4), None, None),
    "bert": (lambda: new("bert", **TEXT), PADDED, None),
    "albert": (lambda: new("albert", **TEXT, embedding_size=16), MASKED, None),
    "t5": (lambda: new("t5", **T5), None, None),
    "t5, padded": (lambda: new("t5", **T5), None, Padded(torch.tensor([500, 30]))),
    "t5, packed": (lambda: new("t5", **T5), PACKED, Packed((20, 300, 1, 2, 177))),
    "bart": (lambda: new("bart", **BART), PADDED, Padded(torch.tensor([500, 30]))),
}  # fmt: skip


def made(network):
    """A network without dropout, with sinks and biases that matter; equal in every process."""
    torch.manual_seed(3)
    network = network().eval()
    for name, parameter in network.named_parameters():
        if parameter.dim() == 1 and "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return network


def runs_of(length, layout=None, patterns=(None,)):
    return ContextParallel.balanced(dist.group.WORLD, length, patterns=patterns, layout=layout)


def inputs_of(name):
    """The network of a case; tokens, targets and weights of the loss; the source."""
    network, (_, layout, _) = made(CASES[name][0]), CASES[name]
    tokens = torch.randint(61, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    exists = torch.ones(2, LENGTH)
    if isinstance(layout, Padded):
        exists = layout.coordinates(2, LENGTH, LENGTH, torch.device("cpu")).query_exists.float()
    source = tokens[:, :SOURCE].flip(1) if isinstance(network, EncoderDecoder) else None
    return network, (tokens, tokens.roll(-1, 1), exists), source


def output_and_gradients(network, tokens, targets, exists, **others):
    """Logits, or states without a head, and the gradients of a sum over the existing tokens."""
    output = network(tokens, **others)
    loss = (output.states * torch.arange(32.0).sin()).square().sum(-1)
    if output.logits is not None:
        loss = loss + torch.nn.functional.cross_entropy(output.logits.transpose(1, 2), targets, reduction="none")
    gradients = torch.autograd.grad((loss * exists).sum(), list(network.parameters()))
    return (output.states if output.logits is None else output.logits).detach(), gradients


def whole(name):
    """A case in one process."""
    network, inputs, source = inputs_of(name)
    encoder = {} if source is None else {"source": source, "source_layout": CASES[name][2]}
    return output_and_gradients(network, *inputs, layout=CASES[name][1], **encoder)


def over_ranks(name, expected, gradients):
    """Whether a case's outputs are equal to the bit, their largest difference, and that of gradients."""
    network, inputs, source = inputs_of(name)
    spread = runs_of(LENGTH, CASES[name][1], patterns_of(network))
    assert 0 < len(spread.index) < LENGTH / 2
    encoder = {}
    if source is not None:
        there = runs_of(SOURCE, CASES[name][2], patterns_of(network.encoder))
        encoder = {"source": there.mine(source), "source_layout": there}
    inputs = [spread.mine(x) for x in inputs]
    output, ours = output_and_gradients(network, *inputs, layout=spread, **encoder)
    for gradient in ours:
        dist.all_reduce(gradient)
    apart = (output - spread.mine(expected))[inputs[2].bool()].abs()
    least = 1e-3 * torch.stack([g.norm() for g in gradients]).norm()  # that of a key's bias is 0 but for rounding
    worst = max(((a - b).norm() / b.norm().clamp(min=least)).item() for a, b in zip(ours, gradients, strict=True))
    return bool((apart == 0).all()), apart.max().item() if apart.numel() else 0.0, worst


def compare(names):
    """All cases; each is computed in one process by one of the ranks."""
    known = [None] * dist.get_world_size()
    dist.all_gather_object(known, {name: whole(name) for name in names[dist.get_rank() :: len(known)]})
    return {name: over_ranks(name, *one[name]) for one in known for name in one}


def products_of_rows():
    """Whether this machine's matrix products of some rows are those of all rows, to the bit."""
    x, weight = torch.randn(2, LENGTH, 32), torch.randn(61, 32)
    return all(torch.equal((x @ weight.T)[:, :n], x[:, :n].contiguous() @ weight.T) for n in (192, 257))


def short(name):
    """A text of five tokens in runs of any kind, one rank empty: the largest difference."""
    network = made(CASES[name][0])
    tokens = torch.arange(10).view(2, 5)
    spread = ContextParallel(dist.group.WORLD, (((1, 2), (4, 5)), (), ((0, 1), (2, 3)), ((3, 4),)))
    others = [{}, {}]
    if isinstance(network, EncoderDecoder):
        runs = ContextParallel(dist.group.WORLD, ((), ((2, 4),), ((0, 2),), ()))
        others = [{"source": tokens[:, :4]}, {"source": runs.mine(tokens[:, :4]), "source_layout": runs}]
    ours = spread.whole(network(spread.mine(tokens), layout=spread, **others[1]).states)
    return (ours - network(tokens, **others[0]).states).abs().max().item()


def refused():
    """The message of each refusal, and how many keys were exchanged before."""
    spread = runs_of(600)
    tokens = spread.mine(torch.zeros(1, 600, dtype=torch.int64))
    states = torch.zeros(*tokens.shape, 32)
    heads = {"query_heads": 4, "key_value_heads": 4, "head_width": 8}
    experts = recipe(MixtureOfExperts, inner=8, activation="silu", experts=4, router=Switch)
    mixture = recipe(MixtureOfHeads, shared=0, k=2)
    t5, bart = new("t5", **T5), new("bart", **BART)
    classes = decoder(head=recipe(ClassHead, labels=("a", "b"), activation=None))
    encoded = t5.encode(tokens, layout=spread)
    calls = {
        "SSRU": lambda: SSRU(32, **heads)(states, spread),
        "SSRU, a model": lambda: decoder(attention=recipe(SSRU))(tokens, layout=spread),
        "Switch": lambda: decoder(feed_forward=experts)(tokens, layout=spread),
        "MixtureOfHeads": lambda: MixtureOfHeads(32, shared=0, k=2, **heads)(states, spread),
        "MixtureOfHeads, a model": lambda: decoder(attention=mixture)(tokens, layout=spread),
        "Subset": lambda: Subset(torch.zeros(1, 1, dtype=torch.int64), 600, spread),
        "ClassHead": lambda: classes(tokens, layout=spread),
        "FrontEnd": lambda: decoder(embedding=recipe(SpectrumEmbedding, bands=3, positions=Sinusoids))(
            torch.zeros(1, 3, 2 * tokens.shape[1]), layout=spread
        ),
        "the source in one process": lambda: t5(tokens, source=tokens, layout=spread),
        "the tokens in one process": lambda: t5(tokens, source=encoded),
        "documents without their sources": lambda: bart(
            tokens, layout=runs_of(600, Packed((300, 300))), source=tokens, source_layout=spread
        ),
        "positions": lambda: decoder(limit=599)(tokens, layout=spread),
    }
    assert classes(tokens, layout=spread, logits=False).logits is None
    found = {}
    for name, call in calls.items():
        with pytest.raises(ArgumentError) as raised, Exchanges() as made_before:
            call()
        found[name] = str(raised.value), made_before.count
    return found


class Exchanges:
    """Counts the exchanges made inside."""

    def __enter__(self):
        self.count, self.real = 0, exchange._all_to_all

        def counting(*arguments):
            self.count += 1
            return self.real(*arguments)

        exchange._all_to_all = counting
        return self

    def __exit__(self, *_):
        exchange._all_to_all = self.real


def everything(names):
    return compare(names), {name: short(name) for name in SHORT}, refused(), products_of_rows()


SHORT = ("llama", "gpt2", "mixtral", "windows and sinks", "t5")


@pytest.fixture(scope="module")
def results():
    return run_processes(everything, 4, tuple(CASES))


@pytest.mark.parametrize("name", CASES)
def test_outputs_and_gradients_are_those_of_one_process(results, name):
    for rank, (compared, _, _, products) in enumerate(results):
        same_bits, apart, gradient = compared[name]
        assert apart < 1e-5, rank
        assert gradient < 1e-5, rank
        assert same_bits or not products, rank


@pytest.mark.parametrize("name", SHORT)
def test_a_rank_may_be_empty(results, name):
    assert max(found[name] for _, found, _, _ in results) < 1e-5


REFUSALS = {
    "SSRU": "whole texts for SSRU, .* its state goes from each token to the next",
    "SSRU, a model": "whole texts for SSRU",
    "Switch": "whole texts for Switch, .* an expert is full after",
    "MixtureOfHeads": "whole texts for MixtureOfHeads",
    "MixtureOfHeads, a model": "whole texts for MixtureOfHeads",
    "Subset": "`of` must be a layout of rows in one process",
    "ClassHead": "whole texts for ClassHead, .* holds the first token",
    "FrontEnd": "whole texts for SpectrumEmbedding",
    "the source in one process": "`source_layout` must be over several processes if and only if",
    "the tokens in one process": "`source_layout` must be over several processes if and only if",
    "documents without their sources": "Every document needs its source",
    "positions": "the 599 positions of this model .* has 600 tokens",
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_reads_other_tokens_is_refused_on_every_rank_alike(results, name):
    for _, _, refusals, _ in results:
        message, exchanged = refusals[name]
        assert re.search(REFUSALS[name], message), message
        assert exchanged == 0


def test_patterns_of_a_network():
    assert patterns_of(windows_and_sinks()) == [Causal() & Window(99, None), Causal()]
    assert patterns_of(new("albert", **TEXT, embedding_size=16)) == [None, None]
    t5 = new("t5", **T5)
    assert patterns_of(t5) == [Causal(), None] * 2
    assert patterns_of(t5.encoder) == [None, None]
    with pytest.raises(ArgumentError, match="must have attention layers"):
        patterns_of(torch.nn.Linear(2, 2))
