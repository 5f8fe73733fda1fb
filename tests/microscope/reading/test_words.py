"""Tokens are gathered into words by where they stand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limelight.microscope.reading.words import join_words


def test_pieces_of_a_word_and_marks():
    text = "The palace's door."
    pieces = ["[CLS]", "the", "pala", "##ce", "'", "s", "door", ".", "[SEP]"]
    spans = [(0, 0), (0, 3), (4, 8), (8, 10), (10, 11), (11, 12), (13, 17), (17, 18), (0, 0)]
    tokens, words = join_words(text, pieces, spans, [True] + [False] * 7 + [True])
    assert [word.text for word in words] == ["The", "palace's", "door", "."]
    assert [token.word for token in tokens] == [-1, 0, 1, 1, 1, 1, 2, 3, -1]
    assert [word.is_punctuation for word in words] == [False, False, False, True]
    assert [word.content for word in words] == [False, True, True, False]


def test_chinese_characters_are_words_and_emoji_are_marks():
    _, words = join_words("河边🌊银行", ["河", "边", "🌊", "银", "行"], [(i, i + 1) for i in range(5)], [False] * 5)
    assert [word.text for word in words] == ["河", "边", "🌊", "银", "行"]
    assert words[2].is_punctuation


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("हिन्दी में नदी", ["हिन्दी", "में", "नदी"]),
        ("don't 'quote' rock’n’roll", ["don't", "'", "quote", "'", "rock’n’roll"]),
        ("cafe\u0301 snake_case x2", ["cafe\u0301", "snake_case", "x2"]),
        ("می‌روم", ["می‌روم"]),
    ],
)
def test_words_of_other_scripts(text, expected):
    cut = [(i, i + 1) for i in range(len(text))]
    _, words = join_words(text, list(text), cut, [False] * len(text))
    assert [word.text for word in words] == expected


def test_blank_tokens_belong_to_no_word():
    tokens, words = join_words("a  b", ["a", " ", "b"], [(0, 1), (1, 2), (3, 4)], [False] * 3)
    assert [token.word for token in tokens] == [0, -1, 1]
    assert [word.tokens for word in words] == [(0,), (2,)]


@given(st.text(max_size=40), st.lists(st.integers(1, 5), max_size=40))
def test_every_token_of_visible_text_has_a_word(text, widths):
    spans, at = [], 0
    for width in widths:
        if at < len(text):
            spans.append((at, min(at + width, len(text))))
            at += width
    tokens, words = join_words(text, [text[a:b] for a, b in spans], spans, [False] * len(spans))
    for token in tokens:
        if token.text.strip() and (token.text.strip()[0].isalnum()):
            assert token.word >= 0
    for number, word in enumerate(words):
        assert [token.word for token in tokens].count(number) == len(word.tokens) > 0
        assert all(tokens[i].word == number for i in word.tokens)
