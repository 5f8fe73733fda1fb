"""Semantic similarity, contextuality and word senses, compared with loops over their definitions in float64."""

import itertools
import zlib

import numpy as np
import pytest
import torch
from support.made_up_subject import MadeUp, random_scores

from limelight.microscope.heads.labels import SenseExample, sample_of
from limelight.microscope.heads.measures.contextuality import Contextuality
from limelight.microscope.heads.measures.semantic import Semantic
from limelight.microscope.heads.measures.senses import Senses, nearest_sense
from limelight.microscope.heads.probes.grammar import make_sentence
from limelight.microscope.heads.run import measure_sample
from limelight.microscope.heads.sample import Sample
from limelight.microscope.subjects import Run

pytestmark = pytest.mark.usefixtures("one_thread")


class Wide(MadeUp):
    """Embeddings of width 16, and hidden states that are given by a function of tokens and depth."""

    def __init__(self, scores, *, states=None, **settings):
        super().__init__(scores, width=16, **settings)
        self.states = states

    def run(self, ids, *, hidden=False, **settings):
        found = super().run(ids, hidden=hidden, **settings)
        if not hidden or self.states is None:
            return found
        return Run(tuple(self.states(ids[0].tolist(), depth)[None] for depth in range(self.layers + 1)))


def texts(subject, count, sentences=6):
    for number in range(count):
        made = [make_sentence(sentences * number + i)[0].text for i in range(sentences)]
        yield Sample(subject.tokenize(" ".join(made)), number)


def correlations_by_loops(subject, sample):
    """At equal distances and plain, ``(N, H)`` each, and the degrees of freedom."""
    weights, table = subject.weights(list(sample.text.ids)).numpy(), subject.embeddings().double().numpy()
    words, pairs, sentence = sample.joined[1], [], 0
    of_sentence = []
    for word in words:
        of_sentence.append(sentence)
        sentence += word.text == "."

    def vector(word):
        mean = np.mean([table[sample.text.ids[i]] for i in word.tokens], axis=0)
        return mean / np.linalg.norm(mean)

    for (i, query), (j, key) in itertools.product(enumerate(words), repeat=2):
        sinks = {0, *np.flatnonzero(sample.text.special)}
        if of_sentence[i] != of_sentence[j] or not (query.content and key.content) or abs(i - j) > 24:
            continue
        if query.text.lower() == key.text.lower() or sinks & {*query.tokens, *key.tokens} or (subject.causal and j > i):
            continue
        weight = sum(weights[:, :, a, b] for a in query.tokens for b in key.tokens) / len(query.tokens)
        pairs.append((j - i, weight, vector(query) @ vector(key)))
    offsets = np.array([offset for offset, _, _ in pairs])
    weight, cosine = np.stack([pair[1] for pair in pairs], -1), np.array([pair[2] for pair in pairs])
    plain = np.array([[np.corrcoef(row, cosine)[0, 1] for row in rows] for rows in weight])
    weight, cosine = weight.copy(), cosine.copy()
    for offset in set(offsets):
        at = offsets == offset
        weight[..., at] -= weight[..., at].mean(-1, keepdims=True)
        cosine[at] -= cosine[at].mean()
    norms = np.linalg.norm(weight, axis=-1) * np.linalg.norm(cosine)
    return weight @ cosine / norms, plain, len(pairs) - len(set(offsets))


@pytest.mark.parametrize("causal", [False, True])
def test_the_correlation_is_that_of_the_definition(causal):
    subject = Wide(random_scores(), causal=causal)
    measure = Semantic(subject)
    sums, plains, free = 0, 0, 0
    for sample in texts(subject, 3):
        measure_sample(subject, sample, [measure])
        beyond, plain, degrees = correlations_by_loops(subject, sample)
        assert degrees >= 30
        sums, plains, free = sums + degrees * beyond, plains + degrees * plain, free + degrees
    at_equal, left_in = measure.results()
    np.testing.assert_allclose(at_equal.total.score, sums / free, atol=2e-5)
    np.testing.assert_allclose(left_in.total.score, plains / free, atol=2e-5)


def test_a_head_of_similarity_is_found_and_one_of_distance_is_not():
    plain = Wide(random_scores())
    units = torch.nn.functional.normalize(plain.embeddings(), dim=-1)

    def scores(ids):
        at = torch.arange(len(ids))
        found = torch.zeros(1, 3, len(ids), len(ids))
        found[0, 0] = 4.0 * units[ids] @ units[ids].T
        found[0, 1] = -0.5 * (at[:, None] - at[None]).abs()
        found[0, 2] = random_scores(1, 1)(ids)[0, 0]
        return found

    subject = Wide(scores, layers=1, causal=False)
    measure, control = Semantic(subject), Semantic(subject)
    for sample in texts(subject, 20):
        measure_sample(subject, sample, [measure])
        measure_sample(subject, sample, [control], sample.shuffled)
    score = measure.results()[0].scored.score[0]
    assert score[0] > 0.5
    assert abs(score[1]) < 0.02
    assert abs(score[2]) < 0.05
    assert (abs(control.results()[0].total.score[0]) < 0.1).all()


