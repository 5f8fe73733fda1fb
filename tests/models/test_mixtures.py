"""A whole model of mixtures: heads that are skipped, experts that are chosen, both routers' losses."""

import pytest
import torch

import limelight
from limelight.models import Config, DecoderOnly, recipe
from limelight.nn import (
    Cache,
    MixtureOfExperts,
    MixtureOfHeads,
    Normal,
    PreNorm,
    QueryNorm,
    RMSNorm,
    Rotary,
    TiedHead,
    TokenEmbedding,
    TwoStage,
    balance_loss,
    routings,
    z_loss,
)


@pytest.mark.parametrize("router", [TwoStage, QueryNorm])
def test_it_learns_and_writes(router):
    torch.manual_seed(0)
    config = Config(
        family="none", vocabulary=20, width=16, layers=2, limit=40, query_heads=4, key_value_heads=2, head_width=4,
        embedding=recipe(TokenEmbedding),
        attention=recipe(
            MixtureOfHeads, shared=2, k=1, router=router, pattern=limelight.Causal(), rotary=Rotary(4), dropout=0.1
        ),
        feed_forward=recipe(MixtureOfExperts, inner=24, activation="silu", experts=4),
        norm=recipe(RMSNorm), residual=recipe(PreNorm, dropout=0.1), head=recipe(TiedHead),
        final_norm=recipe(RMSNorm),
    )  # fmt: skip
    network = DecoderOnly(config)
    Normal(0.3)(network)
    text = torch.arange(20).repeat(2)[None, :21]
    parameters, losses = list(network.parameters()), []
    for _ in range(20):
        with routings() as decided:
            logits = network(text[:, :-1]).logits
        assert len(decided) == 4  # heads and experts of two layers
        loss = torch.nn.functional.cross_entropy(logits[0], text[0, 1:])
        losses.append(loss.item())
        pull = sum(balance_loss(routing) + 0.1 * z_loss(routing) for _, routing in decided)
        gradients = torch.autograd.grad(loss + 0.01 * pull, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:  # an expert that no token was routed to has none
                parameter.data -= 0.01 * gradient.sign()
    assert losses[-1] < 0.6 * losses[0]
    network.eval().to(torch.float64)
    cache = Cache()
    with torch.no_grad():
        steps = [network(token, cache=cache).logits for token in text.split(1, dim=1)]
        torch.testing.assert_close(torch.cat(steps, 1), network(text).logits)
