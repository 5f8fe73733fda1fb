"""Calls that exchange and compute a few heads at a time are the calls of all heads, to the bit."""

import torch
import torch.distributed as dist
from support.processes import run_processes

import limelight
from limelight import (
    Additive,
    ALiBi,
    Bias,
    Blocks,
    Causal,
    CosineSimilarity,
    DilatedWindow,
    Explicit,
    Keys,
    Observe,
    Packed,
    Predicate,
    SoftCap,
    Window,
)
from limelight.distributed import ContextParallel

LENGTH, HEADS, KEY_HEADS = 500, 6, 3


def cases():
    """Settings of calls of 500 tokens and 6 query heads, with what differs from head to head."""
    generator = torch.Generator().manual_seed(0)
    sink = torch.randn(HEADS, generator=generator)
    yield "causal", {"pattern": Causal(), "sink": sink}
    yield "streaming", {"pattern": Causal() & (Window(70, 0) | Keys(4)), "scores": (ALiBi.standard(HEADS),)}
    yield "documents", {"layout": Packed((300, 5, 195)), "pattern": Causal(), "scores": (SoftCap(3.0),)}
    yield "bias", {"scores": (Bias(torch.randn(HEADS, LENGTH, LENGTH, generator=generator)),)}
    yield "masks", {"pattern": ~Explicit(torch.rand(HEADS, LENGTH, LENGTH, generator=generator) > 0.6)}
    yield "blocks", {"pattern": Blocks(torch.rand(HEADS, 8, 8, generator=generator) > 0.5, 64) | Window(0, 0)}
    yield "function", {"pattern": Predicate(lambda at: (at.query_index + at.key_index) % (at.head + 1) == 0)}
    yield "dilated", {"pattern": DilatedWindow(30, 0, 3)}
    yield "additive", {"compare": Additive(torch.randn(HEADS, 16, generator=generator))}
    yield "cosine", {"compare": CosineSimilarity(torch.rand(HEADS, generator=generator) + 0.1)}
    yield "dropout", {"pattern": Causal(), "dropout": 0.3, "seed": 5}


def differing(count):
    """The cases in which output or gradients of ``count`` key heads at a time differ from those of all in any bit."""
    failed = []
    generator = torch.Generator().manual_seed(1)
    whole = [torch.randn(2, heads, LENGTH, 16, generator=generator) for heads in (HEADS, KEY_HEADS, KEY_HEADS, HEADS)]
    for name, own in cases():
        found = []
        for at_once in (None, count):
            spread = ContextParallel.balanced(
                dist.group.WORLD,
                LENGTH,
                patterns=[own.get("pattern")],
                layout=own.get("layout"),
                heads_at_once=at_once,
            )
            rows = [Bias(spread.mine(r.tensor, 1)) if isinstance(r, Bias) else r for r in own.get("scores", ())]
            q, k, v, gradient = (spread.mine(x, 2).requires_grad_() for x in whole)
            out = limelight.attention(q, k, v, **{**own, "layout": spread, "scores": tuple(rows)})
            found.append([out, *torch.autograd.grad(out, [q, k, v], gradient)])
            with torch.no_grad():
                found[-1].append(limelight.attention(q, k, v, **{**own, "layout": spread, "scores": tuple(rows)}))
        failed += [f"{name} {n}" for n, (a, b) in enumerate(zip(*found, strict=True)) if not torch.equal(a, b)]
    return failed


def test_a_few_heads_at_a_time_have_the_bits_of_all():
    assert run_processes(differing, 2, 1) == [[], []]
    assert run_processes(differing, 4, 2) == [[]] * 4


def observed():
    """The observations of one head at a time that differ from those of all."""
    failed = []
    generator = torch.Generator().manual_seed(0)
    whole = [torch.randn(1, heads, LENGTH, 16, generator=generator) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
    masks = Explicit(torch.rand(HEADS, LENGTH, LENGTH, generator=generator) > 0.6)
    features = torch.rand(LENGTH, 2, generator=generator)
    for pattern in (Causal(), masks):
        for heads in (None, (4, 0, 5), torch.tensor([3]), ()):
            found = []
            for at_once in (None, 1):
                spread = ContextParallel.balanced(dist.group.WORLD, LENGTH, patterns=[pattern], heads_at_once=at_once)
                observe = Observe(
                    logsumexp=True, entropy=True, top=3, received=True, rows=(1, 7), heads=heads,
                    features=spread.mine(features, 0),
                )  # fmt: skip
                q, k, v = (spread.mine(x, 2) for x in whole)
                with limelight.watching(observe) as seen:
                    limelight.attention(q, k, v, pattern=pattern, layout=spread, name="layer")
                found.append(seen["layer"].seen())
            if list(found[0]) != list(found[1]):
                failed.append(f"{list(found[0])} {list(found[1])}")
            failed += [f"{n} {heads} {pattern}" for n, x in found[0].items() if not torch.equal(x, found[1][n])]
    return failed


def test_observations_are_joined():
    assert run_processes(observed, 2) == [[], []]


def transformed():
    """Differences of a second derivative, of samples and of a compiled call from those of all heads at once."""
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(3, 1, 3, 100, 8, generator=generator, dtype=torch.float64)
    found = []
    for at_once in (None, 2):
        spread = ContextParallel.balanced(dist.group.WORLD, 100, patterns=[Causal()], heads_at_once=at_once)
        q, k, v = (spread.mine(x, 2).requires_grad_() for x in whole)

        def call(k, q=q, v=v, spread=spread):
            return limelight.attention(q, k, v, pattern=Causal(), layout=spread)

        (first,) = torch.autograd.grad(call(k).square().sum(), [k], create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), [k])
        samples = torch.vmap(call)(torch.stack([k, 2 * k]))
        tangent = torch.func.jvp(call, (k,), (v,))[1]
        found.append([second, samples, tangent, torch.compile(call, backend="aot_eager")(k)])
    return [float((a - b).abs().max()) for a, b in zip(*found, strict=True)]


def test_derivatives_transforms_and_compilation():
    assert max(map(max, run_processes(transformed, 2))) < 1e-12


def refused():
    """Messages of heads that are no number of heads, and of what cannot be cut into heads."""
    spread = ContextParallel.balanced(dist.group.WORLD, 100, heads_at_once=1)

    class Even(limelight.Pattern):
        def allows(self, at):
            return at.key_position % 2 == 0

        def select(self, queries, keys):
            return self

    tokens = spread.mine(torch.randn(1, 2, 100, 8), 2)
    found = []
    for attempt in (
        lambda: ContextParallel.balanced(dist.group.WORLD, 100, heads_at_once=0),
        lambda: limelight.attention(tokens, tokens, tokens, layout=spread, pattern=Even()),
    ):
        try:
            attempt()
        except limelight.ArgumentError as error:
            found.append(str(error))
    return found


def test_bad_input_is_refused():
    for zero, pattern in run_processes(refused, 2):
        assert "heads_at_once" in zero
        assert "Define for_heads" in pattern
