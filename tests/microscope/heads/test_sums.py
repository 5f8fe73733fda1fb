"""Sums in two halves, their bootstrap, and the best fixed offset."""

import numpy as np
import pytest

from limelight.microscope.heads.sums import REPLICATES, Offsets, Ratio, Shares


def texts(count=40, layers=2, heads=3, columns=2):
    random = np.random.default_rng(0)
    return [
        (random.random((layers, heads, columns)), 1 + random.random((layers, heads, columns))) for _ in range(count)
    ]


def filled(all_texts):
    ratio = Ratio(2, 3, 2)
    for number, (part, whole) in enumerate(all_texts):
        for layer in range(2):
            ratio.add(number, layer, part[layer], whole[layer], [1, 2])
    return ratio


@pytest.mark.parametrize("half", [0, 1, None])
@pytest.mark.parametrize("column", [0, 1])
def test_a_ratio_and_its_interval_are_those_of_the_definition(half, column):
    data = texts()
    chosen = [i for i in range(len(data)) if half in (None, i % 2)]
    part = np.stack([data[i][0][..., column] for i in chosen])
    whole = np.stack([data[i][1][..., column] for i in chosen])
    draws = np.stack([np.random.Generator(np.random.Philox(key=i)).poisson(1.0, REPLICATES) for i in chosen])
    replicates = np.einsum("tr,tlh->rlh", draws, part) / np.einsum("tr,tlh->rlh", draws, whole)
    low, high = np.percentile(replicates, [2.5, 97.5], axis=0)
    found = filled(data).interval(half, column)
    np.testing.assert_allclose(found.score, part.sum(0) / whole.sum(0), rtol=1e-12)
    np.testing.assert_allclose(found.low, low, rtol=1e-5)
    np.testing.assert_allclose(found.high, high, rtol=1e-5)
    assert (found.n, found.texts) == (len(chosen) * (column + 1), len(chosen))


def test_the_interval_covers_the_truth_as_often_as_it_says():
    random, covered, trials = np.random.default_rng(1), 0, 100
    for _ in range(trials):
        ratio = Ratio(1, 1)
        for number in range(60):
            ratio.add(number, 0, [random.normal(0.3, 0.1)], 1.0, 1)
        interval = ratio.interval()
        covered += interval.low[0, 0] <= 0.3 <= interval.high[0, 0]
    assert 85 <= covered <= 100


def test_wholes_that_all_heads_share_are_kept_once():
    data = texts()
    ratio, common = Ratio(2, 3, 2), Ratio(2, 3, 2, common_whole=True)
    for number, (part, whole) in enumerate(data):
        for layer in range(2):
            for each in (ratio, common):
                each.add(number, layer, part[layer], whole[layer, :1], [1, 2])
    assert common.whole_replicates.size * 3 == ratio.whole_replicates.size
    for field in ("score", "low", "high"):
        one, other = (getattr(each.interval(1, 1), field) for each in (ratio, common))
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(common.per_case(1), ratio.per_case(1))


def test_what_nothing_was_counted_for_is_not_a_number():
    interval = Ratio(1, 2).interval(0)
    assert np.isnan(interval.score).all()
    assert np.isnan(interval.low).all()
    assert (interval.n, interval.texts) == (0.0, 0)


def test_one_column_is_added_by_itself():
    ratio = Ratio(1, 2, 3)
    ratio.add(0, 0, [1.0, 2.0], 4.0, 5, column=1)
    assert ratio.interval(None, 1).score.tolist() == [[0.25, 0.5]]
    assert np.isnan(ratio.interval(None, 0).score).all()
    assert ratio.per_case(1).tolist() == [[0.2, 0.4]]


def test_shares_leave_the_sinks_out():
    random = np.random.default_rng(2)
    shares = Shares(1, 2)
    left, even, counted = random.random((2, 5)), random.random((5, 1)), np.array([[0], [1], [1], [0], [1]], float)
    shares.add(0, 0, np.array([[0.5], [0.25]]), left, counted, even)
    whole = left[:, [1, 2, 4]].sum(1)
    np.testing.assert_allclose(shares.ratio.interval().score[0], [0.5, 0.25] / whole)
    expected = (left[:, [1, 2, 4]] * even[[1, 2, 4], 0]).sum(1) / whole
    np.testing.assert_allclose(shares.even.interval().score[0], expected)
    np.testing.assert_allclose(shares.ratio.per_case()[0], [0.5 / 3, 0.25 / 3])


def test_the_best_fixed_offset_is_the_most_frequent_one():
    offsets = Offsets()
    assert np.isnan(offsets.best()[1])
    offsets.add([-1, -3, -3], 4)
    offsets.add([2, 10_000], 1)  # too far for a fixed offset to count
    assert offsets.best() == (-3, 2 / 5)


def test_a_state_goes_on_as_if_nothing_had_happened():
    data = texts()
    whole, first = filled(data), filled(data[:17])
    second = Ratio(2, 3, 2)
    second.restore({name: array.copy() for name, array in first.state().items()})
    for number, (part, of) in list(enumerate(data))[17:]:
        for layer in range(2):
            second.add(number, layer, part[layer], of[layer], [1, 2])
    for one, other in zip(whole.state().values(), second.state().values(), strict=True):
        np.testing.assert_array_equal(one, other)
