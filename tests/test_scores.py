"""Score rules: each class agrees with its definition in every fact that it states of itself.

The properties run over all classes of score rules. A new class needs an entry in `support.strategies.RULES` and a case
in `support.oracles.loops.apply`; then a fact that it states wrongly, or forgets to state, fails here.
"""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.oracles import loops
from support.strategies import COMPARISONS, RULES, examples, layouts, of_each_kind, sizes, subclasses

import limelight
from limelight import (
    Aligned,
    ArgumentError,
    Causal,
    Comparison,
    CosineSimilarity,
    Observe,
    RelativeBias,
    ScoreRule,
    Where,
)  # fmt: skip
from limelight.backends import native
from limelight.forms.coordinates import Part

KINDS = subclasses(ScoreRule)


def drawn(data, kind, s):
    assert KINDS[kind] in RULES, f"give support.strategies.RULES an entry that draws a {kind}"
    return RULES[KINDS[kind]](data.draw, s, torch.float64)


def where(layout, s, part=Part()):  # noqa: B008
    coordinates = (layout or Aligned()).coordinates(s.B, s.Lq, s.Lk, torch.device("cpu"))
    return Where.of(coordinates, s.B, s.Hq, part)


def random_scores(data, s):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    return torch.randn(s.scores, generator=generator, dtype=torch.float64)


def of_part(rule, part):
    """The rule with its tensors cut as their letters say."""
    slices = dict(zip("bhqk", part, strict=True))

    def cut(tensor):
        index = [slice(None)] * tensor.dim()
        for back, letter in zip(range(1, tensor.dim() + 1), reversed(rule.letters), strict=False):
            if letter in slices and tensor.shape[-back] != 1:
                index[-back] = slices[letter]
        return tensor[tuple(index)]

    return rule.with_tensors(map(cut, rule.tensors()))


