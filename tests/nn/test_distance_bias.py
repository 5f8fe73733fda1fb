"""The layers that make score rules of the distance, compared with transformers."""

import torch
from transformers.models.bloom.modeling_bloom import build_alibi_tensor

import limelight
from limelight.nn import DistanceBias, LinearBias


def test_slopes_are_the_published_ones():
    for heads in (1, 2, 8, 12, 16, 71):
        theirs = build_alibi_tensor(torch.ones(1, 2, dtype=torch.int64), heads, torch.float32)[:, 0, 1]
        torch.testing.assert_close(LinearBias(heads)(torch.zeros(1)).slopes, theirs)


def test_the_rule_of_a_distance_bias_shares_its_parameter():
    bias = DistanceBias(3, limelight.T5Buckets(8, 20))
    rule = bias()
    assert rule.table.data_ptr() == bias.weight.data_ptr()
    assert rule.table.shape == (3, 8)
    rule.over(-5, 5).sum().backward()
    assert bias.weight.grad.sum() == 33
    assert not LinearBias(4).state_dict()
