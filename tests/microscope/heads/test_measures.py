"""Every measure of plain text against loops over whole weights in float64."""

import itertools
import math
from collections import defaultdict

import numpy as np
import pytest
import torch
from support.made_up_subject import MadeUp, random_scores

from limelight import Window
from limelight.microscope.heads.corpus import corpus_of
from limelight.microscope.heads.measures.classes import CLASSES, TokenClasses, classes_of
from limelight.microscope.heads.measures.copies import NEAREST, Copies
from limelight.microscope.heads.measures.examples import KEPT, Examples
from limelight.microscope.heads.measures.induction import Induction, repeats
from limelight.microscope.heads.measures.positions import FARTHEST, Positions
from limelight.microscope.heads.measures.profile import Profile
from limelight.microscope.heads.measures.retrieval import Retrieval, needles
from limelight.microscope.heads.measures.spread import Sinks, Spread
from limelight.microscope.heads.reach import ANY, Reach, reaches_of
from limelight.microscope.heads.run import measure_sample
from limelight.microscope.heads.sums import Shares

TEXT = (
    "Anne went to Bath in 1814, and Anne was cold there. The rooms in Bath were small; the rooms were very cold!\n\n"
    "Elizabeth thought of the carriages, the horses and the 3 dinners. Was Anne to go again? Anne thought not. "
    "There was no more to be said, and the carriages were sold with the horses."
)


class Looped:
    """The samples of a text under a made-up subject, and its whole weights."""

    def __init__(self, causal):
        self.subject = MadeUp(random_scores(), causal=causal)
        self.causal = causal
        self.samples = list(corpus_of(TEXT).samples(self.subject, 24))
        self.weights = [self.subject.weights(list(sample.text.ids)).numpy() for sample in self.samples]

    def measured(self, measure):
        for sample in self.samples:
            measure_sample(self.subject, sample, [measure])
        return {(result.measure, result.detail): result for result in measure.results()}

    def sinks(self, sample):
        return {i for i, special in enumerate(sample.text.special) if special} | {0}

    def visible(self, sample, i):
        return [j for j in range(len(sample)) if j not in self.sinks(sample) and (j <= i or not self.causal)]

    def shares(self, chosen, half=None):
        """``(share, raw, even)`` on the keys of ``chosen(sample, i)``, over the queries for which there are any."""
        part, whole, cases, even = 0.0, 0.0, 0, 0.0
        for sample, weights in zip(self.samples, self.weights, strict=True):
            if half is not None and sample.number % 2 != half:
                continue
            sinks = sorted(self.sinks(sample))
            for i in range(len(sample)):
                keys = None if i in sinks else chosen(sample, i)
                if keys is None:
                    continue
                left = 1.0 - weights[:, :, i, sinks].sum(-1)
                part, whole, cases = part + weights[:, :, i, keys].sum(-1), whole + left, cases + 1
                even = even + left * len(set(keys)) / len(self.visible(sample, i))
        return part / whole, part / cases, even / whole

    def check(self, result, chosen):
        share, raw, even = self.shares(chosen)
        np.testing.assert_allclose(result.total.score, share, atol=2e-6)
        np.testing.assert_allclose(result.raw, raw, atol=2e-6)
        np.testing.assert_allclose(result.chosen.score, self.shares(chosen, 0)[0], atol=2e-6)
        np.testing.assert_allclose(result.scored.score, self.shares(chosen, 1)[0], atol=2e-6)
        return even


@pytest.fixture(scope="module", params=[True, False], ids=["decoder", "encoder"])
def looped(request):
    return Looped(request.param)


def test_there_are_texts_in_both_halves(looped):
    assert len(looped.samples) >= 4


def test_the_share_of_every_offset(looped):
    results = looped.measured(Positions(looped.subject))
    for offset in range(-FARTHEST, 1 if looped.causal else FARTHEST + 1):

        def at(sample, i, offset=offset):
            inside = 0 <= i + offset < len(sample) and i + offset not in looped.sinks(sample)
            return [i + offset] if inside else None

        result = results["offset", f"{offset:+d}"]
        np.testing.assert_allclose(result.baseline, looped.check(result, at), atol=2e-6)


