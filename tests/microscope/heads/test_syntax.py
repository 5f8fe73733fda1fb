"""Relations of a parse, compared with loops over the definition in float64."""

from collections import Counter

import numpy as np
import pytest
import torch
from support.made_up_subject import MadeUp, random_scores

from limelight.microscope.heads.labels import Arc, Sentence, sample_of, tokens_of
from limelight.microscope.heads.measures.syntax import LEAST, Syntax
from limelight.microscope.heads.probes.grammar import MEN, PLACES, THINGS, WOMEN, made_sentences
from limelight.microscope.heads.run import measure_sample

pytestmark = pytest.mark.usefixtures("one_thread")

RELATIONS = ("nsubj", "obj", "det", "amod")


def samples(subject, count):
    for number, (sentence, _) in enumerate(made_sentences(count)):
        yield sentence, sample_of(subject, number, sentence)


def scored_by_loops(subject, count):
    """Hits ``(half, column) -> (N, H)``, and the offsets of the cases."""
    hits, offsets = {}, {}
    for sentence, sample in samples(subject, count):
        weights = subject.weights(list(sample.text.ids)).numpy()
        words = tokens_of(sample, sentence.words)
        sinks = {i for i, special in enumerate(sample.text.special) if special or i == 0}
        for arc in sentence.arcs:
            for way, (query, target) in enumerate([(arc.dependent, arc.head), (arc.head, arc.dependent)]):
                sums = {}
                for word, tokens in enumerate(words):
                    later = subject.causal and word > query
                    if word == query or later or not tokens or sinks & set(tokens):
                        continue
                    each = [weights[:, :, i, j] for i in words[query] for j in tokens]
                    sums[word] = sum(each) / len(words[query])
                if target not in sums or len(sums) < 2:
                    continue
                column = sample.number % 2, 2 * RELATIONS.index(arc.relation) + way
                best = np.argmax(np.stack(list(sums.values())), axis=0)  # the first of equal ones
                hits[column] = hits.get(column, 0) + (np.array(list(sums))[best] == target)
                offsets.setdefault(column, Counter())[target - query] += 1
    return hits, offsets


@pytest.mark.parametrize("causal", [False, True])
def test_accuracy_and_baseline_are_those_of_the_definition(causal):
    subject = MadeUp(random_scores(), causal=causal)
    measure = Syntax(subject, RELATIONS)
    for _, sample in samples(subject, 24):
        measure_sample(subject, sample, [measure])
    hits, offsets = scored_by_loops(subject, 24)
    results = measure.results()
    if causal:  # the heads of a subject, a determiner and an adjective lie behind them, that of an object before it
        visible = [
            "nsubj, head to dependent",
            "obj, dependent to head",
            "det, head to dependent",
            "amod, head to dependent",
        ]
        assert [result.detail for result in results] == visible
    else:
        assert len(results) == 8
    for result in results:
        relation, direction = result.detail.split(", ")
        column = 2 * RELATIONS.index(relation) + ["dependent to head", "head to dependent"].index(direction)
        for half, interval in enumerate((result.chosen, result.scored)):
            cases = offsets[half, column].total()
            assert interval.n == cases
            np.testing.assert_allclose(interval.score, hits[half, column] / cases)
        best = max(sorted(offsets[0, column]), key=offsets[0, column].get)
        assert result.baseline == offsets[1, column][best] / offsets[1, column].total()
        assert result.baseline_name.endswith(f"{best:+d}")
        few = min(offsets[half, column].total() for half in (0, 1)) < LEAST
        assert (result.claim is None) == few


def nouns_of(subject):
    names = [noun for kind in (WOMEN, MEN, THINGS, PLACES) for pair in kind.nouns for noun in pair]
    return {subject.tokenize(noun).ids[-2] for noun in names}  # the last piece of each, before [SEP]


def test_a_head_that_looks_at_the_next_noun_is_found():
    plain = MadeUp(random_scores(), causal=False)
    nouns = nouns_of(plain)

    def scores(ids):
        found = torch.zeros(1, 3, len(ids), len(ids))
        at = torch.arange(len(ids))
        is_noun = torch.tensor([token in nouns for token in ids])
        behind = (at[None] > at[:, None]) & is_noun[None]
        found[0, 0] = torch.where(behind, 20.0 - (at[None] - at[:, None]), 0.0)  # the nearest noun behind
        found[0, 1, at[:-1], at[1:]] = 9.0  # the next token
        return found

    subject = MadeUp(scores, causal=False, layers=1)
    measure, control = Syntax(subject, RELATIONS), Syntax(subject, RELATIONS)
    for _, sample in samples(subject, 120):
        measure_sample(subject, sample, [measure])
        measure_sample(subject, sample, [control], sample.shuffled)
    result = next(r for r in measure.results() if r.detail == "det, dependent to head")
    shuffled = next(r for r in control.results() if r.detail == "det, dependent to head").total.score
    assert result.scored.score[0, 0] > 0.75  # some adjectives end with the same piece as a noun
    assert shuffled[0, 0] < 0.6
    assert abs(result.scored.score[0, 1] - shuffled[0, 1]) < 0.05  # by position alone
    assert result.scored.score[0, 1] < 0.45


def test_words_without_tokens_and_words_with_sinks_are_no_candidates():
    subject = MadeUp(random_scores(), causal=True)
    sentence = Sentence("du lac bleu", ((0, 2), (2, 2), (3, 6), (7, 11)), (Arc(1, 2, "det"), Arc(0, 2, "case")))
    sample = sample_of(subject, 0, sentence)
    assert sample.text.text == "\ndu lac bleu"
    assert tokens_of(sample, sentence.words) == ((1,), (), (2,), (3,))
    measure = Syntax(subject, ("det", "case"))
    assert measure.request(sample) is None  # of "lac" one candidate is left, which every head finds


def test_results_need_cases_in_both_halves():
    subject = MadeUp(random_scores())
    measure = Syntax(subject, RELATIONS)
    assert measure.results() == []
    for _, sample in list(samples(subject, 3))[::2]:
        measure_sample(subject, sample, [measure])
    assert measure.results() == []


def test_the_state_continues():
    subject = MadeUp(random_scores())
    whole, half, rest = (Syntax(subject, RELATIONS) for _ in range(3))
    for number, (_, sample) in enumerate(samples(subject, 12)):
        measure_sample(subject, sample, [whole])
        if number == 6:
            rest.restore(half.state())
        measure_sample(subject, sample, [half if number < 6 else rest])
    for one, other in zip(whole.results(), rest.results(), strict=True):
        np.testing.assert_array_equal(one.total.score, other.total.score)
        assert one.baseline == other.baseline
