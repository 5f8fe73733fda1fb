"""Layers captured once and replayed for each token: the bits of the layers called, which they are where observed."""

import dataclasses

import pytest
import torch

import limelight
from limelight.backends import native
from limelight.fused import CapturedCalls
from limelight.models import Config, DecoderOnly, recipe, stack
from limelight.nn import (
    Cache,
    DistanceBias,
    GatedFeedForward,
    MixtureOfExperts,
    MultiHead,
    PostNorm,
    PreNorm,
    RMSNorm,
    Rotary,
    Sandwich,
    TiedHead,
    TokenEmbedding,
)

if not native.available():
    pytest.skip(native.why_missing(), allow_module_level=True)

CAUSAL = limelight.Causal()
FORMS = {
    "plain": {"rotary": Rotary(8)},
    "window": {"pattern": CAUSAL & limelight.Window(5, 0), "rotary": Rotary(6), "bias": False, "output_bias": False},
    "no positions": {},
    "norms of heads": {"rotary": Rotary(8), "head_norm": RMSNorm},
    "sink and another width": {"rotary": Rotary(8), "sink": True, "value_width": 5},
    "rules": {"scores": (limelight.ALiBi(torch.tensor([0.5, 0.25, 0.1, 0.0])), limelight.SoftCap(2.0))},
    "additive": {"compare": limelight.Additive(torch.tensor([0.5, -1.0, 0.2, 0.7, 1.0, -0.3, 0.4, 0.1]))},
}


def model(form="plain", dtype=torch.float32, **more):
    torch.manual_seed(0)
    config = Config(
        family="none", vocabulary=30, width=16, layers=3, limit=None, query_heads=4, key_value_heads=2, head_width=8,
        embedding=recipe(TokenEmbedding), final_norm=recipe(RMSNorm), head=recipe(TiedHead), residual=recipe(PreNorm),
        attention=recipe(MultiHead, **{"pattern": CAUSAL, **FORMS[form]}), norm=recipe(RMSNorm),
        feed_forward=recipe(GatedFeedForward, inner=24, activation="silu"),
    )  # fmt: skip
    config = dataclasses.replace(config, **more)
    network = DecoderOnly(config)
    for parameter in network.parameters():  # offsets, sinks and norms too
        torch.nn.init.normal_(parameter, std=0.3)
    return network.to(dtype).eval().requires_grad_(False)


@pytest.fixture
def runs(monkeypatch):
    """How often steps are run."""
    count = []
    replay = CapturedCalls.replay
    monkeypatch.setattr(CapturedCalls, "replay", lambda self, now: (count.append(1), replay(self, now))[1])
    return count


def read(network, texts, first=3, step=1, cache=None, then=lambda n: None):
    """The last vectors of ``texts``, of which ``first`` tokens are read at once and then ``step`` at a time."""
    cache = Cache() if cache is None else cache
    found = [network(texts[:, :first], cache=cache).states] if first else []
    for n in range(first, texts.shape[1], step):
        found.append(network(texts[:, n : n + step], cache=cache).states)
        then(n)
    return torch.cat(found, 1)


def called(monkeypatch, *given, **more):
    with monkeypatch.context() as patch:
        patch.setattr(stack, "decode_step", lambda *_: None)
        return read(*given, **more)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("form", FORMS)
def test_the_bits_are_those_of_the_layers_called(form, dtype, monkeypatch, runs):
    network, texts = model(form, dtype), torch.randint(30, (2, 90))  # the cache grows, and a window moves
    for step in (1, 3):
        runs.clear()
        replayed = read(network, texts, step=step)
        assert len(runs) == 87 // step
        assert torch.equal(replayed, called(monkeypatch, network, texts, step=step))


def test_norms_on_both_sides_and_a_gate_of_tanh(monkeypatch, runs):
    feed_forward = recipe(GatedFeedForward, inner=24, activation="gelu_pytorch_tanh")
    network = model(residual=recipe(Sandwich), feed_forward=feed_forward, norm=recipe(RMSNorm, offset=1.0))
    texts = torch.randint(30, (2, 20))
    replayed = read(network, texts)
    assert len(runs) == 17
    assert torch.equal(replayed, called(monkeypatch, network, texts))


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_different_lengths(form, monkeypatch, runs):
    network, texts, caches = model(form), torch.randint(30, (3, 80)), (Cache(), Cache())
    for cache in caches:
        network(texts[:, :7], cache=cache, layout=limelight.Padded(torch.tensor([7, 1, 4]), side="left"))
    replayed = read(network, texts, first=0, cache=caches[0])
    assert len(runs) == 80
    assert torch.equal(replayed, called(monkeypatch, network, texts, first=0, cache=caches[1]))


def test_results_stay_as_they_were(runs):
    network, texts, cache = model(), torch.randint(30, (1, 6)), Cache()
    steps = [network(texts[:, n : n + 1], cache=cache).states for n in range(6)]
    kept = [step.clone() for step in steps]
    network(texts[:, :1], cache=cache)
    assert len(runs) == 6
    assert all(torch.equal(*pair) for pair in zip(steps, kept, strict=True))


