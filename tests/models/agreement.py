"""What it means that a model of ours and one of transformers agree.

In float64 to a relative 1e-9, at tokens that exist. In float32 our error against the float64 truth is at most 1.5 times
that of transformers' eager attention, on the maximum and on the root mean square, plus one rounding step.
"""

from contextlib import contextmanager

import torch
from transformers.models.llama import modeling_llama


def real_tokens(tokens):
    """``(B, L)`` bool, true where a token exists."""
    B, L = tokens.ids.shape
    if tokens.layout is None:
        return torch.ones(B, L, dtype=torch.bool)
    return tokens.layout.coordinates(B, L, L, tokens.ids.device).query_exists


def assert_equal(ours, theirs, relative=1e-9):
    assert ours.dtype == theirs.dtype == torch.float64
    assert ours.shape == theirs.shape
    error, scale = (ours - theirs).abs().max().item(), theirs.abs().max().item()
    assert error <= relative * scale, f"off by {error / scale:.2e} of the largest value"


def assert_no_worse(ours, eager, truth):
    assert ours.dtype == eager.dtype == torch.float32
    step = torch.finfo(torch.float32).eps * truth.abs().max()
    mine, others = (ours - truth).abs(), (eager - truth).abs()
    assert mine.max() <= 1.5 * others.max() + step
    assert mine.square().mean().sqrt() <= 1.5 * others.square().mean().sqrt() + step


def assert_same_choices(ours, theirs, near=1e-3):
    """The most likely token is the same, unless the two best are nearly equal."""
    best = theirs.topk(2, dim=-1).values
    clear = (best[..., 0] - best[..., 1]) > near * theirs.abs().max()
    assert clear.any()
    assert (ours.argmax(-1) == theirs.argmax(-1))[clear].all()


@contextmanager
def float64_throughout():
    """Transformers' Llama rounds to float32 in three places whatever its dtype (norm, angles, eager softmax): undo it.

    Unpatched, its own eager and sdpa attention differ by more than 1e-9 in float64, so neither could be the truth.
    """

    def norm(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    def angles(self, x, position_ids):
        angle = position_ids[..., None].double() * exact_frequencies(self.config)
        angle = torch.cat((angle, angle), dim=-1)
        return angle.cos(), angle.sin()

    kept = modeling_llama.LlamaRMSNorm.forward, modeling_llama.LlamaRotaryEmbedding.forward
    softmax = torch.nn.functional.softmax
    modeling_llama.LlamaRMSNorm.forward = norm
    modeling_llama.LlamaRotaryEmbedding.forward = angles
    torch.nn.functional.softmax = lambda x, dim=None, dtype=None: softmax(x, dim=dim)
    try:
        yield
    finally:
        modeling_llama.LlamaRMSNorm.forward, modeling_llama.LlamaRotaryEmbedding.forward = kept
        torch.nn.functional.softmax = softmax


def exact_frequencies(config):
    """Radians per position of each pair, in float64, after the published rules."""
    rope = config.rope_parameters
    width = config.head_dim
    plain = [rope["rope_theta"] ** (-2 * i / width) for i in range(width // 2)]
    return torch.tensor([_stretched(f, rope) for f in plain], dtype=torch.float64)


def _stretched(frequency, rope):
    if rope["rope_type"] == "linear":
        return frequency / rope["factor"]
    if rope["rope_type"] == "llama3":
        length, low, high = (
            rope[k] for k in ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor")
        )
        wave = 2 * torch.pi / frequency
        if wave < length / high:
            return frequency
        if wave > length / low:
            return frequency / rope["factor"]
        smooth = (length / wave - low) / (high - low)
        return (1 - smooth) * frequency / rope["factor"] + smooth * frequency
    return frequency
