"""Calls whose scores are finite and very large, of either sign, and their expected results.

The results are computed in float64 from the scores rounded to float32: near -1e10, float32 numbers are 1024 apart, so
the expected weights must come from the rounded scores. In float64 their differences, and so the weights, are exact.
"""

import torch

from limelight.backends import reference
from limelight.forms.settings import Settings
from limelight.operator.calling import prepare

FLOAT32_MIN = torch.finfo(torch.float32).min


def tensors(Lq, Lk, D=16, dtype=torch.float32):
    generator = torch.Generator().manual_seed(Lk)
    return [torch.randn(1, 2, n, D, generator=generator).to(dtype) for n in (Lq, Lk, Lk)]


def scores_of(query, key, settings):
    """The scores after the rules in float32, and which key each query sees."""
    call = prepare(query, key, key, Settings(layout=settings.get("layout"), pattern=settings.get("pattern")))
    visible, at, _ = reference._visibility(call)
    scores = query.float() @ key.float().mT * settings.get("scale", query.shape[-1] ** -0.5)
    for rule in settings.get("scores", ()):
        scores = rule.apply(scores, at)
    return scores, visible


def by_definition(query, key, value, upstream, settings):
    """Output, natural logsumexp and entropy, weights, and the gradients of queries, keys and values, in float64."""
    scores, visible = scores_of(query, key, settings)
    scores = torch.where(visible, scores.double(), -torch.inf)
    q, k, v, g = (t.double() for t in (query, key, value, upstream))
    sink = settings.get("sink")
    with_sink = scores
    if sink is not None:
        with_sink = torch.cat([scores, sink.double()[None, :, None, None].expand_as(scores[..., :1])], -1)
    peak = with_sink.amax(-1, keepdim=True)
    total = torch.exp(with_sink - peak).sum(-1, keepdim=True)
    weights = torch.exp(scores - peak) / total
    scale = settings.get("scale", query.shape[-1] ** -0.5)
    output = weights @ v
    ds = weights * (g @ v.mT - (g * output).sum(-1, keepdim=True)) * scale
    found = {"output": output, "query": ds @ k, "key": ds.mT @ q, "value": weights.mT @ g}
    if sink is not None:
        share = torch.exp(sink.double()[None, :, None, None] - peak) / total
        found["sink"] = -(share * (g * output).sum(-1, keepdim=True)).sum((0, 2, 3))
    seen = {
        "logsumexp": (peak + total.log()).squeeze(-1),
        "entropy": -torch.xlogy(weights, weights).sum(-1),
        "max_weight": weights.amax(-1),
        "max_score": scores.amax(-1),
        "received": weights.sum(-2),
        "rows": weights,
    }
    return found, seen


def close(ours, truth, name, tolerance, terms=1.0):
    """Check that values are finite and within a tolerance of the truth, relative to its maximum, at least ``terms``."""
    assert bool(ours.isfinite().all()), name
    error = (ours.double() - truth).abs().max().item()
    assert error <= tolerance * max(terms, truth.abs().max().item()), f"{name}: off by {error:.2g}"
