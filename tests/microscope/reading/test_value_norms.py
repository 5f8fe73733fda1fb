"""Norm-weighted attention against what the heads write, computed from the layers themselves."""

import numpy as np
import pytest
import torch
from support.made_up import SENTENCE

import limelight
from limelight.forms.observations import Observe, Seen
from limelight.microscope import look
from limelight.microscope.subjects import subject_of

OWN = "The bank of the river was covered with flowers."


class Values(Seen):
    """Keeps the values of every layer."""

    def replace(self, name, query, key, value, output):
        self.kept = {**getattr(self, "kept", {}), name: value[0].double()}
        return output


@pytest.mark.parametrize(("model", "text"), [("minilm", SENTENCE), ("smollm2", OWN)])
def test_norms_are_those_of_the_values_behind_the_projection(model, text, request):
    subject = subject_of(request.getfixturevalue(model))
    reading = look(subject.model, text).readings[0]
    ids = torch.tensor([subject.tokenize(text).ids])
    with limelight.watching(Values(Observe())) as seen:
        subject.run(ids)
    for layer, name in enumerate(subject.attention_names):
        weight = subject.output_weight(name).double()  # (H, Dv, width)
        values = seen.kept[name]
        for head in range(subject.heads):
            own = values[head * len(values) // subject.heads]  # (L, Dv)
            expected = (own @ weight[head]).norm(dim=-1)
            np.testing.assert_allclose(reading.value_norms[layer, head], expected, rtol=1e-4)


def test_contributions_stand_beside_weights(minilm):
    report = look(minilm, SENTENCE, words=["bank"], special=True)
    reading = report.readings[0]
    bank = reading.find("bank")[0]
    for row in report.tables["relations"]:
        layer, head = row["layer"], row["head"]
        written = reading.shares[layer, head] * reading.value_norms[layer, head]
        written /= written.sum(axis=-1, keepdims=True)
        other = reading.unit_text.index(row["other"]) if row["other"] != "bank" else bank
        i, j = (other, bank) if row["direction"] == "is looked at by" else (bank, other)
        query, key = reading.unit_tokens[i][0], reading.unit_tokens[j][0]
        assert row["contribution"] == pytest.approx(written[query, key], rel=1e-4)


def test_a_separator_is_looked_at_more_than_it_gives(minilm):
    """Kobayashi et al. 2020, section 4: the special tokens' values are short where they get most of the weight."""
    reading = look(minilm, "The bank is near the river, and the boat stood on the shore.").readings[0]
    apart = list(reading.apart)
    written = reading.shares * reading.value_norms[:, :, None]
    share = written[..., apart].sum(-1) / written.sum(-1)
    looked = reading.shares[..., apart].sum(-1)
    heavy = looked.mean(-1) > 0.7
    assert heavy.sum() > 5
    assert share[heavy].mean() < 0.8 * looked[heavy].mean()


def test_a_long_text_has_none(minilm):
    report = look(minilm, " ".join([SENTENCE] * 30))
    assert report.readings[0].value_norms is None
    assert {row["contribution"] for row in report.tables["relations"]} == {None}


def test_nearest_words_are_those_with_the_largest_cosine(minilm):
    report = look(minilm, SENTENCE, words=["bank"])
    reading = report.readings[0]
    hidden = minilm(SENTENCE, hidden=True).hidden
    bank = reading.find("bank")[0]
    for depth, states in enumerate(hidden):
        vectors = states[0].double()  # a token for each unit of this sentence
        cosine = torch.nn.functional.cosine_similarity(vectors[:, None], vectors[None], dim=-1)
        token = reading.unit_tokens[bank][0]
        order = [at for at in cosine[token].argsort(descending=True).tolist() if at != token]
        rows = [row for row in report.tables["nearest"] if row["depth"] == depth]
        assert [row["other"] for row in rows] == [reading.unit_text[reading.unit_of[at]] for at in order[:3]]
        assert [row["cosine"] for row in rows] == pytest.approx(cosine[token][order[:3]].tolist(), abs=1e-4)
        pairs = cosine[~torch.eye(len(cosine), dtype=torch.bool)]
        assert rows[0]["all_pairs"] == pytest.approx(float(pairs.mean()), abs=1e-4)
