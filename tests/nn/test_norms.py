"""Norms against transformers' own."""

import pytest
import torch
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm

from limelight.nn import RMSNorm


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_norm_of_gemma(dtype):
    torch.manual_seed(0)
    theirs, ours = Gemma2RMSNorm(6, eps=1e-3).to(dtype), RMSNorm(6, 1e-3, offset=1.0).to(dtype)
    assert torch.equal(ours.weight, theirs.weight)  # both begin as the identity
    with torch.no_grad():
        theirs.weight.copy_(torch.randn(6) * 0.01)
    ours.load_state_dict(theirs.state_dict())
    states = (30 * torch.randn(2, 3, 6)).to(dtype)
    assert ours(states).dtype == dtype
    torch.testing.assert_close(ours(states), theirs(states), rtol=torch.finfo(dtype).eps, atol=1e-6)