@pytest.mark.parametrize("kind", KINDS)
@of_each_kind
@given(st.data())
def test_it_makes_of_a_score_what_its_definition_says(kind, data):
    s = data.draw(sizes())
    rule, layout, scores = drawn(data, kind, s), data.draw(layouts(s)), random_scores(data, s)
    rule.check(s)
    found = rule.apply(scores, where(layout, s))
    assert found.shape == scores.shape
    for b, (queries, keys) in enumerate(loops.places(layout, s.B, s.Lq, s.Lk)):
        for h, i, j in np.ndindex(*s.scores[1:]):
            if queries[i] is not None and keys[j] is not None and queries[i][1] == keys[j][1]:
                truth = loops.apply(rule, float(scores[b, h, i, j]), b, h, i, j, keys[j][0] - queries[i][0])
                assert found[b, h, i, j].item() == pytest.approx(truth, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@of_each_kind
@given(st.data())
def test_a_part_of_a_call_is_a_part_of_the_scores(kind, data):
    """By the letters of its tensors: derivatives are taken a part at a time."""
    s = data.draw(sizes())
    rule, layout, scores = drawn(data, kind, s), data.draw(layouts(s)), random_scores(data, s)
    cut = lambda size: slice(*sorted(data.draw(st.tuples(st.integers(0, size), st.integers(0, size)))))  # noqa: E731
    part = Part(*map(cut, s.scores))
    whole = rule.apply(scores, where(layout, s))[tuple(part)]
    assert torch.equal(of_part(rule, part).apply(scores[tuple(part)], where(layout, s, part)), whole)


@pytest.mark.parametrize("kind", KINDS)
@of_each_kind
@given(st.data())
def test_some_heads_have_their_part_of_the_rule(kind, data):
    s = data.draw(sizes())
    rule, scores = drawn(data, kind, s), random_scores(data, s)
    heads = slice(*sorted(data.draw(st.tuples(st.integers(0, s.Hq), st.integers(0, s.Hq)))))
    few = s._replace(Hq=heads.stop - heads.start)
    some = rule.for_heads(heads)
    assert type(some) is type(rule)
    found = some.apply(scores[:, heads], where(None, few))
    assert torch.equal(found, rule.apply(scores, where(None, s))[:, heads])


@pytest.mark.parametrize("kind", KINDS)
def test_it_says_whether_it_needs_positions(kind):
    """One that does not is served for queries whose positions are not known; one that does, refused."""
    moved = False

    @of_each_kind
    @given(st.data())
    def draw(data):
        nonlocal moved
        s = data.draw(sizes())
        rule, scores = drawn(data, kind, s), random_scores(data, s)
        at = where(None, s)
        elsewhere = at._replace(query_position=3 * at.query_position + 1, key_position=at.key_position.flip(-1))
        same = torch.equal(rule.apply(scores, at), rule.apply(scores, elsewhere))
        assert same or rule.needs_positions
        moved |= not same

    draw()
    assert moved == KINDS[kind].needs_positions, f"state needs_positions = {moved} in {kind}"


# --- Comparisons -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", subclasses(Comparison))
@of_each_kind
@given(st.data())
def test_a_comparison_agrees_with_its_definition(kind, data):
    """Output and logsumexp, beside rules, sinks and patterns."""
    kind = subclasses(Comparison)[kind]
    assert kind in COMPARISONS, f"give support.strategies.COMPARISONS an entry that draws a {kind.__name__}"
    example = data.draw(examples(sizes(lengths=st.integers(0, 5), widths=st.integers(1, 3)), dropout=False))
    compare = COMPARISONS[kind](data.draw, example.sizes, torch.float64)
    settings = {**example.settings, "compare": compare}
    del settings["scale"]
    tensors = (example.query, example.key, example.value)
    found, seen = limelight.attention(*tensors, observe=Observe(logsumexp=True), backend="reference", **settings)
    truth, _, logsumexp, _ = loops.attention(*tensors, **settings)
    np.testing.assert_allclose(found.numpy(), truth, rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(seen.logsumexp.numpy(), logsumexp, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("learned", [False, True])
def test_derivatives_of_a_cosine(learned):
    q, k, v = (torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True) for _ in range(3))
    temperature = torch.tensor([0.3, 1.2], dtype=torch.float64, requires_grad=learned)

    def output(q, k, v, temperature):
        compare = CosineSimilarity(temperature if learned else 0.5)
        return limelight.attention(q, k, v, pattern=Causal(), compare=compare)

    assert torch.autograd.gradcheck(output, (q, k, v, temperature))
    assert torch.autograd.gradgradcheck(output, (q, k, v, temperature))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cosine_in_the_kernels(dtype):
    """It is served by whichever backend serves the dot product, with gradients and observations."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 4, 40, 16, dtype=dtype, requires_grad=True) for _ in range(3))
    everything = Observe(logsumexp=True, entropy=True, top=3, received=True)
    settings = {"pattern": Causal(), "compare": CosineSimilarity(0.1)}
    kernels = limelight.explain(q, k, v, **settings).backend
    assert kernels == limelight.explain(q, k, v, pattern=Causal()).backend
    found, seen = limelight.attention(q, k, v, observe=everything, **settings)
    # Both multiply the same normalized vectors, which are rounded to the dtype.
    truth, all_seen = limelight.attention(q, k, v, observe=everything, backend="reference", **settings)
    cotangent = torch.randn_like(found)
    gradients = (torch.autograd.grad(output, (q, k, v), cotangent) for output in (found, truth))
    pairs = [(found, truth), (seen.entropy, all_seen.entropy), (seen.received, all_seen.received)]
    for one, other in [*pairs, *zip(*gradients, strict=True)]:
        error = (one.double() - other.double()).abs().max() / other.double().abs().max()
        assert error < (1e-5 if dtype is torch.float32 else 1e-2)


def test_a_cosine_while_decoding():
    """Query by query over a growing cache what the whole text gives; long vectors change nothing."""
    q, k, v = (torch.randn(1, 2, 20, 8) for _ in range(3))
    compare = CosineSimilarity(torch.tensor([0.2, 0.5]))
    whole = limelight.attention(q, k, v, pattern=Causal(), compare=compare)
    for n in range(1, 21):
        one = limelight.attention(q[:, :, n - 1 : n], k[:, :, :n], v[:, :, :n], pattern=Causal(), compare=compare)
        torch.testing.assert_close(one, whole[:, :, n - 1 : n])
    for size in (1e-30, 1e30):
        torch.testing.assert_close(limelight.attention(q * size, k, v, pattern=Causal(), compare=compare), whole)


def test_a_cosine_with_a_zero_vector_and_with_nan():
    q, k, v = (torch.randn(1, 1, 6, 4) for _ in range(3))
    k[:, :, 2] = 0
    clean = limelight.attention(q, k, v, compare=CosineSimilarity())
    assert clean.isfinite().all()
    weights = torch.nn.functional.cosine_similarity(q[:, :, :, None], k[:, :, None], dim=-1).softmax(-1)
    torch.testing.assert_close(clean, weights @ v)
    k[:, :, 4] = torch.nan
    found = limelight.attention(q, k, v, pattern=Causal(), compare=CosineSimilarity())
    assert found[:, :, :4].isfinite().all()
    assert found[:, :, 4:].isnan().all()


@pytest.mark.parametrize(
    ("temperature", "got"), [(0, "it is 0"), (-1.0, "it is -1.0"), ("warm", "'warm'"), (torch.ones(2, 2), "(2, 2)")]
)
def test_a_temperature_is_positive(temperature, got):
    with pytest.raises(ArgumentError, match=r"^`temperature` must be") as caught:
        CosineSimilarity(temperature)
    assert got in str(caught.value)


# --- A class without a claim -----------------------------------------------------------------------------------------


class Quartered(ScoreRule):
    """A quarter of each score, by a class that says nothing but its definition."""

    def apply(self, scores, at):
        return scores / 4


def test_a_class_that_states_nothing_is_served_by_the_definition():
    q, k, v = (torch.randn(2, 2, 9, 4, requires_grad=True) for _ in range(3))
    found = limelight.attention(q, k, v, scores=(Quartered(),), scale=1.0)
    truth = limelight.attention(q, k, v, scale=0.25)
    torch.testing.assert_close(found, truth)
    cotangent = torch.randn_like(found)
    for one, other in zip(
        torch.autograd.grad(found, (q, k, v), cotangent), torch.autograd.grad(truth, (q, k, v), cotangent), strict=True
    ):
        torch.testing.assert_close(one, other)
    reasons = limelight.explain(q, k, v, scores=(Quartered(),)).reasons
    assert all(any("Quartered" in why for why in reasons[name]) for name in ("native", "flash2", "flash3"))
    with pytest.raises(ArgumentError, match=r"cut into heads, but there is Quartered\(\)"):
        Quartered().for_heads(slice(0, 1))


# --- Single rules ----------------------------------------------------------------------------------------------------


q, k = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 6, 8)

WRONG_BUCKETS = {
    "shape": (lambda d: d.abs()[..., :1], "it gave an int64 tensor of shape"),
    "more": (lambda d: d[None], "shape (1, "),
    "float": (lambda d: d.abs().clamp(max=2).float(), "float32"),
    "bool": (lambda d: d > 0, "bool"),
    "number": (lambda d: 0, "it gave 0"),
    "beyond": (lambda d: d.abs(), "to 5"),
    "negative": (lambda d: d.clamp(-1, 1), "from -1 to 1"),
}


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize(("buckets", "values"), WRONG_BUCKETS.values(), ids=WRONG_BUCKETS)
def test_buckets_give_a_column_for_each_distance(buckets, values, backend):
    if backend == "native" and not native.available():
        pytest.skip(native.why_missing())
    with pytest.raises(ArgumentError, match=r"^`buckets` must give") as caught:
        limelight.attention(q, k, k, scores=(RelativeBias(torch.randn(4, 3), buckets),), backend=backend)
    assert values in str(caught.value)


@pytest.mark.parametrize("backend", [None, "reference"])
def test_buckets_may_be_whole_numbers_of_any_width(backend):
    table = torch.randn(4, 3)

    def found(dtype):
        rule = RelativeBias(table, lambda d: d.abs().clamp(max=2).to(dtype))
        return limelight.attention(q, k, k, scores=(rule,), backend=backend)

    for dtype in (torch.uint8, torch.int16, torch.int32):
        assert torch.equal(found(dtype), found(torch.int64))
