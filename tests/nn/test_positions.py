"""Rotations against the formulas of the papers and against transformers' own."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.gptj.modeling_gptj import apply_rotary_pos_emb as turn_neighbours

import limelight
from limelight.nn import DynamicNTK, InterleavedPairs, LongRope, Rotary, SplitHalves, YaRN

F64 = torch.float64


def published(kind, width, length=None, **scaling):
    """Their frequencies and magnitude. They compute in float32."""
    config = LlamaConfig(
        hidden_size=4 * width, num_attention_heads=4, max_position_embeddings=scaling.pop("limit", 2048),
        rope_parameters={"rope_type": kind, "rope_theta": 10_000.0, **scaling},
    )  # fmt: skip
    frequencies, magnitude = ROPE_INIT_FUNCTIONS[kind](config, "cpu", seq_len=length)
    return frequencies.to(F64), magnitude


def plain(width, theta=10_000.0):
    return theta ** (-torch.arange(0, width, 2, dtype=F64) / width)


@pytest.mark.parametrize("width", [4, 64, 128])
@pytest.mark.parametrize("length", [5, 2048, 2049, 9000])
def test_dynamic_ntk_is_that_of_transformers(width, length):
    theirs, _ = published("dynamic", width, length, factor=4.0, original_max_position_embeddings=2048)
    ours = DynamicNTK(4.0, 2048).frequencies(plain(width), torch.tensor([[length]]))
    torch.testing.assert_close(ours[0], theirs, rtol=2e-6, atol=0)


@pytest.mark.parametrize("width", [8, 64, 128])
@pytest.mark.parametrize(
    "more", [{}, {"beta_fast": 16.0, "beta_slow": 2.0}, {"truncate": False}, {"attention_factor": 1.5}]
)
def test_yarn_is_that_of_transformers(width, more):
    theirs, magnitude = published("yarn", width, factor=8.0, original_max_position_embeddings=4096, limit=32768, **more)
    ours = YaRN(
        8.0, 4096, fast=more.get("beta_fast", 32.0), slow=more.get("beta_slow", 1.0),
        attention_factor=more.get("attention_factor", math.nan), whole_pairs=more.get("truncate", True),
    )  # fmt: skip
    torch.testing.assert_close(ours.frequencies(plain(width), torch.tensor([[1]])), theirs, rtol=2e-6, atol=0)
    assert ours.attention_factor == pytest.approx(magnitude)


SHORT, LONG = (1.0, 1.25, 1.5, 2.0), (1.0, 2.5, 8.0, 17.0)


@pytest.mark.parametrize("length", [1, 2048, 2049, 9000])
@pytest.mark.parametrize("more", [{}, {"factor": 8.0}, {"attention_factor": 1.5}])
def test_longrope_is_that_of_transformers(length, more):
    scaling = {"short_factor": [*SHORT], "long_factor": [*LONG], "original_max_position_embeddings": 2048}
    theirs, magnitude = published("longrope", 8, length, limit=8192, **scaling, **more)
    grown = more.get("factor", 8192 / 2048)
    ours = LongRope(SHORT, LONG, 2048, more.get("attention_factor", (1 + math.log(grown) / math.log(2048)) ** 0.5))
    torch.testing.assert_close(ours.frequencies(plain(8), torch.tensor([[length]]))[0], theirs, rtol=2e-6, atol=0)
    assert ours.attention_factor == pytest.approx(magnitude)


def test_longrope_reads_each_row_by_its_own_length():
    rotary = Rotary(8, scaling=LongRope(SHORT, LONG, 4))
    rows = torch.tensor([[0, 1, 2, 3, 0, 0], [0, 1, 2, 3, 4, 5]])
    together = rotary.at(rows, F64)
    for row, alone in enumerate(rows):
        torch.testing.assert_close(together.cosine[row : row + 1], rotary.at(alone[None], F64).cosine)
    assert not torch.allclose(together.cosine[0, 0, 1], together.cosine[1, 0, 1])


@pytest.mark.parametrize(("short", "long"), [((1.0,), (1.0, 2.0)), ((1.0, 0.0), (1.0, 2.0)), ((1.0,), (math.nan,))])
def test_factors_of_longrope(short, long):
    with pytest.raises(limelight.ArgumentError, match="above 0"):
        LongRope(short, long, 4)


def test_longrope_has_a_factor_for_each_pair():
    with pytest.raises(limelight.ArgumentError, match="2 for 4 pairs"):
        Rotary(8, scaling=LongRope((1.0, 1.0), (1.0, 2.0), 4)).at(torch.arange(3)[None], F64)


def test_yarn_scales_the_vectors():
    rotation = Rotary(8, scaling=YaRN(8.0, 16)).at(torch.arange(5)[None], F64)
    squares = rotation.cosine.square() + rotation.sine.square()
    torch.testing.assert_close(squares, torch.full_like(squares, (0.1 * math.log(8) + 1) ** 2))


def test_dynamic_ntk_reads_each_row_by_its_own_length():
    rotary = Rotary(8, scaling=DynamicNTK(2.0, 4))
    rows = torch.tensor([[0, 1, 2, 3, 0, 0], [0, 1, 2, 3, 4, 5]])
    together = rotary.at(rows, F64)
    for row, alone in enumerate(rows):
        torch.testing.assert_close(together.cosine[row : row + 1], rotary.at(alone[None], F64).cosine)
    torch.testing.assert_close(together.cosine[0], Rotary(8).at(rows, F64).cosine[0])
    assert not torch.allclose(together.cosine[1], Rotary(8).at(rows, F64).cosine[1])


def test_neighbours_are_the_pairs_of_gptj():
    heads = torch.randn(2, 3, 5, 8, dtype=F64)
    ours = Rotary(8, pairing=InterleavedPairs()).at(torch.arange(5)[None], F64)
    # theirs wants (B, L, H, D), and one angle for each pair
    theirs = turn_neighbours(heads.transpose(1, 2), ours.sine[:, 0], ours.cosine[:, 0]).transpose(1, 2)
    torch.testing.assert_close(ours.rotate(heads), theirs)


@given(pairing=st.sampled_from([SplitHalves(), InterleavedPairs()]), width=st.integers(1, 6).map(lambda n: 2 * n))
def test_a_part_of_a_head_is_rotated_and_the_rest_kept(pairing, width):
    heads = torch.randn(1, 2, 4, 12, dtype=F64)
    rotation = Rotary(width, pairing=pairing).at(torch.tensor([[3, 0, 7, 1]]), F64)
    rotated = rotation.rotate(heads)
    torch.testing.assert_close(rotated[..., width:], heads[..., width:], rtol=0, atol=0)
    torch.testing.assert_close(rotated[..., :width], rotation.rotate(heads[..., :width]))
    torch.testing.assert_close(rotated.norm(dim=-1), heads.norm(dim=-1))
    first, second = pairing.split(heads)
    torch.testing.assert_close(pairing.join(first, second), heads, rtol=0, atol=0)


def test_no_tokens_and_odd_widths():
    assert Rotary(4, scaling=DynamicNTK(2.0, 4)).at(torch.zeros(1, 0, dtype=torch.int64), F64).cosine.shape[2] == 0
    with pytest.raises(limelight.ArgumentError, match="pairs"):
        Rotary(5)
