"""Pronouns, compared with loops over the definition in float64."""

import numpy as np
import pytest
import torch
from support.made_up_subject import MadeUp, random_scores

from limelight.microscope.heads.labels import Reference, sample_of, tokens_of
from limelight.microscope.heads.measures.coreference import Coreference
from limelight.microscope.heads.probes.grammar import made_sentences
from limelight.microscope.heads.run import measure_sample

pytestmark = pytest.mark.usefixtures("one_thread")


def references(count):
    return [reference for _, reference in made_sentences(count) if reference is not None]


@pytest.mark.parametrize("causal", [False, True])
def test_accuracy_and_baseline_are_those_of_the_definition(causal):
    subject = MadeUp(random_scores(), causal=causal)
    measure = Coreference(subject)
    hits, near, cases = np.zeros((2, 2, 3)), np.zeros(2), np.zeros(2)
    for number, reference in enumerate(references(60)):
        sample = sample_of(subject, number, reference)
        measure_sample(subject, sample, [measure])
        weights = subject.weights(list(sample.text.ids)).numpy()
        pronoun, right, rival = tokens_of(sample, (reference.pronoun, reference.antecedent, *reference.rivals))
        mean = {
            tokens: np.mean([weights[:, :, i, j] for i in pronoun for j in tokens], axis=0) for tokens in (right, rival)
        }
        hits[number % 2] += mean[right] > mean[rival]
        near[number % 2] += abs(right[0] - pronoun[0]) < abs(rival[0] - pronoun[0])
        cases[number % 2] += 1
    (result,) = measure.results()
    np.testing.assert_allclose(result.chosen.score, hits[0] / cases[0])
    np.testing.assert_allclose(result.scored.score, hits[1] / cases[1])
    nearest = near[0] >= cases[0] - near[0]
    assert result.baseline == (near[1] if nearest else cases[1] - near[1]) / cases[1]
    assert ("nearest" in result.baseline_name) == nearest
    assert (result.chosen.n, result.scored.n) == tuple(cases)


def test_what_a_causal_model_cannot_see_is_left_out():
    behind = Reference("She met Ann before Mary left.", (0, 3), (19, 23), ((8, 11),))
    before = Reference("Ann met Mary when she left.", (18, 21), (0, 3), ((8, 12),))
    for causal, seen in ((True, [False, True]), (False, [True, True])):
        subject = MadeUp(random_scores(), causal=causal)
        measure = Coreference(subject)
        requests = [measure.request(sample_of(subject, n, reference)) for n, reference in enumerate((behind, before))]
        assert [request is not None for request in requests] == seen


def test_texts_of_one_group_are_one_text_of_the_bootstrap():
    subject = MadeUp(random_scores(), causal=False)
    measure = Coreference(subject)
    made = references(40)
    for number, reference in enumerate(made[:20]):
        group = number // 5
        grouped = Reference(reference.text, reference.pronoun, reference.antecedent, reference.rivals, group)
        measure_sample(subject, sample_of(subject, 2 * number + group % 2, grouped), [measure])
    (result,) = measure.results()
    assert (result.total.n, result.total.texts) == (20, 4)


def test_a_long_name_is_not_favoured_by_an_even_spread():
    subject = MadeUp(lambda ids: torch.zeros(1, 1, len(ids), len(ids)), causal=False, layers=1, heads=1)
    measure = Coreference(subject)
    for number, (antecedent, rival) in enumerate([((0, 18), (23, 26)), ((23, 26), (0, 18))] * 2):
        reference = Reference("Philippa Alexandra met Ann when she left.", (32, 35), antecedent, (rival,))
        measure_sample(subject, sample_of(subject, number, reference), [measure])
    (result,) = measure.results()
    assert result.total.score[0, 0] == 0.0  # the weights are equal, so neither is larger