def test_texts_chosen_repeated_and_of_different_lengths(monkeypatch, runs):
    def go_on(network):
        cache = Cache()
        ids = torch.randint(30, (2, 9), generator=torch.Generator().manual_seed(1))
        network(ids[:, :4], cache=cache)
        found = [network(ids[:, 4:5], cache=cache).states]
        cache.repeat(2)
        found.append(network(ids[:, 5:6].repeat_interleave(2, 0), cache=cache).states)
        cache.select(torch.tensor([3, 0]))
        found.append(network(ids[:, 6:7], cache=cache).states)
        cache.select(torch.tensor([1, 0]))
        found.append(network(ids[:, 7:9], cache=cache, layout=limelight.Padded(torch.tensor([1, 2]))).states[:, :1])
        found.append(network(ids[:, 8:9], cache=cache).states)  # rows of 8 and 9 tokens
        return torch.cat([x.flatten(0, 1) for x in found])

    for form in ("plain", "window"):
        runs.clear()
        replayed = go_on(model(form))
        assert len(runs) == 4
        with monkeypatch.context() as patch:
            patch.setattr(stack, "decode_step", lambda *_: None)
            assert torch.equal(replayed, go_on(model(form)))


def test_rows_of_which_a_window_lies_in_different_columns(monkeypatch, runs):
    def go_on(network):
        cache, ids = Cache(), torch.randint(30, (2, 200), generator=torch.Generator().manual_seed(1))
        network(ids[:, :80], cache=cache, layout=limelight.Padded(torch.tensor([80, 70])))
        network(ids[:, :10], cache=cache, layout=limelight.Padded(torch.tensor([1, 10])))
        network(ids[:, :1], cache=cache, layout=limelight.Padded(torch.tensor([0, 1])))
        assert cache.lengths == 81  # one number again, but the columns are not
        return read(network, ids[:, :9], first=0, cache=cache)

    replayed = go_on(model("window"))
    assert len(runs) == 9
    with monkeypatch.context() as patch:
        patch.setattr(stack, "decode_step", lambda *_: None)
        assert torch.equal(replayed, go_on(model("window")))


def change(what, network):
    """Something that happens between two tokens, and how it ends."""
    attention, feed_forward = network.layers[1].attention, network.layers[1].feed_forward
    if what == "hook":
        return attention.inner.key.register_forward_hook(lambda *_: torch.zeros(1, 1, 16)).remove
    if what == "hook of a layer":
        return network.layers[2].register_forward_pre_hook(lambda *_: None).remove
    if what == "another part":
        feed_forward.inner.up = torch.nn.Sequential(feed_forward.inner.up, torch.nn.Tanh())
    if what == "another function":
        feed_forward.inner.forward = lambda states: 2 * states
    if what == "another window":
        attention.inner.pattern = CAUSAL & limelight.Window(2, 0)
    if what == "another epsilon":
        attention.norm.epsilon = 0.5
    if what == "another weight":
        attention.norm.weight = torch.nn.Parameter(torch.full((16,), 3.0), requires_grad=False)
    if what == "weights elsewhere":
        attention.inner.output.weight.data = torch.randn(16, 32, generator=torch.Generator().manual_seed(1))
    if what == "weights in place":
        attention.inner.output.weight.mul_(2)
    if what == "threads":
        torch.set_num_threads(1)
        return lambda: torch.set_num_threads(2)
    return lambda: None


@pytest.mark.parametrize("what", [
    "hook", "hook of a layer", "another part", "another function", "another window", "another epsilon",
    "another weight", "weights elsewhere", "weights in place", "threads",
])  # fmt: skip
def test_what_changes_between_two_tokens_is_seen(what, monkeypatch, runs):
    texts, found = torch.randint(30, (1, 9)), []
    threads = torch.get_num_threads()
    for way in (read, lambda *given, **more: called(monkeypatch, *given, **more)):
        network = model()
        end = []
        found.append(way(network, texts, then=lambda n, net=network, end=end: n == 5 and end.append(change(what, net))))
        end[0]()
    torch.set_num_threads(threads)
    assert torch.equal(*found)
    assert len(runs) == (3 if "hook" in what or what in ("another part", "another function") else 6)


def test_watchers_gradients_and_transforms_look_on(monkeypatch, runs):
    network, texts, cache = model(), torch.randint(30, (1, 8)), Cache()
    network(texts[:, :3], cache=cache)
    network(texts[:, 3:4], cache=cache)
    assert len(runs) == 1
    with limelight.watching(limelight.Observe(entropy=True)) as seen:
        network(texts[:, 4:5], cache=cache)
    assert seen[network.attention_names[0]].entropy.shape == (1, 4, 1)
    assert network(texts[:, 5:6], cache=cache, hidden=True).hidden[1].any()
    with torch.autocast("cpu", torch.bfloat16):
        network(texts[:, 6:7], cache=cache)
    network.requires_grad_(True)
    with pytest.raises(limelight.ArgumentError, match="no_grad"):
        network(texts[:, 7:8], cache=cache)
    assert len(runs) == 1
    with torch.no_grad():
        network(texts[:, 7:8], cache=cache)
    assert len(runs) == 2


