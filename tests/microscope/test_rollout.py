"""Rollout against the product of whole weights in float64, of our own models and of transformers'."""

import re
import sys

import numpy as np
import pytest
import torch
from support.made_up_subject import MadeUp, random_scores
from support.tiny_subject import Tiny

import limelight
from limelight import ArgumentError, Observe
from limelight.microscope import rollout
from limelight.microscope.rollout import _Product

TEXT = "Anne went to the river, and the river was cold; the friends of Anne were cold too."


def by_definition(weights, tokens):
    """``u <- (u + mean_h u A_h) / 2`` from each layer down to the first, ``(N + 1, L)``."""
    layers, heads, length, _ = weights.shape
    rows = []
    for depth in range(layers + 1):
        u = np.zeros(length)
        u[list(tokens)] = 1.0 / len(tokens)
        for layer in reversed(range(depth)):
            u = (u + sum(u @ weights[layer, head] for head in range(heads)) / heads) / 2
        rows.append(u)
    return np.array(rows)


@pytest.mark.parametrize("causal", [True, False], ids=["decoder", "encoder"])
@pytest.mark.parametrize("columns", [16, 256])
def test_it_is_the_product_of_the_weights(causal, columns, monkeypatch):
    monkeypatch.setattr(sys.modules[rollout.__module__], "COLUMNS", columns)  # the function has the module's name
    subject = MadeUp(random_scores(layers=3), layers=3, causal=causal)
    ids = list(subject.tokenize(TEXT).ids)
    weights = subject.weights(ids).numpy()
    for token in (0, 7, -1):
        found = rollout(subject, TEXT, token)
        assert found.tokens == (token % len(ids),)
        np.testing.assert_allclose(found.shares, by_definition(weights, found.tokens), atol=1e-6)
        np.testing.assert_allclose(found.shares.sum(1), 1.0, atol=1e-5)
    assert subject.runs == 3 * -(-len(ids) // columns)


def test_a_model_in_float64():
    subject = Tiny()
    ids = torch.tensor([subject.tokenize(TEXT).ids])
    length = ids.shape[1]
    with limelight.watching(Observe(rows=tuple(range(length)))) as seen:
        subject.run(ids)
    weights = np.stack([seen[name].rows[0].numpy() for name in subject.attention_names])
    product = _Product(subject, length, 0, length, (length - 1,))
    with limelight.watching(product):
        subject.run(ids)
    expected = by_definition(weights, (length - 1,))
    np.testing.assert_allclose(product.columns[-1].numpy(), expected[-1], rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(torch.stack(product.rows).numpy(), expected, atol=1e-7)


def test_a_model_of_transformers_as_its_own_weights_have_it():
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: number for number, word in enumerate(dict.fromkeys(["[UNK]", *re.findall(r"\w+", TEXT)]))}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = transformers.LlamaConfig(vocab_size=len(words), num_key_value_heads=2, initializer_range=0.5, **sizes)
    model = transformers.LlamaModel(config).eval()
    found = rollout(model, TEXT, "friends", tokenizer=tokenizer)
    model.set_attn_implementation("eager")
    ids = torch.tensor([found.text.ids])
    with torch.no_grad():
        weights = torch.cat(model(ids, output_attentions=True).attentions).double().numpy()
    np.testing.assert_allclose(found.shares, by_definition(weights, found.tokens), atol=1e-6)


def test_a_word_of_several_tokens_is_their_mean():
    subject = MadeUp(random_scores())
    found = rollout(subject, TEXT, "FRIENDS")  # friend, s
    assert [found.text.tokens[i] for i in found.tokens] == ["friend", "s"]
    weights = subject.weights(list(found.text.ids)).numpy()
    np.testing.assert_allclose(found.shares, by_definition(weights, found.tokens), atol=1e-6)
    assert repr(found) == f"Rollout('made up', 'friends', 2 layers, {len(found.text)} tokens)"


def test_the_table_has_a_row_for_every_layer_and_token(tmp_path):
    found = rollout(MadeUp(random_scores(), causal=False), TEXT, "river")
    rows = found.tables["rollout"]
    assert len(rows) == 3 * len(found.text)
    first = found.tokens[0]
    assert rows[first] == {"layers": 0, "position": first, "token": "river", "special": False, "share": 1.0}
    assert rows[-1]["token"] == "[SEP]"
    assert rows[-1]["special"]
    assert rows[-1]["share"] == pytest.approx(float(found.shares[-1, -1]), rel=1e-5)
    assert found.write(tmp_path / "rollout.csv") > 100


def test_what_is_not_there_is_named(translator):
    subject = MadeUp(random_scores())
    with pytest.raises(ArgumentError, match=r"`token` must be a word of the text.*'bank'.*Anne, went"):
        rollout(subject, TEXT, "bank")
    for position in (99, -99):
        with pytest.raises(ArgumentError, match="`token` must"):
            rollout(subject, TEXT, position)
    with pytest.raises(ArgumentError, match="at least one word"):
        rollout(subject, " ", 0)
    with pytest.raises(ArgumentError, match="`model` must be an encoder or a decoder"):
        rollout(translator, TEXT, 0)
