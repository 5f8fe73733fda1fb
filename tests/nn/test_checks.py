"""Layers say what is wrong with their arguments, by name."""

import inspect
import math
import warnings

import pytest
import torch

import limelight
from limelight import BackendError, Causal, Observe, Packed, nn
from limelight.tensors.shapes import ArgumentError

X = torch.randn(1, 6, 16)
IDS = torch.randint(10, (1, 6))
ATTENTION = {"width": 16, "query_heads": 4, "key_value_heads": 2, "head_width": 8}
inner = lambda: torch.nn.Linear(16, 16)  # noqa: E731
# Every public class with arguments that it takes.
TAKEN = {
    nn.MultiHead: ATTENTION | {"pattern": Causal(), "rotary": nn.Rotary(8), "dropout": 0.0, "scores": (), "scale": 1.0},
    nn.MixtureOfHeads: ATTENTION | {"key_value_heads": 4, "shared": 1, "k": 2},
    nn.TwoStage: {"width": 16, "shared": 1, "routed": 3, "k": 2},
    nn.QueryNorm: {"width": 16, "shared": 1, "routed": 3, "k": 2},
    nn.SSRU: ATTENTION,
    nn.AdditiveAttention: {"width": 16, "inner": 8},
    nn.MultiplicativeAttention: {"width": 16},
    nn.RMSNorm: {"width": 16, "epsilon": 1e-6, "offset": 0.0},
    nn.FeedForward: {"width": 16, "inner": 32, "activation": "relu", "bias": True, "dropout": 0.0},
    nn.GatedFeedForward: {"width": 16, "inner": 32, "activation": "silu", "bias": True, "dropout": 0.0},
    nn.MixtureOfExperts: {"width": 16, "inner": 32, "activation": "silu", "experts": 4, "balance": 0.0, "z": 0.0},
    nn.TopK: {"width": 16, "experts": 4, "k": 2, "normalise": True, "jitter": 0.0},
    nn.Switch: {"width": 16, "experts": 4, "capacity": 1.25, "jitter": 0.0},
    nn.TokenEmbedding: {"vocabulary": 10, "width": 16, "scale": 1.0, "dropout": 0.0},
    nn.SummedEmbedding: {"vocabulary": 10, "width": 16, "positions": nn.Sinusoids, "segments": 2, "dropout": 0.0},
    nn.SpectrumEmbedding: {"vocabulary": 10, "width": 16, "bands": 4, "positions": nn.Sinusoids, "dropout": 0.0},
    nn.PatchEmbedding: {
        "vocabulary": 10, "width": 16, "size": (8, 8), "patch": (4, 4), "channels": 3,
    },
    nn.Sinusoids: {"width": 16, "base": 10_000.0, "steps": 8},
    nn.LearnedPositions: {"width": 16, "count": 20, "offset": 0},
    nn.DistanceBias: {"query_heads": 4, "buckets": limelight.T5Buckets()},
    nn.LinearBias: {"query_heads": 4},
    nn.TiedHead: {"vocabulary": 10, "width": 16, "scale": 1.0, "cap": 5.0, "bias": False},
    nn.UntiedHead: {"vocabulary": 10, "width": 16, "cap": 5.0},
    nn.ClassHead: {"vocabulary": 10, "width": 16, "labels": ("a", "b"), "activation": "tanh"},
    nn.MaskedHead: {"vocabulary": 10, "width": 16, "activation": "gelu", "epsilon": 1e-5},
    nn.PostNorm: {"inner": inner(), "norm": inner(), "dropout": 0.0},
    nn.PreNorm: {"inner": inner(), "norm": inner(), "dropout": 0.0},
    nn.Sandwich: {"inner": inner(), "norm": inner(), "dropout": 0.0},
    nn.Block: {"attention": inner(), "feed_forward": inner()},
    nn.DecoderBlock: {"attention": inner(), "cross": inner(), "feed_forward": inner()},
    nn.Rotary: {"width": 8, "theta": 10_000.0, "scaling": None, "pairing": nn.SplitHalves()},
    nn.YaRN: {"factor": 4.0, "original_max_positions": 128, "fast": 32.0, "slow": 1.0, "attention_factor": 1.0},
    nn.DynamicNTK: {"factor": 2.0, "original_max_positions": 128},
    nn.Llama3Scaling: {"factor": 8.0, "original_max_positions": 128, "low": 1.0, "high": 4.0},
    nn.LongRope: {"short": (1.0,), "long": (2.0,), "original_max_positions": 128, "attention_factor": 1.0},
    nn.LinearScaling: {"factor": 2.0},
    nn.Normal: {"deviation": 0.02, "layers": 4, "truncation": 2.0},
    nn.FanIn: {"width": 16, "factor": 1.0},
}  # fmt: skip
FREE = ("scale", "offset")  # numbers of either sign


