"""Tensors by any strides that PyTorch allows, in the place of every tensor: what contiguous copies of them give."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import strides

import limelight
from limelight import Additive, ALiBi, Bias, Causal, Observe, RelativeBias, T5Buckets, fused

SHAPES = {
    "query": (2, 4, 5, 3), "key": (2, 2, 6, 3), "value": (2, 2, 6, 2), "sink": (4,), "slopes": (2, 4),
    "bias": (2, 4, 5, 6), "table": (4, 8), "vector": (4, 3), "features": (6, 2), "cotangent": (2, 4, 5, 2),
}  # fmt: skip


def _call(form, t, backend):
    more = {}
    if form == "rules":
        rules = (ALiBi(t["slopes"]), Bias(t["bias"]), RelativeBias(t["table"], T5Buckets(8, 6)))
        more = {"sink": t["sink"], "scores": rules}
    elif form == "additive":
        more = {"compare": Additive(t["vector"])}
    elif form == "observed":
        more = {"observe": Observe(features=t["features"], entropy=True, logsumexp=True)}
    found = limelight.attention(t["query"], t["key"], t["value"], pattern=Causal(), backend=backend, **more)
    return (found,) if isinstance(found, torch.Tensor) else (found[0], *found[1].seen().values())


@pytest.mark.parametrize("form", ["plain", "rules", "additive", "observed"])
@pytest.mark.parametrize("backend", ["native", "reference"])
@settings(max_examples=8)
@given(data=st.data())
def test_any_strides(form, backend, data):
    """Forward, first and second order: the gradient of numbers that several elements share is the sum of theirs."""
    leaves, views = {}, {}
    for name, shape in SHAPES.items():
        leaves[name], views[name] = data.draw(strides.viewed(shape), label=name)
    used = {"plain": (), "rules": ("sink", "slopes", "bias", "table"), "additive": ("vector",), "observed": ()}[form]
    asked = ["query", "key", "value", *used]
    results = []
    for copied in (False, True):
        own = {name: leaf.clone().requires_grad_(name in (*asked, "cotangent")) for name, leaf in leaves.items()}
        given_ = {name: views[name](leaf) for name, leaf in own.items()}
        if copied:
            given_ = {name: tensor.contiguous().clone() for name, tensor in given_.items()}
        with torch.no_grad():
            alone = _call(form, given_, backend)
        output, *seen = _call(form, given_, "reference" if copied else backend)
        smooth = [x for x in seen if x.requires_grad]
        first = torch.autograd.grad(
            [output, *smooth], [own[n] for n in asked], [given_["cotangent"], *map(torch.ones_like, smooth)],
            create_graph=True,
        )  # fmt: skip
        second = torch.autograd.grad(
            sum(g.square().sum() for g in first), [own[n] for n in (*asked, "cotangent")], allow_unused=True
        )
        results.append((*alone, output, *seen, *first, *second))
    for found, want in zip(*results, strict=True):
        torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-9)


@settings(max_examples=40)
@given(data=st.data())
def test_gradients_of_the_backend_itself(data):
    """Without a graph of the gradient the kernels write it: into memory where every element has its own place."""
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    made = {name: data.draw(strides.viewed(SHAPES[name], dtype), label=name) for name in ("query", "key", "value")}
    cotangent, view = data.draw(strides.viewed(SHAPES["cotangent"], dtype))
    results = []
    for copied in (False, True):
        leaves = [leaf.clone().requires_grad_() for leaf, _ in made.values()]
        tensors = [of(leaf) for leaf, (_, of) in zip(leaves, made.values(), strict=True)]
        tensors = [t.contiguous().clone() for t in tensors] if copied else tensors
        output = limelight.attention(*tensors, pattern=Causal(), backend="native")
        grad = view(cotangent)
        grad = grad.contiguous().clone() if copied else grad
        # Of the views, so that nothing but the kernel's own sums is compared; then of what they share.
        results.append((output, *torch.autograd.grad(output, tensors, grad)))
    for found, want in zip(*results, strict=True):
        torch.testing.assert_close(found, want)


@settings(max_examples=40)
@given(data=st.data())
def test_steps_of_any_strides(data):
    (x, of_x), (w, of_w) = data.draw(strides.viewed((2, 3, 8))), data.draw(strides.viewed((8,)))
    (m, of_m), (b, of_b) = data.draw(strides.viewed((5, 8))), data.draw(strides.viewed((5,)))
    (h, of_h), (own, of_own) = data.draw(strides.viewed((2, 3, 4, 6))), data.draw(strides.viewed((1, 1, 4, 6)))
    steps = (
        lambda x, w, m, b, h, own: fused.rms_norm(x, w, 1e-3),
        lambda x, w, m, b, h, own: fused.product(x, m, b),
        lambda x, w, m, b, h, own: fused.matmul(m.T, m),
        lambda x, w, m, b, h, own: fused.gated(torch.nn.functional.silu, x, x.flip(0)),
        lambda x, w, m, b, h, own: fused.rotate_halves(h, own, own),
    )
    odd = [of_x(x), of_w(w), of_m(m), of_b(b), of_h(h), of_own(own)]
    for step in steps:
        torch.testing.assert_close(step(*odd), step(*[t.contiguous().clone() for t in odd]))
    leaves = [t.clone().requires_grad_() for t in (x, w)]
    plain = [t.clone().requires_grad_() for t in (x, w)]
    ours = fused.rms_norm(of_x(leaves[0]), of_w(leaves[1]), 1e-3).sin().sum()
    views = of_x(plain[0]), of_w(plain[1])
    theirs = torch.nn.functional.rms_norm(views[0], (8,), views[1], 1e-3).sin().sum()
    torch.testing.assert_close(torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, plain))