def test_the_place_of_the_largest_weight(looped):
    results = looped.measured(Positions(looped.subject))
    for offset in (-2, -1, 0):
        hits, cases = 0.0, 0
        for sample, weights in zip(looped.samples, looped.weights, strict=True):
            apart = sorted(looped.sinks(sample))
            rest = weights.copy()
            rest[..., apart] = -1.0
            for i in set(range(len(sample))) - set(apart):
                if i + offset in set(range(len(sample))) - set(apart):
                    hits, cases = hits + (rest[:, :, i].argmax(-1) == i + offset), cases + 1
        found = results["largest weight at offset", f"{offset:+d}"].total
        np.testing.assert_allclose(found.score, hits / cases, atol=1e-9)
        assert found.n == cases


def test_the_share_of_every_class_of_tokens(looped):
    results = looped.measured(TokenClasses(looped.subject))
    assert {"punctuation", "number", "capitalised", "content word"} <= {detail for _, detail in results}
    for (_, detail), result in results.items():
        column = CLASSES.index(detail)
        kinds = {sample.number: classes_of(sample) for sample in looped.samples}

        def of_class(sample, i, column=column, kinds=kinds):
            return [j for j in looped.visible(sample, i) if kinds[sample.number][j, column]]

        even = looped.check(result, of_class)
        best = max(
            sum(
                kinds[sample.number][i + offset, column]
                for sample in looped.samples
                for i in set(range(len(sample))) - looped.sinks(sample)
                if 0 <= i + offset < len(sample) and i + offset not in looped.sinks(sample)
            )
            for offset in range(-8, 1 if looped.causal else 9)
        ) / sum(len(sample) - len(looped.sinks(sample)) for sample in looped.samples)
        np.testing.assert_allclose(result.baseline, np.maximum(even, best), atol=2e-6)


def test_classes_of_tokens(looped):
    sample = looped.samples[0]
    found = [
        (sample.text.tokens[i], {CLASSES[c] for c in np.flatnonzero(row)}) for i, row in enumerate(classes_of(sample))
    ]
    expected = {
        "Anne": {"capitalised", "content word", "first piece of a word"},
        "1814": {"number", "content word", "first piece of a word"},
        ",": {"punctuation"},
        ".": {"punctuation", "sentence end"},
        "in": {"function word", "first piece of a word"},
        "[CLS]": set(),
    }
    assert all(expected[token] == kinds for token, kinds in found if token in expected)
    later = classes_of(next(s for s in looped.samples if "Elizab" in s.text.tokens))
    assert later[:, CLASSES.index("later piece of a word")].sum() >= 1  # "Elizab" "eth"


def test_sinks(looped):
    results = looped.measured(Sinks(looped.subject))
    part, even, cases = 0.0, 0.0, 0
    for sample, weights in zip(looped.samples, looped.weights, strict=True):
        apart = sorted(looped.sinks(sample))
        for i in set(range(len(sample))) - set(apart):
            part, cases = part + weights[:, :, i, apart].sum(-1), cases + 1
            even += sum(j <= i or not looped.causal for j in apart) / (i + 1 if looped.causal else len(sample))
    np.testing.assert_allclose(results["sink", ""].total.score, part / cases, atol=2e-6)
    assert results["sink", ""].baseline == pytest.approx(even / cases)
    assert (("sink", "special tokens") in results) is not looped.causal


def test_entropy_largest_weight_and_distance_without_the_sinks(looped):
    results = looped.measured(Spread(looped.subject))
    sums = defaultdict(float)
    for sample, weights in zip(looped.samples, looped.weights, strict=True):
        apart = sorted(looped.sinks(sample))
        for i in set(range(len(sample))) - set(apart):
            keys = looped.visible(sample, i)
            left = 1.0 - weights[:, :, i, apart].sum(-1)
            rest = weights[:, :, i, keys] / left[..., None]
            far = np.abs(np.array(keys) - i)
            sums["left"] += left
            sums["entropy"] += left * -(rest * np.log(rest)).sum(-1)
            sums["even entropy"] += left * math.log(len(keys))
            sums["largest weight"] += left * rest.max(-1)
            sums["distance"] += left * (rest * far).sum(-1)
            sums["even distance"] += left * far.mean()
            row = weights[:, :, i]
            sums["whole"] += -(row * np.log(np.where(row > 0, row, 1.0))).sum(-1)
            sums["cases"] += 1
    for name in ("entropy", "largest weight", "distance"):
        np.testing.assert_allclose(results[name, ""].total.score, sums[name] / sums["left"], rtol=1e-5)
    for name in ("entropy", "distance"):
        np.testing.assert_allclose(results[name, ""].baseline, sums[f"even {name}"] / sums["left"], rtol=1e-5)
    np.testing.assert_allclose(
        results["long range", ""].total.score, sums["distance"] / sums["even distance"], rtol=1e-5
    )
    np.testing.assert_allclose(results["long range", ""].baseline, 1.0)
    np.testing.assert_allclose(
        results["entropy", "sink included"].total.score, sums["whole"] / sums["cases"], rtol=1e-5
    )