def wrong_values(name, value):
    yield object
    yield object()
    if isinstance(value, (bool, str)):
        yield 5
    elif isinstance(value, int):
        yield from ("a", -1, 2.5, True)
        if name not in ("segments", "shared", "offset"):
            yield 0
    elif isinstance(value, float):
        yield from ("a", math.inf, [1.0], True)
        if name not in FREE:
            yield -1.0
        if name in ("dropout", "jitter"):
            yield 2.0
    else:
        yield 5


@pytest.mark.parametrize("layer", TAKEN, ids=lambda layer: layer.__name__)
def test_each_argument_is_named(layer):
    layer(**TAKEN[layer])
    for name, value in TAKEN[layer].items():
        for bad in wrong_values(name, value):
            if callable(value) and callable(bad):
                continue
            with pytest.raises(ArgumentError, match=f"`{name}`"):
                layer(**(TAKEN[layer] | {name: bad}))
    required = [
        p.name for p in inspect.signature(layer).parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]  # fmt: skip
    for name in required:
        with pytest.raises(TypeError, match=name):
            layer(**{n: v for n, v in TAKEN[layer].items() if n != name})


def test_every_public_layer_is_asked():
    values = [getattr(nn, name) for name in nn.__all__]
    layers = {v for v in values if isinstance(v, type) and issubclass(v, torch.nn.Module)}
    plain = {nn.Projection, nn.FrontEnd, nn.ClassHead}  # PyTorch's own arguments; a base; strings alone
    assert layers - plain <= set(TAKEN)


STATES = ("a", 5, None, torch.randn(1, 6, 15), torch.randn(16), torch.randn(1, 6, 16).long(), X.to("meta"), X.tolist())
with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)  # nested tensors are a prototype
    NESTED = torch.nested.nested_tensor([torch.randn(3, 16), torch.randn(6, 16)])
    NESTED_IDS = torch.nested.nested_tensor([IDS[0], IDS[0, :2]])
JAGGED = torch.nested.nested_tensor([torch.randn(3, 16), torch.randn(6, 16)], layout=torch.jagged)
# Layers of texts: one token, one text and several of each are not the same to them.
OF_TEXTS = (nn.MultiHead, nn.MixtureOfHeads, nn.SSRU, nn.AdditiveAttention, nn.MultiplicativeAttention)
HEADS = (nn.TiedHead, nn.UntiedHead, nn.MaskedHead, nn.ClassHead)


@pytest.mark.parametrize(
    "layer",
    [
        *OF_TEXTS, *HEADS, nn.RMSNorm, nn.FeedForward, nn.GatedFeedForward, nn.MixtureOfExperts, nn.TopK, nn.Switch,
    ],
    ids=lambda layer: layer.__name__,
)  # fmt: skip
def test_states_that_a_layer_cannot_read(layer):
    made = layer(**TAKEN[layer])
    more = (torch.randn(10, 16),) if layer in HEADS else ()
    made(X, *more)
    routes = (nn.MixtureOfExperts, nn.TopK, nn.Switch)
    ranks = (X[0], X[None]) if layer in OF_TEXTS else ()
    for states in (*STATES, NESTED, JAGGED, torch.tensor(1.0), *ranks):
        if states is STATES[4] and layer not in (*OF_TEXTS, *routes):
            continue  # one vector is as good as many for what looks at each token alone
        if states is STATES[-2] and layer is nn.MixtureOfExperts:
            with pytest.raises(BackendError, match="the meta device"):
                made(states)
            continue
        with pytest.raises(ArgumentError, match="`states`"):
            made(states, *more)


