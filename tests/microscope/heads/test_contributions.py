"""Norm-weighted shares against loops over what the heads write, in float64."""

import itertools

import numpy as np
import pytest
from support.tiny_subject import Tiny

import limelight
from limelight import ArgumentError
from limelight.forms.observations import Observe, Seen
from limelight.microscope.heads.corpus import corpus_of
from limelight.microscope.heads.measures.classes import CLASSES, classes_of
from limelight.microscope.heads.measures.contributions import ROWS, Contributions
from limelight.microscope.heads.run import measure_sample
from limelight.microscope.subjects import subject_of

TEXT = " ".join(
    f"Anne went to the {place} in 181{n}, and it was cold there!"
    for n, place in enumerate(["river", "bank", "garden", "house"] * 3)
)


class Operands(Seen):
    """Keeps the whole weights and the values of every layer."""

    def __init__(self, length):
        super().__init__(Observe(rows=tuple(range(length))))
        self.values = {}

    def replace(self, name, query, key, value, output):
        self.values[name] = value[0]
        return output


def kinds_of(sample, classes, i, causal):
    """The keys of each kind, for one query."""
    special = [j for j, flag in enumerate(sample.text.special) if flag]
    sinks = sorted({0, *special})
    kinds = {"sinks": sinks, "first token": [0], "special tokens": special}
    for column, name in enumerate(CLASSES):
        kinds[name] = [j for j in np.flatnonzero(classes[:, column]) if j not in sinks]
    for offset, name in ((0, "same token"), (-1, "previous token"), *(() if causal else ((1, "next token"),))):
        kinds[name] = [j for j in (i + offset,) if 0 <= j < len(sample) and j not in sinks]
    return kinds


@pytest.mark.parametrize("causal", [True, False], ids=["decoder", "encoder"])
def test_shares_are_those_of_the_norms_of_what_is_written(causal):
    subject = Tiny(causal)
    measure = Contributions(subject)
    written, weight, queries = {}, {}, 0
    for sample in list(corpus_of(TEXT).samples(subject, 24))[:4]:
        measure_sample(subject, sample, [measure])
        seen, classes = Operands(len(sample)), classes_of(sample)
        with limelight.watching(seen):
            subject.run(sample.ids)
        for layer, name in enumerate(subject.attention_names):
            for head in range(subject.heads):
                vectors = seen.values[name][head] @ subject.output_weight(name)[head]  # f(x_j)
                for i in sample.queries.tolist():
                    row = seen[name].rows[0, head, i]
                    norms = (row[:, None] * vectors).norm(dim=-1).tolist()
                    for kind, keys in kinds_of(sample, classes, i, causal).items():
                        share = written.setdefault(kind, np.zeros((2, 3)))
                        share[layer, head] += sum(norms[j] for j in keys) / sum(norms)
                        mean = weight.setdefault(kind, np.zeros((2, 3)))
                        mean[layer, head] += sum(float(row[j]) for j in keys)
        queries += len(sample.queries)
    results = {result.detail: result for result in measure.results()}
    assert {"sinks", "first token", "previous token", "same token", "punctuation", "number"} <= set(results)
    assert ("next token" in results, "special tokens" in results) == (not causal, not causal)
    for kind, result in results.items():
        np.testing.assert_allclose(result.total.score, written[kind] / queries, atol=2e-6)
        np.testing.assert_allclose(result.baseline, weight[kind] / queries, atol=2e-6)
        assert result.total.n == queries
    for kind in set(written) - set(results):
        assert not weight[kind].any()


def test_sinks_of_a_real_model_give_less_than_they_are_looked_at(minilm):
    """Kobayashi et al. 2020, section 4: their values are short where they get most of the weight."""
    subject = subject_of(minilm)
    measure = Contributions(subject)
    for sample in itertools.islice(corpus_of(None).samples(subject, 64), 4):
        measure_sample(subject, sample, [measure])
    sinks = next(result for result in measure.results() if result.detail == "sinks")
    assert sinks.total.n == 4 * ROWS
    heavy = sinks.baseline > 0.5
    assert heavy.sum() > 5
    assert (sinks.total.score[heavy] < 0.8 * sinks.baseline[heavy]).all()


def test_a_layer_without_a_known_projection_has_no_shares():
    class Partly(Tiny):
        def output_weight(self, name):
            if name == self.attention_names[1]:
                raise ArgumentError("no projection")
            return super().output_weight(name)

    subject = Partly()
    measure = Contributions(subject)
    measure_sample(subject, next(corpus_of(TEXT).samples(subject, 24)), [measure])
    score = measure.results()[0].total.score
    assert np.isfinite(score[0]).all()
    assert np.isnan(score[1]).all()
