"""Neighbours' conventions mean what the neighbours mean."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as theirs

from limelight import ArgumentError, compat

q, k, v = torch.randn(2, 4, 7, 8), torch.randn(2, 4, 9, 8), torch.randn(2, 4, 9, 8)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"is_causal": True},
        {"attn_mask": torch.rand(7, 9) < 0.8},
        {"attn_mask": torch.randn(4, 7, 9)},
        {"scale": 0.3},
    ],
    ids=lambda s: ", ".join(s) or "plain",
)
def test_scaled_dot_product_attention(settings):
    torch.testing.assert_close(compat.scaled_dot_product_attention(q, k, v, **settings), theirs(q, k, v, **settings))


def test_scaled_dot_product_attention_of_groups():
    ours = compat.scaled_dot_product_attention(q, k[:, :2], v[:, :2], enable_gqa=True)
    torch.testing.assert_close(ours, theirs(q, k[:, :2], v[:, :2], enable_gqa=True))
    with pytest.raises(ArgumentError, match="enable_gqa"):
        compat.scaled_dot_product_attention(q, k[:, :2], v[:, :2])
    with pytest.raises(ArgumentError, match="is_causal"):
        compat.scaled_dot_product_attention(q, k, v, attn_mask=torch.ones(7, 9).bool(), is_causal=True)


def flash_by_hand(q, k, v, causal=False, left=-1, right=-1, softcap=0.0, slopes=None):
    """flash-attention's documented meaning, of ``(L, H, D)``: bottom-right causal, windows that count keys."""
    i, j = torch.arange(len(q))[:, None] + len(k) - len(q), torch.arange(len(k))
    scores = torch.einsum("ihd,jhd->hij", q, k) / q.shape[-1] ** 0.5
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    if slopes is not None:
        scores = scores - slopes[:, None, None] * (i - j).abs()
    seen = torch.ones_like(scores, dtype=torch.bool)
    if causal:
        seen &= j <= i
    if left >= 0:
        seen &= j >= i - left
    if right >= 0:
        seen &= j <= i + right
    return torch.einsum("hij,jhd->ihd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)


FORMS = [
    {},
    {"causal": True},
    {"left": 2, "right": 1},
    {"causal": True, "left": 3, "softcap": 2.0},
    {"slopes": torch.rand(4)},
]


@pytest.mark.parametrize("form", FORMS, ids=lambda f: ", ".join(f) or "plain")
def test_flash_attention(form):
    settings = {
        "causal": form.get("causal", False),
        "window_size": (form.get("left", -1), form.get("right", -1)),
        "softcap": form.get("softcap", 0.0),
        "alibi_slopes": form.get("slopes"),
    }
    a, b, c = (t.transpose(1, 2) for t in (q, k, v))
    ours = compat.flash_attn_func(a, b, c, **settings)
    for row in range(2):
        torch.testing.assert_close(ours[row], flash_by_hand(a[row], b[row], c[row], **form))
    ends_q, ends_k = torch.tensor([0, 2, 7], dtype=torch.int32), torch.tensor([0, 4, 9], dtype=torch.int32)
    packed = compat.flash_attn_varlen_func(a[0], b[0], c[0], ends_q, ends_k, 5, 5, **settings)
    for (q0, q1), (k0, k1) in (((0, 2), (0, 4)), ((2, 7), (4, 9))):
        torch.testing.assert_close(packed[q0:q1], flash_by_hand(a[0, q0:q1], b[0, k0:k1], c[0, k0:k1], **form))