@pytest.mark.parametrize("shift", [0, 1])
def test_earlier_copies_and_what_comes_after_them(looped, shift):
    measure = Copies(looped.subject, shift)
    (result,) = looped.measured(measure).values()

    def copies(sample, i):
        ids, apart = sample.text.ids, looped.sinks(sample)
        earlier = [j for j in range(i) if ids[j] == ids[i] and j not in apart][-NEAREST:]
        return [j + shift for j in earlier if j + shift != i and j + shift not in apart] or None

    even = looped.check(result, copies)
    away = defaultdict(int)
    cases = 0
    for sample in looped.samples:
        for i in set(range(len(sample))) - looped.sinks(sample):
            cases += copies(sample, i) is not None
            for j in copies(sample, i) or ():
                away[j - i] += 1
    np.testing.assert_allclose(result.baseline, np.maximum(even, max(away.values()) / cases), atol=2e-6)


def test_the_profile_adds_up_to_one_and_is_that_of_the_rows(looped):
    measure = Profile(looped.subject)
    expected = np.zeros_like(measure.weights)
    for sample, weights in zip(looped.samples, looped.weights, strict=True):
        measure_sample(looped.subject, sample, [measure])
        for i in measure._rows.tolist():
            for j in looped.visible(sample, i):
                (place,) = [p for p, (first, last) in enumerate(measure.bins) if first <= j - i <= last]
                expected[:, :, place] += weights[:, :, i, j]
    np.testing.assert_allclose(measure.weights, expected, atol=1e-5)
    np.testing.assert_allclose(measure.shares.sum(-1), 1.0)
    assert measure.even.sum() == pytest.approx(measure.queries[0])
    assert list(measure.bins) == sorted(measure.bins)


def test_the_strongest_weights_with_their_text(looped):
    measure = Examples(looped.subject)
    looped.measured(measure)
    rows = measure.rows()
    for layer in range(2):
        for head in range(3):
            best = []
            for sample, weights in zip(looped.samples, looped.weights, strict=True):
                apart = sorted(looped.sinks(sample))
                rest = weights[layer, head].copy()
                rest[:, apart] = rest[apart] = 0.0
                best.append(rest.max())
            found = [row for row in rows if (row["layer"], row["head"]) == (layer, head)]
            np.testing.assert_allclose([row["weight"] for row in found], sorted(best, reverse=True)[:KEPT], rtol=1e-3)
            for row in found:
                tokens = looped.samples[row["text"]].text.tokens
                assert row["tokens"][row["query"]].strip(" ") in tokens
                assert row["query"] < len(row["tokens"]) > row["key"]
                if row["gap"] is None:
                    assert row["key"] - row["query"] == row["offset"]


def test_induction_on_random_tokens(looped):
    measure = Induction(looped.subject)
    part, left, before, cases = 0.0, 0.0, 0.0, 0
    for sample in list(repeats(looped.subject))[:4]:
        ids, labels = sample.text.ids, sample.labels
        first, second, length = labels["first"], labels["second"], labels["length"]
        assert ids[first : first + length] == ids[second : second + length]
        content = [token for token, special in zip(ids, sample.text.special, strict=True) if not special]
        assert len(set(content)) == len(content) - length
        measure_sample(looped.subject, sample, [measure])
        weights = looped.subject.weights(list(ids)).numpy()
        for i in range(second, second + length - 1):
            part = part + weights[:, :, i, first + i - second + 1]
            left = left + 1.0 - weights[:, :, i, list(sample.sinks)].sum(-1)
            before = before + weights[:, :, i, i - 1]
            cases += 1
    result, same, previous = measure.results()
    np.testing.assert_allclose(result.total.score, part / left, atol=1e-6)
    np.testing.assert_allclose(result.raw, part / cases, atol=1e-6)
    np.testing.assert_allclose(previous.raw, before / cases, atol=1e-6)
    assert (result.detail, same.detail, result.total.n) == ("induction", "duplicate token", cases)


