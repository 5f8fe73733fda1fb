"""Relations between words against a plain loop over the weights."""

import dataclasses

import numpy as np
import pytest
from support.made_up import OTHER, SENTENCE, mock_reading, paragraphs

from limelight.microscope.reading.comparison import changes, compare_readings, contrasts, shared_words
from limelight.microscope.reading.offsets import offset_bins
from limelight.microscope.reading.record import find_sinks
from limelight.microscope.reading.relations import (
    at_offset,
    excess_attention,
    given,
    strongest,
    taken,
    uniform,
    words_that_matter,
)


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


def usual(reading, query, key, layer, head):
    """The definition, for words of one piece: the mean over the other pairs at the offset, and one even share."""
    [i], [j] = reading.unit_tokens[query], reading.unit_tokens[key]
    bins = offset_bins(np.arange(reading.length)[None] - np.arange(reading.length)[:, None])
    pairs = [
        reading.shares[layer, head, a, b]
        for a, b in zip(*np.nonzero(bins == bins[i, j]), strict=True)
        if (a, b) != (i, j) and (b <= a or not reading.causal)
    ]
    return (sum(pairs) + 1 / reading.visible[i]) / (len(pairs) + 1)


@pytest.mark.parametrize("causal", [False, True])
def test_the_weight_at_an_offset_is_the_mean_of_the_other_pairs(causal):
    reading = mock_reading("The old bank is near the river and it was cold there then.", 2, 2, causal=causal)
    for unit in (1, 6):
        ours = at_offset(reading, unit, given(reading, unit))
        theirs = at_offset(reading, unit, taken(reading, unit), received=True)
        for other in range(len(reading.unit_text)):
            query, key = reading.unit_tokens[unit][0], reading.unit_tokens[other][0]
            for layer, head in ((0, 0), (1, 1)):
                if not causal or key <= query:
                    expected = usual(reading, unit, other, layer, head)
                    assert ours[layer, head, other] == pytest.approx(expected, abs=1e-6)
                if not causal or query <= key:
                    expected = usual(reading, other, unit, layer, head)
                    assert theirs[layer, head, other] == pytest.approx(expected, abs=1e-6)


def test_bins_of_offsets():
    offsets = np.array([0, -1, 1, -8, 8, -9, 9, -16, 16, 17, 32, 33, -64, 65])
    assert offset_bins(offsets).tolist() == [0, 1, 2, 15, 16, 17, 18, 17, 18, 20, 20, 22, 21, 24]


def test_the_offsets_of_a_long_text_are_those_of_its_weights_where_all_keys_are_kept():
    exact = mock_reading(paragraphs(80), 2, 3)
    long = mock_reading(paragraphs(80), 2, 3, k=exact.length, exact_pairs=0)
    np.testing.assert_allclose(long.offsets.count, exact.offsets.count)
    np.testing.assert_allclose(long.offsets.total, exact.offsets.total, rtol=1e-4, atol=1e-4)


def test_strongest_leaves_out_what_is_no_relation_unless_asked():
    reading = mock_reading(SENTENCE, 3, 4)
    bank = reading.find("BANK")[0]
    found = strongest(reading, bank, most=99)
    names = [reading.unit_text[relation.key] for relation in found if not relation.positional]
    assert names[0] == "river"  # the one content word
    assert sorted(names) == ["The", "is", "near", "river", "the"]
    excess = [relation.weight - relation.at_offset for relation in found if not relation.positional]
    assert excess[1:] == sorted(excess[1:], reverse=True)
    assert all(relation.lift == pytest.approx(relation.weight / relation.at_offset) for relation in found)
    weights = given(reading, bank)
    assert all(relation.weight == weights[relation.layer, relation.head, relation.key] for relation in found)
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
    assert [positional for _, positional in names] == [False] * 5 + [True]
    assert found[-1].weight == pytest.approx(0.6)
    assert found[-1].lift < 1.5


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


def with_weight(reading, query, key, weight):
    """The reading with another weight between two words in its first head, taken evenly from the other keys."""
    shares = reading.shares.copy()
    [i], [j] = reading.unit_tokens[query], reading.unit_tokens[key]
    rest = 1 - shares[0, 0, i, j]
    shares[0, 0, i] *= (1 - weight) / rest
    shares[0, 0, i, j] = weight
    return dataclasses.replace(reading, shares=shares)


def test_changes_are_of_heads_and_beyond_the_noise():
    first = mock_reading("The dog saw the park and it was open.", 2, 2)
    it, dog, park = (first.find(name)[0] for name in ("it", "dog", "park"))
    first = with_weight(first, it, dog, 0.1)
    same = compare_readings(first, first)
    pair = next(n for n, (word, _) in enumerate(same.pairs) if word == it)
    assert changes(first, first, same, pair) == []
    second = with_weight(first, it, dog, 0.6)
    [change] = [one for one in changes(first, second, same, pair) if one.key == same.pairs.index((dog, dog))]
    assert (change.layer, change.head, change.noise) == (0, 0, 0.0)
    assert (change.first, change.second) == (pytest.approx(0.1), pytest.approx(0.6))
    noisy = with_weight(second, park, dog, 0.999)
    noise = (noisy.shares - first.shares)[0, 0]
    others = [n for n in range(len(first.words)) if n != it and not first.words[n].is_punctuation]
    square = np.mean(
        [noise[first.unit_tokens[n][0]][[first.unit_tokens[a][0] for a, _ in same.pairs]] ** 2 for n in others]
    )
    [found] = [one for one in changes(first, noisy, same, pair) if one.key == same.pairs.index((dog, dog))]
    assert found.noise == pytest.approx(np.sqrt(square), rel=1e-4)


def test_contrasts_are_different_words_of_one_head():
    first, second = mock_reading(SENTENCE, 2, 2), mock_reading(OTHER, 2, 2)
    none = np.zeros((2, 2), np.float32)
    still = {"previous": none, "own": none, "next": none}
    first = dataclasses.replace(
        with_weight(first, first.find("bank")[0], first.find("river")[0], 0.9),
        heads=dataclasses.replace(first.heads, **still),
    )
    second = with_weight(second, second.find("bank")[0], second.find("money")[0], 0.8)
    comparison = compare_readings(first, second)
    found = contrasts(first, second, comparison, 1)[0]
    assert (found.layer, found.head) == (0, 0)
    assert (first.unit_text[found.first_key], second.unit_text[found.second_key]) == ("river", "money")
    assert (found.first, found.second) == (pytest.approx(0.9), pytest.approx(0.8))
