"""Importance by ablation against networks with a head's part of the output projection set to zero, in float64."""

import math
import os
import signal
from copy import deepcopy

import numpy as np
import pytest
import torch
from support.tiny_subject import Tiny

import limelight
from limelight import ArgumentError
from limelight.microscope.heads import measuring
from limelight.microscope.heads.corpus import corpus_of
from limelight.microscope.heads.measures import ablation, induction, retrieval
from limelight.microscope.heads.run import measure_sample

TEXT = " ".join(
    f"Anne went to the {place}, and it was cold there." for place in ("river", "bank", "garden", "house") * 4
)


@pytest.fixture(scope="module", autouse=True)
def few_made_up_texts():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(induction, "TEXTS", 2)
        patch.setattr(retrieval, "TEXTS", 1)
        patch.setattr(measuring, "labelled", lambda subject, **files: [])
        yield


def without(subject, layer, head):
    """The subject with one head that adds nothing (its output projection, without the bias, is zero)."""
    changed = deepcopy(subject)
    projection = changed.layer(subject.attention_names[layer]).output
    width = projection.weight.shape[1] // subject.heads
    projection.weight[:, head * width : (head + 1) * width] = 0.0
    return changed


def changes(subject, other, ids):
    """The change of each token, by the definition."""
    before, after = (each.run(ids, hidden=True, logits=True) for each in (subject, other))
    if not subject.causal:
        one, two = before.hidden[-1][0], after.hidden[-1][0]
        return [1.0 - float(a @ b / (a.norm() * b.norm())) for a, b in zip(one, two, strict=True)]
    return [
        float(before.logits[0, i].log_softmax(0)[token] - after.logits[0, i].log_softmax(0)[token])
        for i, token in enumerate(ids[0, 1:].tolist())
    ]


@pytest.mark.parametrize("causal", [True, False], ids=["decoder", "encoder"])
def test_each_head_is_silenced_alone(causal, monkeypatch):
    monkeypatch.setattr(ablation, "ROWS", 2)
    subject = Tiny(causal)
    texts = list(corpus_of(TEXT).samples(subject, 24))[:4]
    probe = ablation.ablation_probe(subject, lambda: iter(texts), 96)
    measure = ablation.Ablation(subject)
    for sample in probe.samples():
        measure_sample(subject, sample, [measure])
    (result,) = measure.results()
    assert (result.detail, result.unit) == (("loss", "loss") if causal else ("last states", "1 - cosine"))
    for layer in range(2):
        for head in range(3):
            other = without(subject, layer, head)
            by_text = [changes(subject, other, text.ids) for text in texts]
            for half, found in ((by_text, result.total), (by_text[::2], result.chosen), (by_text[1::2], result.scored)):
                every = [change for text in half for change in text]
                assert found.score[layer, head] == pytest.approx(np.mean(every), rel=2e-5, abs=1e-6)
                assert found.n == len(every)
            assert result.total.low[layer, head] <= result.total.score[layer, head] <= result.total.high[layer, head]
    assert (result.total.texts, result.chosen.texts) == (4, 2)
    assert np.abs(result.total.score).min() > 1e-4
    if causal:
        losses = [
            -float(subject.run(text.ids, logits=True).logits[0, i].log_softmax(0)[token])
            for text in texts
            for i, token in enumerate(text.ids[0, 1:].tolist())
        ]
        assert f"{np.mean(losses):.3f} nats" in result.notes[1]


def test_a_head_that_a_layer_lacks_has_no_importance():
    subject = Tiny()
    subject.heads = 4
    measure = ablation.Ablation(subject)
    texts = list(corpus_of(TEXT).samples(subject, 24))[:2]
    for sample in ablation.ablation_probe(subject, lambda: iter(texts), 48).samples():
        measure_sample(subject, sample, [measure])
    score = measure.results()[0].total.score
    assert np.isnan(score[:, 3]).all()
    assert np.isfinite(score[:, :3]).all()


def test_nothing_is_silenced_unless_requested():
    found = limelight.heads(Tiny(), TEXT, context=48)
    assert not [each for each in found.findings if each.result.measure == "ablation"]
    with pytest.raises(ArgumentError, match="ablate"):
        limelight.heads(Tiny(), TEXT, ablate=-1)


class Interrupted(Tiny):
    """Interrupts itself while the heads of the first layer are silenced in the second text."""

    def run(self, ids, **options):
        if len(ids) > 1:
            self.runs += 1
            if self.runs == 3:
                os.kill(os.getpid(), signal.SIGINT)
        return super().run(ids, **options)


def test_an_interrupted_ablation_goes_on_in_the_middle_of_a_text(tmp_path):
    state = tmp_path / "atlas.state"
    options = {"context": 48, "ablate": 100}
    whole = limelight.heads(Tiny(), TEXT, **options)
    assert whole.corpus["complete"]
    part = limelight.heads(Interrupted(), TEXT, **options, state=state)
    assert not part.corpus["complete"]
    assert part.corpus["probes"][-1]["texts"] == 2
    text, last = part.corpus["probes"][-2:]
    assert (text["complete"], last["name"], last["complete"]) == (True, "ablation", False)
    resumed = limelight.heads(Tiny(), TEXT, **options, state=state, resume=True)
    assert resumed.to_dict() == whole.to_dict()
    probe = whole.corpus["probes"][-1]
    assert 100 <= probe["tokens"] < 148
    found = whole.finding("ablation", "loss").result
    assert found.total.n == probe["tokens"] - probe["texts"]
    assert not math.isnan(found.total.low.max())
    row = whole.tables["heads"][0]
    assert row["ablation loss"] == pytest.approx(float(found.total.score[0, 0]), rel=1e-4)


def test_a_row_does_not_depend_on_the_others():
    subject = Tiny()
    ids = torch.tensor([subject.tokenize(TEXT).ids[:20]])
    together = ablation.Silenced(subject.attention_names[0], torch.tensor([0, 2]))
    with limelight.watching(together):
        both = subject.run(ids.expand(2, -1), hidden=True).hidden[-1]
    with limelight.watching(ablation.Silenced(subject.attention_names[0], torch.tensor([2]))):
        alone = subject.run(ids, hidden=True).hidden[-1]
    torch.testing.assert_close(both[1:], alone, rtol=1e-12, atol=1e-12)
