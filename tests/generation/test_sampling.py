"""Samplers: their scores are those of transformers' processors, and tokens are drawn by them."""

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from limelight import ArgumentError
from limelight.generation import Beam, Greedy, Sample, sampling
from limelight.generation.sampling import draws, penalised, tokens_in

SETTINGS = [
    {"temperature": 0.7},
    {"top_k": 3},
    {"top_k": 1000},
    {"top_p": 0.8},
    {"top_p": 0.01},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"temperature": 1.7, "top_k": 9, "top_p": 0.9, "min_p": 0.05},
]


def logits(rows=5, V=37, seed=0):
    scores = 3 * torch.randn(rows, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    scores[0, :4] = -torch.inf
    scores[1:2, 5:9] = scores[1:2].amax(-1, keepdim=True)  # equals
    return scores


def theirs(scores, temperature=1.0, top_k=None, top_p=1.0, min_p=0.0):
    processors = [transformers.TemperatureLogitsWarper(temperature)]
    processors += [transformers.TopKLogitsWarper(top_k)] if top_k else []
    processors += [transformers.TopPLogitsWarper(top_p)] if top_p < 1 else []
    processors += [transformers.MinPLogitsWarper(min_p)] if min_p else []
    for processor in processors:
        scores = processor(None, scores)
    return scores


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_scores_are_those_of_transformers(settings, dtype):
    scores = logits().to(dtype)
    assert torch.equal(Sample(**settings).scores(scores), theirs(scores, **settings))


def test_what_was_said_is_less_likely():
    scores, ids = logits(), torch.randint(0, 37, (5, 11), generator=torch.Generator().manual_seed(1))
    for repetition in (1.3, 0.8):
        expected = transformers.RepetitionPenaltyLogitsProcessor(repetition)(ids, scores)
        assert torch.equal(penalised(scores, tokens_in(ids.tolist(), scores), repetition), expected)


def test_greedy_takes_the_first_of_equals():
    assert Greedy().choose(torch.tensor([[0.0, 2.0, 2.0], [1.0, 1.0, -1.0]]), None).tolist() == [1, 0]


def test_tokens_are_drawn_by_their_probability():
    scores = logits(rows=1, V=12)
    sampler = Sample(temperature=1.3, top_k=6)
    even = (torch.arange(20_000) + 0.5) / 20_000  # in the place of random numbers
    drawn = sampler.choose(scores.expand(20_000, -1), lambda: even)
    shares = torch.bincount(drawn, minlength=12) / 20_000
    torch.testing.assert_close(shares, theirs(scores, 1.3, 6).softmax(-1)[0].float(), rtol=0, atol=1e-4)


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 10**6))
def test_a_token_that_was_left_out_is_never_drawn(number, seed):
    scores = logits(3, 20, seed).float()
    chosen = Sample(top_p=0.6).choose(scores, lambda: torch.full((3,), number, dtype=torch.float64))
    assert (Sample(top_p=0.6).scores(scores).gather(1, chosen[:, None]) > -torch.inf).all()


def test_random_numbers_are_even_and_a_function_of_seed_copy_and_step():
    copies = torch.arange(50)
    numbers = torch.stack([draws(7, copies, step) for step in range(200)])
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert len(numbers.unique()) == 10_000
    assert torch.histc(numbers, 10, 0, 1).sub(1000).abs().max() < 120  # four standard deviations
    assert draws(7, torch.tensor([3]), 5).item() == numbers[5, 3]
    assert draws(8, torch.tensor([3]), 5).item() != numbers[5, 3]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sample(temperature=0), r"`temperature` must be above 0, but it is 0. Greedy\(\)"),
        (lambda: Sample(temperature=-1), "`temperature`"),
        (lambda: Sample(temperature="x"), "`temperature` must be a number above 0, but it is 'x'"),
        (lambda: Sample(temperature=True), "`temperature`"),
        (lambda: Sample(top_p="x"), "`top_p` must be a number above 0"),
        (lambda: Sample(top_p=None), "`top_p`"),
        (lambda: Sample(top_p=float("nan")), "`top_p`"),
        (lambda: Sample(min_p="x"), "`min_p` must be a number from 0"),
        (lambda: Beam(length_penalty="x"), "`length_penalty`"),
        (lambda: Sample(top_k=0), "`top_k` must be at least 1"),
        (lambda: Sample(top_p=0.0), "`top_p`"),
        (lambda: Sample(top_p=1.1), "`top_p`"),
        (lambda: Sample(min_p=-0.1), "`min_p`"),
        (lambda: Greedy(repetition=0), "`repetition`"),
        (lambda: Beam(width=0), "`width`"),
        (lambda: Beam(length_penalty=float("nan")), "`length_penalty`"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


@pytest.mark.parametrize("few", [1, 4, 12, 37, 256])
def test_a_partial_selection_keeps_what_sorting_keeps(few, monkeypatch):
    scores = torch.cat((logits(rows=20), torch.zeros(1, 37, dtype=torch.float64)))
    for top_p in (0.01, 0.3, 0.8, 0.95, 0.999, 1 - 1e-9):
        expected = theirs(scores, top_p=top_p)
        monkeypatch.setattr(sampling, "FEW", few)
        assert torch.equal(Sample(top_p=top_p).scores(scores), expected)


@pytest.mark.parametrize("temperature", [1e-7, 1e-20, 1e-37, 1e-38, 1e-40, 1e-45, 5e-324])
@pytest.mark.parametrize("more", [{}, {"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_temperature_near_0_takes_the_likeliest(temperature, more, dtype):
    scores = torch.cat((logits(rows=3), -100 * torch.rand(1, 37).double(), torch.zeros(1, 37).double())).to(dtype)
    scores[4, 11] = 1e4
    scores[1] += torch.linspace(0, 1e-3, 37).to(dtype)  # no equals
    sampler = Sample(temperature=temperature, **more)
    kept = sampler.scores(scores).softmax(-1)
    assert torch.equal(kept, torch.nn.functional.one_hot(scores.argmax(-1), 37).to(dtype))
    assert torch.equal(sampler.choose(scores, lambda: torch.tensor([0.0, 0.3, 0.5, 0.999, 0.7])), scores.argmax(-1))


def test_equals_share_the_limit_of_a_low_temperature():
    shares = Sample(temperature=1e-45).scores(torch.tensor([[1.0, 3.0, 3.0, -torch.inf]])).softmax(-1)
    assert shares.tolist() == [[0, 0.5, 0.5, 0]]
