"""A call over several processes is the call of one: outputs, gradients, observations."""

import torch
import torch.distributed as dist
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from support.accuracy import check_close
from support.processes import run_processes
from support.strategies import LAYOUTS, patterns, score_rules, sizes

import limelight
from limelight import (
    ALiBi,
    Aligned,
    Bias,
    Blocks,
    Causal,
    Chunks,
    Explicit,
    KeyMask,
    Keys,
    Observe,
    Packed,
    Padded,
    Predicate,
    SoftCap,
    Window,
)  # fmt: skip
from limelight.distributed import ContextParallel
from limelight.distributed.runs import united

WHOLE = {Aligned: None, Padded: None, Packed: None, KeyMask: None}


# --- The same numbers ------------------------------------------------------------------------------------------------


@st.composite
def runs_of(draw, length, ranks):
    """Runs of all ranks, cut anywhere; a rank may hold nothing."""
    marks = sorted({0, length, *draw(st.lists(st.integers(0, length), max_size=2 * ranks))})
    owners = [draw(st.integers(0, ranks - 1)) for _ in marks[1:]]
    pieces = list(zip(marks[:-1], marks[1:], owners, strict=True))
    return tuple(united([(a, b) for a, b, owner in pieces if owner == rank]) for rank in range(ranks))


@st.composite
def calls(draw, ranks, dtype):
    """Sizes, settings of the whole, runs of queries and of keys."""
    s = draw(sizes(lengths=st.integers(0, 150), widths=st.integers(1, 24)))
    kind = draw(st.sampled_from([None, *WHOLE]))
    own = {
        "layout": None if kind is None else LAYOUTS[kind](draw, s),
        "pattern": draw(patterns(s, 2)),
        "scores": draw(score_rules(s, dtype)),
    }
    if draw(st.booleans()):
        own["sink"] = torch.randn(s.Hq, generator=torch.Generator().manual_seed(s.Lq), dtype=torch.float64).to(dtype)
    if draw(st.integers(0, 3)) == 0:
        own |= {"dropout": draw(st.sampled_from([0.1, 0.5])), "seed": draw(st.integers(0, 2**62))}
    queries = draw(runs_of(s.Lq, ranks))
    keys = queries if s.Lq == s.Lk and draw(st.booleans()) else draw(runs_of(s.Lk, ranks))
    return s, own, queries, keys


def leaves(own, dtype):
    """The settings with their differentiable tensors in ``dtype`` and as leaves; the tensors."""
    found = []

    def leaf(tensor):
        found.append(tensor.detach().clone().to(dtype).requires_grad_())
        return found[-1]

    made = dict(own)
    made["scores"] = tuple(rule.with_tensors(iter([leaf(t) for t in rule.tensors()])) for rule in own["scores"])
    if "sink" in own:
        made["sink"] = leaf(own["sink"])
    return made, found


def rows_of(rule, spread):
    """The rule on a rank: the tensor of a bias has the rank's rows."""
    if not isinstance(rule, Bias) or rule.tensor.dim() < 2 or rule.tensor.shape[-2] == 1:
        return rule
    return Bias(spread.mine(rule.tensor, rule.tensor.dim() - 2))


def computed(qkv, gradient, own, dtype):
    """Output and gradients of one process, in ``dtype``; for each tensor of a rule or sink, too."""
    own, operands = leaves(own, dtype)
    q, k, v = (x.to(dtype).requires_grad_() for x in qkv)
    out = limelight.attention(q, k, v, backend="reference" if dtype == torch.float64 else None, **own)
    return out.detach(), torch.autograd.grad(out, [q, k, v, *operands], gradient.to(dtype), materialize_grads=True)


def spread_out(qkv, gradient, own, queries, keys, dtype):
    """The same over the ranks, gathered."""
    own, operands = leaves(own, dtype)
    spread = ContextParallel(dist.group.WORLD, queries, own["layout"], keys)
    source = ContextParallel(dist.group.WORLD, keys)
    q = spread.mine(qkv[0], 2).to(dtype).requires_grad_()
    k, v = (source.mine(x, 2).to(dtype).requires_grad_() for x in qkv[1:])
    own |= {"layout": spread, "scores": tuple(rows_of(rule, spread) for rule in own["scores"])}
    out = limelight.attention(q, k, v, **own)
    grads = torch.autograd.grad(out, [q, k, v, *operands], spread.mine(gradient, 2).to(dtype), materialize_grads=True)
    grads = [by.whole(g, 2) for by, g in zip((spread, source, source), grads, strict=False)] + list(grads[3:])
    for grad in grads[3:]:
        dist.all_reduce(grad)
    return spread.whole(out.detach(), 2), grads


