"""Numbers of 8 bits: what a scale for each block and a rotation are good for, and that the result stays what it is."""

import pytest
import torch

import limelight
from limelight import Causal
from limelight.backends import choose
from limelight.backends.contract import BackendError
from limelight.backends.gpu.hopper.quantise import (
    MAX,
    QUERIES,
    SPREAD,
    in_blocks,
    key_order,
    quantise,
    rotation_matrix,
    with_exponents,
)
from limelight.forms.settings import Settings
from limelight.operator.calling import prepare

CPU = torch.device("cpu")


def outliers(*shape, generator):
    """Normal numbers, of which one in a thousand stands out (the inputs of FlashAttention 3's measurement)."""
    normal = lambda: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return normal() + 10 * normal() * (torch.rand(*shape, generator=generator) < 0.001)


def dequantised(q, k, v, keys, rotate=True):
    """What the 8-bit numbers stand for, in float64; blocks of all rows and no rotation are the per-tensor baseline."""
    rotation = rotation_matrix(q.shape[-1], CPU).double() if rotate else torch.eye(q.shape[-1], dtype=torch.float64)

    def stands(x, rows):
        small, scales = in_blocks(x.float(), rows)
        return small.double() * scales.repeat_interleave(rows, 2)[:, :, : x.shape[2], None].double()

    rows = QUERIES if keys < q.shape[2] else keys
    return stands(q @ rotation, rows) @ rotation.mT, stands(k @ rotation, keys) @ rotation.mT, stands(v, keys)


def test_blocks_and_a_rotation_beat_one_scale_for_the_tensor():
    generator = torch.Generator().manual_seed(1)
    q, k, v = (outliers(1, 2, 512, 128, generator=generator) for _ in range(3))
    truth = limelight.attention(q, k, v, backend="reference")
    error = lambda small: (limelight.attention(*small, backend="reference") - truth).square().mean().sqrt().item()  # noqa: E731
    ours, blocks, per_tensor = (error(dequantised(q, k, v, *how)) for how in ((128, True), (128, False), (512, False)))
    assert blocks < per_tensor
    assert ours < per_tensor / 1.5, (ours, per_tensor)


@pytest.mark.parametrize("width", [33, 64, 96, 128, 200, 256])
def test_the_rotation_leaves_products_as_they_are_and_spreads(width):
    rotation = rotation_matrix(width, CPU).double()
    assert torch.allclose(rotation @ rotation.mT, torch.eye(width, dtype=torch.float64), atol=1e-6)
    one = torch.zeros(width, dtype=torch.float64)
    one[3] = 1.0
    assert (one @ rotation).abs().max() <= rotation.shape[1] ** -0.5 + 1e-6


def test_a_block_is_not_disturbed_by_another():
    x = torch.randn(1, 2, 150, 64, generator=torch.Generator().manual_seed(0))
    quiet, scales = in_blocks(x, 64)
    x[0, 1, 140, 5] = 1e6
    loud, other = in_blocks(x, 64)
    assert torch.equal(quiet[:, :, :128].float(), loud[:, :, :128].float())
    assert torch.equal(scales[:, :, :2], other[:, :, :2])
    assert other[0, 1, 2] == pytest.approx(1e6 / MAX)
    zeros, scale = in_blocks(torch.zeros(1, 1, 3, 64), 64)
    assert not zeros.float().any()
    assert scale.isfinite().all()


def test_scales_of_values_are_powers_of_two_within_a_range():
    x = torch.ones(1, 1, 256, 64)
    for block, size in enumerate((448.0, 2.0**-30, 1e-38, 0.0)):
        x[:, :, 64 * block : 64 * block + 64] *= size
    x[0, 0, 3, 5] = 449.0
    small, exponents = with_exponents(x, 64)
    assert exponents.flatten()[[0, 1, 3]].tolist() == [1.0, -38.0, 1.0 - SPREAD]
    assert exponents.flatten()[2].isnan()  # too small to be kept beside the first: what sees it is computed again
    stands = small.float() * exponents.exp2().repeat_interleave(64, 2)[..., None]
    assert torch.equal(stands[:, :, 64:128], x[:, :, 64:128])
    assert stands[0, 0, 3, 5] == 448.0
    assert not stands[:, :, 192:].any()
    for value in (float("nan"), float("inf")):
        x[0, 0, 70, 0] = value
        assert with_exponents(x, 64)[1].isfinite().flatten().tolist() == [True, False, False, True]


def test_values_stand_where_the_weights_are_looked_for():
    """A thread of a quad (``q``) has the weights of columns ``8 b + 2 q + f`` and offers them as ``16 h + 4 q + e``."""
    expected = [8 * (2 * h + e // 2) + 2 * q + e % 2 for h in range(2) for q in range(4) for e in range(4)]
    assert key_order(64, CPU).tolist() == expected + [32 + n for n in expected]
    x = torch.randn(1, 1, 70, 64)
    small = quantise(x, x, x, 64)
    assert small.value.shape == (1, 1, 64, 128)
    straight, _ = with_exponents(x, 64)
    assert torch.equal(small.value[0, 0, :, :32].float(), straight[0, 0, expected].mT.float())
    assert not small.value[0, 0, :, 96:].float().any()


def test_it_runs_only_when_it_is_named():
    q = torch.zeros(1, 1, 128, 64, dtype=torch.bfloat16)
    assert choose(prepare(q, q, q, Settings(pattern=Causal())), None).NAME != "flash3-float8"
    with pytest.raises(BackendError, match="'flash3-float8' cannot serve this call: the tensors are on cpu"):
        limelight.attention(q, q, q, backend="flash3-float8")
    with pytest.raises(BackendError, match="flash3-float8 has no derivatives, and a gradient is wanted"):
        limelight.attention(q.clone().requires_grad_(), q, q, backend="flash3-float8")
