"""What it means that a model of ours and one of transformers agree.

In float64 to a relative 1e-9, at tokens that exist. In float32 our error against the float64 truth is at most 1.5 times
that of transformers' eager attention, on the maximum and on the root mean square, plus one rounding step.
"""

from contextlib import contextmanager

import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


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


def assert_no_worse_by_token(ours, eager, truth):
    """The same for few texts: of the largest errors of the tokens the mean, for the largest of them all is one draw.

    (From layer to layer of one model the ratio of the two largest errors was measured to run from 0.4 to 3.2, where
    that of the root mean squares stays between 0.9 and 1.4.)
    """
    assert ours.dtype == eager.dtype == torch.float32
    step = torch.finfo(torch.float32).eps * truth.abs().max()
    mine, others = (ours - truth).abs(), (eager - truth).abs()
    assert mine.amax(-1).mean() <= 1.5 * others.amax(-1).mean() + step
    assert mine.square().mean().sqrt() <= 1.5 * others.square().mean().sqrt() + step


def assert_same_choices(ours, theirs, near=1e-3):
    """The most likely token is the same, unless the two best are nearly equal."""
    best = theirs.topk(2, dim=-1).values
    clear = (best[..., 0] - best[..., 1]) > near * theirs.abs().max()
    assert clear.any()
    assert (ours.argmax(-1) == theirs.argmax(-1))[clear].all()


@contextmanager
def float64_throughout(*models):
    """Some code of transformers rounds to float32 whatever its dtype (norms, angles, eager softmax): undo it.

    Unpatched, its own eager and sdpa attention differ by more than 1e-9 in float64, so neither could be the truth.
    Inside, what is converted to float32 becomes float64, and the frequencies of the ``models`` are recomputed.
    """
    to, softmax, nothing = torch.Tensor.to, torch.nn.functional.softmax, torch.Tensor.float

    def wide(value):
        return torch.float64 if value is torch.float32 else value

    torch.Tensor.float = lambda self, *_, **__: self.double()
    torch.Tensor.to = lambda self, *args, **how: to(self, *map(wide, args), **{k: wide(v) for k, v in how.items()})
    torch.nn.functional.softmax = lambda x, dim=None, dtype=None: softmax(x, dim=dim)
    rotary = [module for model in models for module in model.modules() if hasattr(module, "inv_freq")]
    names = ("inv_freq", "original_inv_freq", "long_inv_freq")
    kept = [{name: getattr(module, name, None) for name in names} for module in rotary]
    try:
        for module in rotary:
            module.inv_freq = exact_frequencies(module.config)
            if module.config.rope_parameters["rope_type"] == "longrope":  # chosen in each pass, by the longest text
                module.original_inv_freq = module.inv_freq.clone()
                module.long_inv_freq = exact_frequencies(module.config, seq_len=2**31)
        yield
    finally:
        torch.Tensor.to, torch.nn.functional.softmax, torch.Tensor.float = to, softmax, nothing
        for module, before in zip(rotary, kept, strict=True):
            for name, frequencies in before.items():
                setattr(module, name, frequencies)


def exact_frequencies(config, **how):
    """Radians per position of each pair, in float64, after the published rules."""
    rope = config.rope_parameters
    if rope["rope_type"] not in ("default", "linear", "llama3", "dynamic"):
        # In float64, for its conversions are undone.
        return ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, "cpu", **how)[0]
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width = int(width * rope.get("partial_rotary_factor", 1.0))
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