def test_texts_with_few_pairs_do_not_count():
    subject = Wide(random_scores())
    measure = Semantic(subject)
    assert measure.request(Sample(subject.tokenize("The dog saw the cat near a tree."), 0)) is None
    assert measure.results() == []


def states_of(ids, depth):
    """The token alone at depth 0; a random vector at depth 2; the same direction for all at depth 1."""
    table = torch.randn(500, 16, generator=torch.Generator().manual_seed(1))[ids]
    if depth == 1:
        return table * 0.01 + 1.0
    if depth == 2:
        return torch.randn(len(ids), 16, generator=torch.Generator().manual_seed(sum(ids)))
    return table


def contextuality_by_loops(subject, samples):
    """Mean cosines ``(N + 1,)`` of words with themselves and with the next one that is followed."""
    stored, sums = [{}, {}], []
    for sample in samples:
        half, now = stored[sample.number % 2], {}
        for word in sample.joined[1]:
            place = (zlib.crc32(word.text.casefold().encode()) + 1) % 256
            names = {each[0]: name for name, each in half.items()} | {each[0]: name for name, each in now.items()}
            name = word.text.casefold()
            first = not set(word.tokens) & set(sample.sinks) and not word.is_punctuation and name not in now
            if first and names.get(place, name) == name:
                states = [
                    subject.states(list(sample.text.ids), d)[list(word.tokens)].double().mean(0) for d in range(3)
                ]
                now[name] = (place, [state / state.norm() for state in states])
        order = sorted(half, key=lambda name: half[name][0])
        for name in now.keys() & half.keys():
            if len(half) > 1:
                other = order[(order.index(name) + 1) % len(order)]
                sums.append([[float(now[name][1][d] @ half[known][1][d]) for known in (name, other)] for d in range(3)])
        half.update(now)
    return np.mean(sums, axis=0).T, len(sums)


def test_contextuality_is_that_of_the_definition():
    subject = Wide(random_scores(), states=states_of)
    measure = Contextuality(subject)
    samples = list(texts(subject, 8, sentences=2))
    for sample in samples:
        measure_sample(subject, sample, [measure])
    (same, different), pairs = contextuality_by_loops(subject, samples)
    itself, above = measure.results()
    assert itself.total.n == pairs > 30
    np.testing.assert_allclose(itself.total.score[:, 0], same, atol=1e-5)
    np.testing.assert_allclose(itself.baseline[:, 0], different, atol=1e-5)
    np.testing.assert_allclose(above.total.score[:, 0], same - different, atol=1e-5)
    # a word is itself at depth 0; all words are alike at depth 1; nothing is at depth 2
    assert above.total.score[0, 0] > 0.8
    assert itself.total.score[1, 0] > 0.99
    assert abs(above.total.score[1, 0]) < 0.01
    assert abs(above.total.score[2, 0]) < 0.3


def examples(count=12):
    """The sense of *bank* is the word before it; two thirds are rivers."""
    for number in range(count):
        sense = "money" if number % 3 == 2 else "river"
        text = f"{'The' if number % 2 else 'A'} {sense} bank"
        start = text.index("bank")
        yield SenseExample(text, (start, start + 4), "bank", sense, number == count - 1)


def test_senses():
    def states(ids, depth):
        table = torch.randn(500, 16, generator=torch.Generator().manual_seed(1))[ids]
        return table if depth == 0 else table + table.roll(1, 0)  # from depth 1 on, with the token before

    subject = Wide(random_scores(), states=states)
    measure = Senses(subject)
    for number, example in enumerate(examples()):
        measure_sample(subject, sample_of(subject, number, example), [measure])
    (result,) = measure.results()
    assert result.baseline == pytest.approx(4 / 6)
    assert (result.chosen.n, result.scored.n, result.total.score.shape) == (6, 6, (3, 1))
    assert result.total.score[0, 0] < 0.7  # the embedding of the word is always the same
    assert result.total.score[1:, 0].tolist() == [1.0, 1.0]


def test_the_nearest_centroid_leaves_the_example_out():
    generator = torch.Generator().manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(9, 2, 4, generator=generator), dim=-1)
    senses = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 0])
    found = nearest_sense(vectors, senses, 3)
    for depth, example in itertools.product(range(2), range(9)):
        cosines = []
        for sense in range(3):
            others = [vectors[i, depth].double() for i in range(9) if senses[i] == sense and i != example]
            centroid = torch.stack(others).mean(0)
            cosines.append(float(centroid @ vectors[example, depth].double() / centroid.norm()))
        assert bool(found[depth, example]) == (int(np.argmax(cosines)) == senses[example])