def test_sizes_that_do_not_fit_together():
    for name, value in {"query_heads": 5, "rotary": nn.Rotary(16)}.items():
        with pytest.raises(ArgumentError, match=f"`{name}`"):
            nn.MultiHead(**(ATTENTION | {name: value}))
    with pytest.raises(ArgumentError, match="`activation`"):
        nn.FeedForward(16, inner=32, activation="nope")
    with pytest.raises(ArgumentError, match="`k`"):
        nn.MixtureOfHeads(16, query_heads=4, key_value_heads=4, head_width=8, shared=2, k=3)


@pytest.mark.parametrize("layer", [nn.TokenEmbedding, nn.SummedEmbedding])
def test_token_ids(layer):
    made = layer(**TAKEN[layer])
    assert made(IDS).shape == (1, 6, 16)
    for tokens in (torch.tensor([[10]]), torch.tensor([[-1]]), torch.tensor([[1.5]]), "a", None):
        with pytest.raises(ArgumentError, match="`tokens`"):
            made(tokens)


@pytest.mark.parametrize("layer", [nn.LearnedPositions(16, count=9), nn.TokenEmbedding(10, 16)])
def test_what_is_looked_up_lies_beside_the_table(layer):
    ids = torch.zeros(1, 3, dtype=torch.int64)
    assert layer(ids).shape == (1, 3, 16)
    for wrong in (None, [0, 1], torch.zeros(1, 3), ids.bool(), NESTED_IDS):
        with pytest.raises(ArgumentError, match=r"`(positions|tokens)` must be a tensor of int64"):
            layer(wrong)
    with pytest.raises(ArgumentError, match=r"`(positions|tokens)` must be on cpu, .* on meta"):
        layer(ids.to("meta"))


def test_segments_lie_beside_their_table():
    layer = nn.SummedEmbedding(**TAKEN[nn.SummedEmbedding])
    for segments in (IDS.to("meta"), IDS.float(), IDS.tolist()):
        with pytest.raises(ArgumentError, match="`segments`"):
            layer(IDS, nn.ForwardContext(None, torch.arange(6)[None], segments))


def test_places_and_caches():
    layer = nn.MultiHead(**ATTENTION)
    for context in (5, "a", X):
        with pytest.raises(ArgumentError, match="`context`"):
            layer(X, context)
    with pytest.raises(ArgumentError, match="add up"):
        layer(X, Packed((2, 2)))
    for B, L, name in ((-1, 5, "B"), ("a", 5, "B"), (1, 2.0, "L")):
        with pytest.raises(ArgumentError, match=f"`{name}`"):
            nn.Cache(5).step(B, L)
    with pytest.raises(ArgumentError, match="`observe`"), limelight.watching(5):
        pass
    with limelight.watching(Observe(entropy=True)):
        layer(X)


@pytest.mark.parametrize("rotary", [None, nn.Rotary(8)])
def test_packed_documents_are_the_documents_one_by_one(rotary):
    layer = nn.Block(
        nn.PreNorm(nn.MultiHead(**(ATTENTION | {"pattern": Causal(), "rotary": rotary})), nn.RMSNorm(16)),
        nn.PreNorm(nn.FeedForward(16, inner=32, activation="relu"), nn.RMSNorm(16)),
    )
    lengths = (10, 1, 20)
    states = torch.randn(2, 31, 16)
    alone = torch.cat([layer(part) for part in states.split(lengths, dim=1)], dim=1)
    for context in (Packed(lengths), nn.ForwardContext.of(states, layout=Packed(lengths))):
        torch.testing.assert_close(layer(states, context), alone, rtol=1e-5, atol=1e-5)
    apart = layer(states) - alone
    assert apart[:, 11:].abs().max() > 1e-3  # without the layout they see each other


def test_checks_are_compiled_and_exported():
    layer = nn.MultiHead(**ATTENTION).eval()
    exported = torch.export.export(layer, (X,)).module()
    torch.testing.assert_close(exported(X), layer(X))


def test_sizes_are_given_by_name():
    with pytest.raises(
        TypeError, match=r"too many .*MultiHead\(width, query_heads=, key_value_heads=, head_width=, \.\.\.\)"
    ):
        nn.MultiHead(16, 4, 2, 4)
