"""Scores for kvpress, against the formulas of its presses over eager's weights."""

import pytest
import torch
from support.agreement import float64_throughout
from support.peers import made
from torch.nn.functional import avg_pool1d

import limelight
from limelight.integrations.kvpress import Score
from limelight.nn import LastQueries, Received, Recency

WINDOW, POOL = 8, 5


def formulas(weights, heads):
    """What ObservedAttentionPress and SnapKVPress make of the weights ``(B, Hq, L, L)``."""
    L = weights.shape[-1]
    observed = (weights.sum(2) / torch.arange(L, 0, -1)).unflatten(1, (heads, -1)).mean(2)
    last = weights[:, :, -WINDOW:, :-WINDOW].mean(2)
    return observed, avg_pool1d(last, POOL, stride=1, padding=POOL // 2).unflatten(1, (heads, -1)).mean(2)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_scores_are_those_of_the_presses(name):
    model = made(name).double().eval()
    model.set_attn_implementation("eager")
    calls = []
    for layer in model.model.layers:
        layer.self_attn.register_forward_hook(
            lambda module, args, kwargs, output: calls.append((module, kwargs, output[1])), with_kwargs=True
        )
    ids = torch.randint(5, 50, (2, 30), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), float64_throughout():
        cache = model(ids, output_attentions=True).past_key_values
        for number, (module, kwargs, weights) in enumerate(calls):
            keys, values = cache.layers[number].keys, cache.layers[number].values
            observed, last = formulas(weights, keys.shape[1])
            for by, expected in ((Received(), observed), (LastQueries(WINDOW, POOL), last)):
                press = Score()
                press.by = by
                found = press.score(module, kwargs["hidden_states"], keys, values, None, kwargs)
                torch.testing.assert_close(found[..., : expected.shape[-1]], expected, rtol=1e-9, atol=1e-12)
                assert bool((found[..., 30 - by.window :] == torch.inf).all())
            press.by = Recency()
            assert press.score(module, kwargs["hidden_states"], keys, values, None, kwargs)[0, 0, -1] == 29
    with pytest.raises(limelight.ArgumentError, match="Linear has no q_proj"):
        Score().score(torch.nn.Linear(2, 2), torch.zeros(1, 3, 2), torch.zeros(1, 1, 3, 2), None, None, {})