def agree(dtype, examples):
    """The examples that do not agree, in words, on one rank of several that draw the same ones."""
    failed = []

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @seed(0)
    @given(st.data())
    def run(data):
        s, own, queries, keys = data.draw(calls(dist.get_world_size(), dtype))
        generator = torch.Generator().manual_seed(s.Lq * 1000 + s.Lk)
        shapes = [(s.B, s.Hq, s.Lq, s.D), (s.B, s.Hkv, s.Lk, s.D), (s.B, s.Hkv, s.Lk, s.Dv), (s.B, s.Hq, s.Lq, s.Dv)]
        *qkv, gradient = (torch.randn(*x, generator=generator, dtype=torch.float64).to(dtype) for x in shapes)
        truth, plain = (computed(qkv, gradient, own, precision) for precision in (torch.float64, dtype))
        ours = spread_out(qkv, gradient, own, queries, keys, dtype)
        try:
            check_close(ours[0], plain[0], truth[0], "output", slack=16, dtype=dtype)
            for n, parts in enumerate(zip(ours[1], plain[1], truth[1], strict=True)):
                check_close(*parts, f"gradient {n}", slack=64, dtype=dtype)
        except AssertionError as error:
            failed.append(f"{error}: {s} {own} queries {queries} keys {keys}")

    run()
    return failed


def test_any_call_over_two_processes():
    assert run_processes(agree, 2, torch.float32, 60) == [[], []]


def test_any_call_over_four_processes_in_bfloat16():
    assert run_processes(agree, 4, torch.bfloat16, 25) == [[]] * 4


# --- The same bits ---------------------------------------------------------------------------------------------------

LENGTH = 900


def cases():
    """Settings of calls of 900 tokens."""
    generator = torch.Generator().manual_seed(0)
    streaming = Causal() & (Window(100, 0) | Keys(4))
    yield "full", {}
    yield "causal", {"pattern": Causal()}
    yield "window", {"pattern": Window(100, 0)}
    yield "window ahead", {"pattern": Window(100, 30)}
    yield "chunks", {"pattern": Chunks(100) & Causal()}
    yield "streaming", {"pattern": streaming}
    yield "streaming and ALiBi", {"pattern": streaming, "scores": (ALiBi.standard(4),)}
    yield "documents", {"pattern": Causal(), "layout": Packed((300, 5, 400, 19, 1, 175))}
    yield "documents and window", {"pattern": Window(30, 7), "layout": Packed((300, 5, 400, 19, 1, 175))}
    for lengths in ((50, 850), (300, 5, 400, 195), (31, 869)):
        yield f"streaming in documents of {lengths}", {"pattern": streaming, "layout": Packed(lengths)}
    yield "streaming and padding", {"pattern": streaming, "layout": Padded(torch.tensor([640, 873]))}
    yield "keys in the middle", {"pattern": Causal() & (Window(9, 0) | Keys(200) & ~Keys(150))}
    yield "documents and dropout", {"layout": Packed((300, 5, 400, 19, 1, 175)), "dropout": 0.2, "seed": 5}
    sink = torch.randn(4, generator=generator)
    yield "sink", {"pattern": Causal(), "sink": sink, "scores": (SoftCap(5.0),), "dropout": 0.1, "seed": 3}
    yield "padding", {"pattern": Causal(), "layout": Padded(torch.tensor([640, LENGTH]))}
    yield "bias", {"scores": (Bias(torch.randn(4, LENGTH, LENGTH, generator=generator)),)}
    yield "mask", {"pattern": Explicit(torch.rand(LENGTH, LENGTH, generator=generator) > 0.5)}
    yield "function", {"pattern": Predicate(lambda at: (at.query_index + at.key_index) % 3 == 0)}
    yield "missing keys", {"layout": KeyMask(torch.rand(2, LENGTH, generator=generator) > 0.3)}
    yield "blocks", {"pattern": Blocks(torch.rand(4, 8, 8, generator=generator) > 0.5, 128)}


