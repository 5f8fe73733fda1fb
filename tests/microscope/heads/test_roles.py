"""Which claims hold: thresholds, the second half of the texts, and the correction for many of them."""

import itertools
import math
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.made_up_subject import MadeUp, random_scores

from limelight.microscope.heads.corpus import corpus_of
from limelight.microscope.heads.measure import Claim, Result
from limelight.microscope.heads.measures import coreference, induction
from limelight.microscope.heads.measures.induction import induction_probe
from limelight.microscope.heads.measures.retrieval import retrieval_probe
from limelight.microscope.heads.measuring import text_probe
from limelight.microscope.heads.probes import labelled
from limelight.microscope.heads.probes.grammar import made_sentences
from limelight.microscope.heads.roles import FALSE, false_discovery_level, find_roles
from limelight.microscope.heads.run import Progress, run_probe
from limelight.microscope.heads.sums import Interval

pytestmark = pytest.mark.usefixtures("one_thread")

CLAIM = Claim("role", 0.5, "a source", 1.1, None)


def result_of(scores, half_widths, baseline=0.5, name="measure"):
    scores, width = np.array([scores], float), np.array([half_widths], float)
    interval = Interval(scores, scores - width, scores + width, 100.0, 20)
    return Result(name, "", interval, interval, interval, baseline, "a baseline", "share", CLAIM)


def test_the_level_is_that_of_benjamini_and_hochberg():
    random = np.random.default_rng(0)
    for count in (1, 2, 7, 40):
        values = random.random(count) ** 4
        expected = 0.0
        for rank, value in enumerate(sorted(values), 1):
            if value <= 0.1 * rank / count:
                expected = value
        assert false_discovery_level(values, 0.1) == expected
    assert false_discovery_level(np.zeros(0)) == 0.0


def test_a_claim_just_above_its_baseline_holds_alone_but_not_as_the_best_of_many():
    just = result_of([0.60], [0.045])  # 0.55 is to beat: 2.2 standard errors
    assert [row["head"] for row in find_roles([just], {})] == [0]
    others = result_of([0.56] * 50, [0.1] * 50, name="chance")  # chosen, none of them confirmed
    assert find_roles([just, others], {}) == []
    clear = result_of([0.70], [0.045])
    assert [row["measure"] for row in find_roles([clear, others], {})] == ["measure"]


def test_as_many_claims_of_chance_hold_as_the_rate_says():
    """Heads at their baseline: without a correction 0.025 of the claims would hold, with it some in 0.025 of runs."""
    random, runs, some = np.random.default_rng(1), 400, 0
    for _ in range(runs):
        scored = 0.55 + 0.05 * random.normal(size=60)
        chosen = Interval(np.full((1, 60), 0.6), np.full((1, 60), 0.5), np.full((1, 60), 0.7), 100.0, 20)
        width = 1.96 * 0.05
        test = Interval(scored[None], scored[None] - width, scored[None] + width, 100.0, 20)
        some += bool(find_roles([Result("m", "", chosen, test, test, 0.5, "", "share", CLAIM)], {}))
    assert some / runs < FALSE + 3 * math.sqrt(FALSE / runs)


@pytest.mark.parametrize("causal", [True, False], ids=["decoder", "encoder"])
def test_no_claim_holds_of_random_weights(causal, monkeypatch):
    """Every measure that makes claims, on texts enough for it to make them."""
    monkeypatch.setattr(induction, "TEXTS", 12)
    monkeypatch.setattr(coreference, "LEAST", 8)
    subject = MadeUp(random_scores(2, 6, 3.0), causal=causal, layers=2, heads=6, width=16)
    sentences = " ".join(sentence.text for sentence, _ in itertools.islice(made_sentences(), 120))
    text = text_probe(subject, corpus_of(sentences), 100_000, 96)
    probes = [text, induction_probe(subject), *labelled(subject), *([retrieval_probe(subject)] if causal else [])]
    results, controls = [], {}
    for probe in probes:
        texts = 24 if probe is text else 80
        some = replace(probe, samples=lambda probe=probe, texts=texts: itertools.islice(probe.samples(), texts))
        progress = Progress(some)
        run_probe(subject, progress, threading.Event(), lambda: None, lambda: None)
        results += [result for measure in progress.measures for result in measure.results()]
        shuffled = [result for measure in progress.controls for result in measure.results()]
        controls |= {(result.measure, result.detail): result for result in shuffled}
    claims = {result.measure for result in results if result.claim is not None and result.scored.texts >= 5}
    expected = {
        "offset", "largest weight at offset", "sink", "long range", "token class", "duplicate token",
        "repeated random tokens", "semantic", "syntax, made sentences", "coreference, made sentences",
    }  # fmt: skip
    assert claims == expected | ({"needle"} if causal else set())
    assert find_roles(results, controls) == []


def test_a_control_counts_the_same_without_intervals():
    subject = MadeUp(random_scores())
    sentences = " ".join(sentence.text for sentence, _ in itertools.islice(made_sentences(), 12))
    progress = Progress(text_probe(subject, corpus_of(sentences), 100_000, 48))
    run_probe(subject, progress, threading.Event(), lambda: None, lambda: None)
    full = {(r.measure, r.detail): r for measure in progress.measures for r in measure.results()}
    controls = [result for measure in progress.controls for result in measure.results()]
    assert {(result.measure, result.detail) for result in controls} <= set(full)
    assert all(np.isnan(result.total.low).all() for result in controls)
    assert any(np.isfinite(result.total.low).all() for result in full.values())
    size = {
        name: sum(array.nbytes for measure in measures for array in measure.state().values())
        for name, measures in (("controls", progress.controls), ("measures", progress.measures))
    }
    assert size["controls"] < 0.1 * size["measures"]
    assert torch.isfinite(torch.from_numpy(controls[0].total.score)).all()