def test_no_fixed_offset_leads_to_the_first_copy():
    offsets = [s.labels["first"] - s.labels["second"] for s in repeats(MadeUp(random_scores()))]
    assert max(offsets.count(offset) for offset in offsets) <= len(offsets) // 6


@pytest.mark.parametrize(
    ("causal", "window"), [(True, Window(6, 0)), (False, Window(5, 3)), (True, None), (False, None)]
)
def test_with_equal_scores_every_share_is_that_of_an_even_spread(causal, window):
    """Also in a layer with a window, where an even spread is one over the keys inside it."""
    subject = MadeUp(random_scores(sharpness=0.0), causal=causal, window=window)
    reaches = reaches_of(subject, 24)
    assert reaches[0] == Reach(ANY, 0 if causal else ANY)
    assert reaches[1] == (reaches[0] if window is None else Reach(window.back, window.ahead))
    kinds = [Positions, Sinks, Spread, TokenClasses, lambda subject: Copies(subject, 0), Induction, Profile]
    measures = [kind(subject) for kind in kinds]
    texts = list(corpus_of(TEXT).samples(subject, 24))
    for measure in measures:
        for sample in itertools.islice(repeats(subject), 3) if isinstance(measure, Induction) else texts:
            measure_sample(subject, sample, [measure])
        shares = getattr(measure, "shares", None)
        if isinstance(shares, Shares):
            for column in range(shares.ratio.parts.shape[-1]):
                found, even = (each.interval(None, column).score for each in (shares.ratio, shares.even))
                np.testing.assert_allclose(found, even, atol=1e-6)
        if isinstance(measure, (Sinks, Spread)):
            for result in measure.results():
                expected = np.broadcast_to(result.baseline, result.total.score.shape)
                np.testing.assert_allclose(result.total.score, expected, rtol=1e-5)
    even = measures[-1].weights / measures[-1].weights.sum(-1, keepdims=True)
    assert (measures[-1].even[even.max((0, 1)) > 0] > 0).all()


def copying_scores(ids):
    """In the first layer a head that copies weakly, and one (the last) that copies below its sink."""
    token = torch.tensor(ids)
    same = (token[:, None] == token[None]) & (torch.arange(len(ids))[:, None] > torch.arange(len(ids))[None])
    scores = random_scores(2, 3, 1.0)(ids)
    scores[0, 0, :, 1:] += 2.0 * same[:, :-1]
    scores[0, 2, :, 1:] += 6.0 * same[:, :-1]
    scores[0, 2, :, 0] += 12.0
    return scores


@pytest.mark.parametrize("writes", [False, True])
def test_retrieval(writes):
    """Wu et al. 2024, section 2: the largest weight of all, sinks included, while the model writes the token."""
    subject = MadeUp(copying_scores)
    subject.limit = 200
    predicted = {}

    def lens(states, depth):
        return predicted["logits"] if writes else None

    subject.lens = lens
    measure, hits, written, cases = Retrieval(subject), 0.0, 0, 0
    samples = list(needles(subject))[:3]
    assert len(samples) == 3
    for sample in samples:
        ids, queries, keys = sample.text.ids, sample.labels["queries"], sample.labels["keys"]
        assert [ids[i + 1] for i in queries] == [ids[j] for j in keys]
        assert len(sample) <= 200
        likeliest = [ids[i + 1] if ids[i + 1] % 3 else 0 for i in queries]  # not every token is written
        predicted["logits"] = torch.nn.functional.one_hot(torch.tensor(likeliest), 500)[None].float()
        measure_sample(subject, sample, [measure])
        weights = subject.weights(list(ids)).numpy()
        for i, j in zip(queries, keys, strict=True):
            counts = not writes or ids[i + 1] % 3 != 0
            hits, written, cases = hits + counts * (weights[:, :, i].argmax(-1) == j), written + counts, cases + 1
    (result,) = measure.results()
    assert 0 < (hits / cases)[0, 0] < 1
    assert (hits / cases)[0, 2] == 0  # its sink has more than the needle
    assert (written < cases) == writes
    np.testing.assert_allclose(result.total.score, hits / cases)
    assert result.total.n == cases
    assert f"writes {written / cases:.2f} of" in result.notes[0]