def same_bits(dtype):
    """The cases whose outputs differ from those of one process in any bit, and how many ranks were sent keys."""
    failed = []
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, heads, LENGTH, 32, generator=generator).to(dtype) for heads in (4, 2, 2))
    for name, own in cases():
        patterns = [own.get("pattern")]
        spread = ContextParallel.balanced(dist.group.WORLD, LENGTH, patterns=patterns, layout=own.get("layout"))
        theirs = {**own, "layout": spread, "scores": tuple(rows_of(rule, spread) for rule in own.get("scores", ()))}
        whole = limelight.attention(q, k, v, **own)
        mine = limelight.attention(*(spread.mine(x, 2) for x in (q, k, v)), **theirs)
        if not torch.equal(mine, spread.mine(whole, 2)):
            failed.append(name)
    with torch.autocast("cpu", torch.bfloat16):
        spread = ContextParallel.balanced(dist.group.WORLD, LENGTH)
        mine = limelight.attention(*(spread.mine(x.float(), 2) for x in (q, k, v)), layout=spread)
        if not torch.equal(mine, spread.mine(limelight.attention(q.float(), k.float(), v.float()), 2)):
            failed.append("autocast")
    return failed


def test_the_forward_pass_has_the_same_bits():
    assert run_processes(same_bits, 2, torch.float32) == [[], []]
    assert run_processes(same_bits, 4, torch.bfloat16) == [[]] * 4


# --- What is sent ----------------------------------------------------------------------------------------------------


def sent():
    """Keys that each rank sends each other one, for some patterns of 12,288 tokens."""
    found = {}
    ranks = range(dist.get_world_size())
    for name, pattern in (("causal", Causal()), ("window", Window(255, 0)), ("streaming", Window(255, 0) | Keys(4))):
        spread = ContextParallel.balanced(dist.group.WORLD, 12288, patterns=[pattern])
        plan = spread.plan(pattern, 1)
        found[name] = spread.runs, [[plan.tokens(a, b) for b in ranks] for a in ranks]
    return found


def test_a_window_exchanges_with_neighbours_alone():
    found = run_processes(sent, 4)
    assert all(one == found[0] for one in found)
    runs, tokens = found[0]["window"]
    assert [len(held) for held in runs] == [1] * 4
    assert all(tokens[a][a + 1] == 255 for a in range(3))
    assert sum(map(sum, tokens)) == sum(tokens[a][a + 1] for a in range(3))
    assert all(len(held) <= 2 for held in found[0]["causal"][0])
    assert [tokens[0][b] for tokens in [found[0]["streaming"][1]] for b in (2, 3)] == [4, 4]


# --- Derivatives of more orders, transforms, observations ------------------------------------------------------------


