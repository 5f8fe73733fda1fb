"""Relations between words against a plain loop over the weights."""

import dataclasses

import numpy as np
import pytest
from support.made_up import OTHER, SENTENCE, mock_reading, paragraphs

from limelight.microscope.comparison import changes, compare_readings, shared_words
from limelight.microscope.reading import find_sinks
from limelight.microscope.relations import excess_attention, given, strongest, taken, uniform, words_that_matter


def between(reading, query, key, layer, head):
    """The definition: the sum over the pieces of the key, the mean over the pieces of the query."""
    rows = reading.unit_tokens[query]
    return np.mean([sum(reading.shares[layer, head, i, j] for j in reading.unit_tokens[key]) for i in rows])


@pytest.mark.parametrize("causal", [False, True])
def test_exact_relations_are_sums_to_and_means_from(causal):
    reading = mock_reading("Understanding electricity, the unbelievable river.", 2, 3, causal=causal)
    assert reading.exact
    assert any(len(tokens) > 1 for tokens in reading.unit_tokens)
    for unit in range(len(reading.unit_text)):
        ours, theirs = given(reading, unit), taken(reading, unit)
        for other in range(len(reading.unit_text)):
            for layer in range(2):
                for head in range(3):
                    assert ours[layer, head, other] == pytest.approx(
                        between(reading, unit, other, layer, head), abs=1e-6
                    )
                    assert theirs[layer, head, other] == pytest.approx(
                        between(reading, other, unit, layer, head), abs=1e-6
                    )


@pytest.mark.parametrize("causal", [False, True])
def test_an_even_spread_is_what_uniform_says(causal):
    reading = mock_reading(SENTENCE, 1, 1, causal=causal)
    length = reading.length
    even = np.ones((length, length)) if not causal else np.tril(np.ones((length, length)))
    even /= even.sum(1, keepdims=True)
    for query, rows in enumerate(reading.unit_tokens):
        for key, columns in enumerate(reading.unit_tokens):
            expected = np.mean([even[i, list(columns)].sum() for i in rows])
            assert uniform(reading, query, key) == pytest.approx(expected)
    np.testing.assert_allclose(reading.expected, even.sum(0), rtol=1e-5)


def test_top_keys_of_a_long_text_give_the_same_relations_where_they_hold_everything():
    """With as many keys kept as there are, blocks of a long text must answer as the exact weights do."""
    text = paragraphs(80)
    exact = mock_reading(text, 2, 3)
    long = mock_reading(text, 2, 3, k=exact.length, exact_pairs=0)
    assert exact.exact
    assert not long.exact
    for unit in (0, 3, len(exact.unit_text) - 1):
        np.testing.assert_allclose(given(long, unit), given(exact, unit), atol=1e-5)
        np.testing.assert_allclose(taken(long, unit), taken(exact, unit), atol=1e-5)


def test_strongest_leaves_out_what_is_no_relation_unless_asked():
    reading = mock_reading(SENTENCE, 3, 4)
    bank = reading.find("BANK")[0]
    found = strongest(reading, bank, most=99)
    names = [reading.unit_text[relation.key] for relation in found]
    assert sorted(names) == ["The", "is", "near", "river", "the"]
    assert found == sorted(found, key=lambda relation: (relation.positional, -relation.weight))
    every = strongest(reading, bank, special=True, most=99)
    assert {"[CLS]", "[SEP]", ".", "bank"} < {reading.unit_text[relation.key] for relation in every}


def test_relations_of_positional_heads_come_last():
    """A head that gives more than half of its attention to one place says nothing of the words that stand there."""
    reading = mock_reading(SENTENCE, 1, 2)
    length = reading.length
    shares = np.full((1, 2, length, length), 0.4 / (length - 1), np.float32)
    shares[0, 0] /= 2
    places = np.arange(length)
    shares[0, 0, places, np.maximum(places - 1, 0)] = 0.6  # the first head looks at the token before
    shares[0, 1, places, (places + 4) % length] = 0.6  # the other at the fourth behind
    before = np.array([[0.6, 0.05]], np.float32)
    nothing = np.zeros((1, 2), np.float32)
    heads = dataclasses.replace(reading.heads, previous=before, own=nothing, next=nothing)
    changed = dataclasses.replace(reading, shares=shares, heads=heads)
    bank = changed.find("bank")[0]
    found = strongest(changed, bank)
    names = [(changed.unit_text[relation.key], relation.positional) for relation in found]
    assert names[0] == ("river", False)
    assert names[-1] == ("The", True)
    assert [positional for _, positional in names] == [False] * 4 + [True]


def test_words_that_matter_are_content_words_that_move_most():
    reading = mock_reading("The cat saw a very small river and it was cold.", 2, 2)
    chosen = words_that_matter(reading, most=2)
    content = [n for n, word in enumerate(reading.words) if word.text in {"cat", "saw", "small", "river", "cold"}]
    assert chosen == sorted(sorted(content, key=lambda n: reading.path[-1, n])[:2])
    assert [mock_reading("it was", 1, 1).words[n].text for n in words_that_matter(mock_reading("it was", 1, 1))]


def test_the_words_of_a_decoder_are_those_that_receive_most():
    reading = mock_reading("The cat saw a very small river and it was cold.", 2, 2, causal=True)
    received = np.tile(reading.expected, (2, 1))
    river = reading.find("river")[0]
    received[:, list(reading.unit_tokens[river])] += 0.5
    received[:, list(reading.unit_tokens[reading.find("it")[0]])] += 2.0  # a function word
    changed = dataclasses.replace(reading, received=received)
    assert words_that_matter(changed, most=1) == [river]
    excess = excess_attention(changed)
    assert excess[river] == pytest.approx(0.5, abs=1e-5)
    assert excess[reading.find("cat")[0]] == pytest.approx(0.0, abs=1e-5)


def test_a_sink_is_the_first_token_of_a_causal_model_only():
    def first(share, length=10):
        return np.full((2, 3), 1 + share * (length - 1), np.float32)

    assert find_sinks(first(0.7), causal=True, length=10) == (0,)
    assert find_sinks(first(0.7), causal=False, length=10) == ()
    assert find_sinks(first(0.25), causal=True, length=10) == ()
    assert find_sinks(first(0.7, length=3), causal=True, length=3) == ()
    one_head = first(0.1)
    one_head[0, 0] = 9.0
    assert find_sinks(one_head, causal=True, length=10) == ()


def test_shared_words_and_their_cosine():
    first, second = mock_reading(SENTENCE, 2, 2), mock_reading(OTHER, 2, 2)
    pairs = shared_words(first, second)
    assert [(first.words[a].text, second.words[b].text) for a, b in pairs] == [("The", "the"), ("bank", "bank")]
    comparison = compare_readings(first, second)
    a, b = first.vectors[1, pairs[1][0]], second.vectors[1, pairs[1][1]]
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    assert comparison.cosine[1, 1] == pytest.approx(cosine, abs=1e-5)
    assert comparison.baseline_pairs == 6 * 6 - 3  # "the" twice and "bank" once meet themselves
    assert changes(first, second, comparison, 1) == []  # a function word is no partner
    change = changes(first, second, comparison, 0)[0]
    means = [given(r, p).mean(1)[change.layer] for r, p in zip((first, second), pairs[0], strict=True)]
    assert change.first == pytest.approx(means[0][pairs[1][0]], abs=1e-6)
    assert change.second == pytest.approx(means[1][pairs[1][1]], abs=1e-6)
