"""A whole model with a cache against the same without."""

import pytest
import torch

import limelight
from limelight.models import Config, DecoderOnly, recipe
from limelight.nn import Cache, GatedFeedForward, MultiHead, PreNorm, RMSNorm, Rotary, TiedHead, TokenEmbedding

F64 = torch.float64


def model(limit=40):
    torch.manual_seed(0)
    config = Config(
        family="none", vocabulary=30, width=16, layers=3, limit=limit, query_heads=4, key_value_heads=2, head_width=4,
        embedding=recipe(TokenEmbedding),
        attention=recipe(MultiHead, pattern=limelight.Causal() & limelight.Window(6, 0), rotary=Rotary(4)),
        feed_forward=recipe(GatedFeedForward, inner=24, activation="silu"),
        norm=recipe(RMSNorm), final_norm=recipe(RMSNorm), residual=recipe(PreNorm), head=recipe(TiedHead),
    )  # fmt: skip
    return DecoderOnly(config).to(F64).requires_grad_(False)


@pytest.mark.parametrize("side", ["left", "right"])
def test_texts_of_different_lengths_token_by_token(side):
    network, lengths = model(), torch.tensor([9, 4, 1])
    texts = [torch.randint(0, 30, (n + 8,)) for n in lengths.tolist()]
    batch = torch.zeros(3, 9, dtype=torch.int64)
    for row, text, n in zip(batch, texts, lengths.tolist(), strict=True):
        row[slice(n) if side == "right" else slice(9 - n, 9)] = text[:n]
    cache = Cache()
    network(batch, layout=limelight.Padded(lengths, side=side), cache=cache)
    steps = [network(torch.stack([t[n + k] for t, n in zip(texts, lengths, strict=True)])[:, None], cache=cache)
             for k in range(8)]  # fmt: skip
    got = torch.cat([step.logits for step in steps], 1)
    for row, text in zip(got, texts, strict=True):
        torch.testing.assert_close(row, network(text[None]).logits[0, -8:], rtol=1e-11, atol=1e-11)


def test_the_positions_of_a_model_end_with_a_cache_too():
    network, cache = model(limit=5), Cache()
    network(torch.zeros(1, 4, dtype=torch.int64), cache=cache)
    network(torch.zeros(1, 1, dtype=torch.int64), cache=cache)
    with pytest.raises(limelight.ArgumentError, match="5 positions"):
        network(torch.zeros(1, 1, dtype=torch.int64), cache=cache)