def derivatives():
    """Differences of second derivatives, tangents, and of samples, between the ranks and one process."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, t = torch.randn(4, 1, 2, 130, 8, generator=generator, dtype=torch.float64)
    spread = ContextParallel(dist.group.WORLD, (((0, 30), (70, 130)), ((30, 70),)))

    def second(q, k, v, layout):
        q, k, v = (x.clone().requires_grad_() for x in (q, k, v))
        out = limelight.attention(q, k, v, pattern=Causal(), layout=layout)
        first = torch.autograd.grad(out.square().sum(), [q, k, v], create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), [q, k, v])

    mine = [spread.mine(x, 2) for x in (q, k, v, t)]
    worst = [
        (ours - spread.mine(theirs, 2)).abs().max()
        for ours, theirs in zip(second(*mine[:3], spread), second(q, k, v, None), strict=True)
    ]

    def tangent(q, k, v, t, layout):
        call = lambda k: limelight.attention(q, k, v, pattern=Causal(), layout=layout)  # noqa: E731
        return torch.func.jvp(call, (k,), (t,))[1]

    worst.append((tangent(*mine, spread) - spread.mine(tangent(q, k, v, t, None), 2)).abs().max())
    call = lambda k: limelight.attention(mine[0], k, mine[2], pattern=Causal(), layout=spread)  # noqa: E731
    samples = torch.vmap(call)(torch.stack([mine[1], 2 * mine[1]]))
    worst += [(samples[n] - call((n + 1) * mine[1])).abs().max() for n in range(2)]
    return [float(x) for x in worst]


def test_derivatives_and_transforms():
    for found in run_processes(derivatives, 2):
        assert max(found) < 1e-10


def compiled():
    """The largest difference of the gradients under `torch.compile`."""
    generator = torch.Generator().manual_seed(0)
    spread = ContextParallel.balanced(dist.group.WORLD, 100, patterns=[Causal()])
    mine = [spread.mine(x, 2).requires_grad_() for x in torch.randn(3, 1, 2, 100, 8, generator=generator)]

    def loss(q, k, v):
        return limelight.attention(2 * q, k, v, pattern=Causal(), layout=spread).square().sum()

    recorded = torch.compile(loss, backend="aot_eager")
    found = [torch.autograd.grad(function(*mine), mine) for function in (loss, recorded)]
    return max(float((a - b).abs().max()) for a, b in zip(*found, strict=True))


def test_compiled():
    assert max(run_processes(compiled, 2)) < 1e-5


def observed():
    """The names of the observations that differ from those of one process."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 400, 16, generator=generator)
    features = torch.rand(400, 3, generator=generator)
    failed = []
    for pattern in (Causal(), Window(70, 0) | Keys(3)):
        spread = ContextParallel.balanced(dist.group.WORLD, 400, patterns=[pattern])
        observe = Observe(
            logsumexp=True, max_weight=True, entropy=True, distance=True, top=4, received=True, features=features
        )
        truth = limelight.attention(q, k, v, pattern=pattern, observe=observe)[1].seen()
        rows = limelight.attention(q, k, v, pattern=pattern, observe=Observe(rows=spread.index[:3]))[1].rows
        observe = Observe(**{f: getattr(observe, f) for f in ("logsumexp", "max_weight", "entropy", "distance", "top")})
        observe = Observe(
            **{f: getattr(observe, f) for f in ("logsumexp", "max_weight", "entropy", "distance", "top")},
            received=True, rows=(0, 1, 2), features=spread.mine(features, 0),
        )  # fmt: skip
        mine = [spread.mine(x, 2) for x in (q, k, v)]
        with limelight.watching(observe) as seen:
            found = limelight.attention(*mine, pattern=pattern, layout=spread, observe=observe, name="layer")[1].seen()
        for name, ours in found.items():
            theirs = rows if name == "rows" else spread.mine(truth[name], 2)
            if not torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5) or not torch.equal(
                seen["layer"].seen()[name], ours
            ):
                failed.append(f"{name} under {pattern}")
    return failed


def test_observations_are_those_of_the_whole_text():
    assert run_processes(observed, 2) == [[], []]


# --- Bad input -------------------------------------------------------------------------------------------------------


def refused():
    """Messages of what is refused before anything is sent."""
    group = dist.group.WORLD
    spread = ContextParallel.balanced(group, 100)
    q = torch.randn(1, 2, 50, 8)

    class Odd(limelight.Pattern):
        def allows(self, at):
            return at.query_index % 2 == 0

    attempts = {
        "whole tensors": lambda: limelight.attention(*[torch.randn(1, 2, 100, 8)] * 3, layout=spread),
        "a hole": lambda: ContextParallel(group, (((0, 10),), ((20, 30),))),
        "twice": lambda: ContextParallel(group, (((0, 10),), ((5, 30),))),
        "ranks": lambda: ContextParallel(group, (((0, 10),),)),
        "not mine": lambda: spread.mine(q, 2),
        "not whole": lambda: spread.whole(torch.randn(1, 7)),
        "pairs": lambda: limelight.attention(q, q, q, layout=spread, observe=Observe(pairs=((0, 100),))),
        "pattern": lambda: limelight.attention(q, q, q, layout=spread, pattern=Odd()),
        "kind": lambda: limelight.attention(q, q, "values", layout=spread),
        "documents": lambda: ContextParallel.balanced(group, 100, layout=Packed((40, 50))),
        "length": lambda: ContextParallel.balanced(group, -1),
    }
    found = {}
    for name, attempt in attempts.items():
        try:
            attempt()
        except limelight.ArgumentError as error:
            found[name] = str(error)
    return set(attempts) - set(found), found


def test_bad_input_is_refused_by_name():
    for missing, found in run_processes(refused, 2):
        assert not missing
        assert "holds 50 of its 100 tokens" in found["whole tensors"]
        assert "each token once" in found["a hole"]
        assert "each token once" in found["twice"]
        assert "keys of the whole text, from 0 to 99" in found["pairs"]
        assert "Define select" in found["pattern"]


def test_without_processes():
    import pytest

    with pytest.raises(limelight.ArgumentError, match="init_process_group"):
        ContextParallel(None, (((0, 4),),))