def test_a_capture_that_a_gradient_ended_is_tried_again(runs):
    network, texts, cache = model(), torch.randint(30, (1, 6)), Cache()
    network(texts[:, :3], cache=cache)
    network.layers.requires_grad_(True)
    with pytest.raises(limelight.ArgumentError, match="no_grad"):
        network(texts[:, 3:4], cache=cache)
    assert not runs
    with torch.no_grad():
        network(texts[:, 3:4], cache=cache)
    assert len(runs) == 1


class Own(limelight.ScoreRule):
    def apply(self, scores, at):
        return scores / 2


class Shared(torch.nn.Module):
    def __init__(self, rule):
        super().__init__()
        self.rule = rule

    def forward(self, states):
        return self.rule


@pytest.mark.parametrize("other", [
    {"scores": lambda _: Shared(Own())},
    {"scores": lambda _: Shared(limelight.SoftCap(2.0))},
    {"attention": recipe(MultiHead, pattern=CAUSAL, scores=(Own(),))},
    {"attention": recipe(MultiHead, pattern=CAUSAL, compare=limelight.CosineSimilarity(0.1))},
    {"feed_forward": recipe(GatedFeedForward, inner=24, activation="gelu")},
    {"residual": recipe(PostNorm)},
    {"feed_forward": recipe(MixtureOfExperts, inner=24, activation="silu", experts=3)},
    {"norm": recipe(torch.nn.LayerNorm)},
    {"attention": recipe(MultiHead, pattern=CAUSAL, scores=(DistanceBias(4, limelight.T5Buckets(8, 20)),))},
    {"attention": recipe(type("Own", (MultiHead,), {}), pattern=CAUSAL)},
])  # fmt: skip
def test_what_cannot_be_captured_is_called(other, runs):
    network, texts = model(**other), torch.randint(30, (1, 8))
    torch.testing.assert_close(read(network, texts), network(texts).states, rtol=1e-4, atol=1e-4)
    assert not runs


def test_dropout_in_training_is_called(runs):
    network = model(feed_forward=recipe(GatedFeedForward, inner=24, activation="silu", dropout=0.5))
    read(network, torch.randint(30, (1, 6)))
    assert len(runs) == 3
    read(network.train(), torch.randint(30, (1, 6)))
    assert len(runs) == 3


def test_many_tokens_and_the_first_are_called(runs):
    network = model()
    read(network, torch.randint(30, (1, 20)), first=3, step=17)
    read(network, torch.randint(30, (17, 5)))
    assert not runs


class Twice(torch.nn.Module):
    """A layer of one's own, made of parts that can be captured."""

    capturable = ()

    def __init__(self, width=16):
        super().__init__()
        self.norm, self.inner = RMSNorm(width), GatedFeedForward(width, inner=24, activation="silu")

    def forward(self, states, context=None):
        states = states + self.inner(self.norm(states))
        return states + self.inner(states)


def test_a_layer_of_ones_own_is_captured(monkeypatch, runs):
    network, texts = model(), torch.randint(30, (2, 9))
    network.layers.append(Twice()).requires_grad_(False)
    replayed = read(network, texts)
    assert len(runs) == 6
    assert torch.equal(replayed, called(monkeypatch, network, texts))


class Reading(torch.nn.Module):
    """A layer that reads what differs from step to step."""

    capturable = ("read",)

    def __init__(self, read):
        super().__init__()
        self.read = read

    def forward(self, states, context):
        return states if self.read(self, states, context) else states + states


def attend_elsewhere(layer, states, context):
    heads = states[:, None]
    key, value, layout = context.extend(layer, CAUSAL, heads, heads)
    return limelight.attention(heads, key[:, :1], value, layout=layout).shape[0]


def normalise_cached(layer, states, context):
    key, *_ = context.extend(layer, CAUSAL, states[:, None], states[:, None])
    return (key + key).shape[0]


@pytest.mark.parametrize("read_it", [
    lambda layer, states, context: context.cache.longest < 6, lambda layer, states, context: context.layout is None,
    lambda layer, states, context: int(context.positions[0, 0]) < 6, lambda layer, states, context: states.sum() > 0,
    attend_elsewhere, normalise_cached,
])  # fmt: skip
def test_a_layer_that_reads_the_step_is_called(read_it, monkeypatch, runs):
    network, texts = model(), torch.randint(30, (1, 9))
    network.layers.append(Reading(read_it))
    found = read(network, texts)
    assert not runs
    assert torch.equal(found, called(monkeypatch, network, texts))
