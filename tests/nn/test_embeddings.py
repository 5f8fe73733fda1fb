"""First vectors against their formulas."""

import pytest
import torch
from torch import nn

from limelight.models import recipe
from limelight.nn import ForwardContext, LearnedPositions, Sinusoids, SummedEmbedding, TokenEmbedding

F64 = torch.float64
TOKENS = torch.tensor([[3, 1, 4], [1, 5, 2]])
HERE = ForwardContext(None, torch.tensor([[0, 1, 2], [5, 6, 7]]), torch.tensor([[0, 1, 1], [0, 0, 1]]))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_the_sum_of_everything():
    layer = SummedEmbedding(
        7, 6, positions=recipe(LearnedPositions, count=9, offset=1), segments=2, norm=nn.LayerNorm, scale=3.0, inner=4
    ).to(F64)
    total = 3 * layer.tokens.weight[TOKENS] + layer.positions.weight[HERE.positions + 1]
    total = total + layer.segments.weight[HERE.segments]
    centred = total - total.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    expected = normed @ layer.widen.weight.T + layer.widen.bias
    torch.testing.assert_close(layer(TOKENS, HERE), expected)
    assert layer.tokens.weight.shape == (7, 4)


def test_the_first_transformer():
    layer = SummedEmbedding(7, 6, positions=Sinusoids, scale=6**0.5).to(F64)
    assert list(layer.state_dict()) == ["tokens.weight"]
    expected = layer.tokens.weight[TOKENS] * 6**0.5 + Sinusoids(6)(HERE.positions, F64)
    torch.testing.assert_close(layer(TOKENS, HERE), expected)


def test_tokens_alone():
    layer = TokenEmbedding(7, 6, scale=2.0)
    torch.testing.assert_close(layer(TOKENS, HERE), 2 * layer.tokens.weight[TOKENS])


def test_dropout_only_in_training():
    layer = TokenEmbedding(7, 100, dropout=0.5)
    assert 0.3 < (layer(TOKENS, HERE) == 0).double().mean() < 0.7
    assert (layer.eval()(TOKENS, HERE) != 0).all()
