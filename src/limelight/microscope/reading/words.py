"""Words of a text: the tokens of each, and whether it is a content word.

A model sees pieces (``pala`` ``##ce``), but relations are reported between words:
the sum over the pieces *to* a word, the mean over the pieces *from* it (Clark et al. 2019, section 4).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# Chinese, Japanese and Korean syllables stand alone: a run of them is a sentence, not a word.
_ALONE = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]").match
_APOSTROPHES, _JOINERS = "'’", "\u200c\u200d"  # joiners stand inside the words of Persian and Hindi

# English function words. Other languages lose nothing but a filter: their words are ranked as they are.
_FUNCTION_WORDS = """
    a about above across after again against all along also although am among amongst an and another any are
    aren't around as aside at away back be because been before behind being below beneath beside besides between
    beyond both but by can can't cannot could couldn't despite did didn't do does doesn't doing don't down
    during each either else ever every everybody everyone everything except few for from further had hadn't has
    hasn't have haven't having he he'd he's her here hers herself him himself his how i i'd i'll i'm i've if in
    inside instead into is isn't it it's its itself just let's me more most must my myself near neither no
    nobody none nor not nothing now of off on once only onto or other others our ours ourselves out outside over
    own past per perhaps quite rather same shall she she'd she's should since so some somebody someone something
    still such than that that's the their theirs them themselves then there these they they're they've this
    those though through thus to together too toward towards under underneath unless until up upon us very via
    was wasn't we we're we've were weren't what whatever when where whether which while who whom whose why will
    with within without won't would yet you you're you've your yours yourself yourselves
"""
_IS_FUNCTION_WORD = frozenset(_FUNCTION_WORDS.split()).__contains__


@dataclass(frozen=True)
class Token:
    """One piece of the text as the model sees it; ``word`` is the index of its word, -1 for a special token."""

    text: str
    start: int
    end: int
    special: bool
    word: int


@dataclass(frozen=True)
class Word:
    """A word (or a punctuation mark) of the text and the positions of its tokens."""

    text: str
    start: int
    end: int
    tokens: tuple[int, ...]

    @property
    def is_punctuation(self) -> bool:
        """Whether this is punctuation or a symbol and no word."""
        return not any(character.isalnum() for character in self.text)

    @property
    def content(self) -> bool:
        """Whether this is neither punctuation nor a function word."""
        return not self.is_punctuation and not _IS_FUNCTION_WORD(self.text.lower())


def join_words(
    text: str, pieces: Sequence[str], offsets: Sequence[tuple[int, int]], special: Sequence[bool]
) -> tuple[tuple[Token, ...], tuple[Word, ...]]:
    """Group a text's tokens into words by their place in the text.

    A token belongs to the word in which its first visible character stands. Special tokens, and tokens of
    spaces alone, belong to no word (-1).

    Example:
        >>> tokens, words = join_words("A river.", ["a", "river", "."], [(0, 1), (2, 7), (7, 8)], [False] * 3)
        >>> [word.text for word in words]
        ['A', 'river', '.']
    """
    spans = list(_spans(text))
    owner: list[int] = []
    at = 0
    for (start, end), is_special in zip(offsets, special, strict=True):
        first = next((i for i in range(start, end) if not text[i].isspace()), None)
        if is_special or first is None:
            owner.append(-1)
            continue
        while at < len(spans) and spans[at][1] <= first:
            at += 1
        while at > 0 and spans[at - 1][1] > first:  # a piece may start before the one that came ahead of it
            at -= 1
        inside = at < len(spans) and spans[at][0] <= first
        owner.append(at if inside else -1)
    kept = {index: number for number, index in enumerate(sorted(set(owner) - {-1}))}
    tokens = tuple(
        Token(piece, start, end, bool(is_special), kept.get(index, -1))
        for piece, (start, end), is_special, index in zip(pieces, offsets, special, owner, strict=True)
    )
    members: dict[int, list[int]] = {}
    for position, token in enumerate(tokens):
        members.setdefault(token.word, []).append(position)
    words = tuple(
        Word(text[spans[index][0] : spans[index][1]], *spans[index], tuple(members[number]))
        for index, number in kept.items()
    )
    return tokens, words


def one_each(
    text: str, pieces: Sequence[str], offsets: Sequence[tuple[int, int]], special: Sequence[bool]
) -> tuple[tuple[Token, ...], tuple[Word, ...]]:
    """The tokens of what has no words, such as a sound: each token is a word.

    Example:
        >>> tokens, words = one_each("0.0 s 0.1 s", ["0.0 s", "0.1 s"], [(0, 5), (6, 11)], [False] * 2)
        >>> [word.text for word in words]
        ['0.0 s', '0.1 s']
    """
    assert not any(special)
    found = list(zip(pieces, offsets, strict=True))
    tokens = tuple(Token(piece, start, end, False, place) for place, (piece, (start, end)) in enumerate(found))
    return tokens, tuple(Word(text[start:end], start, end, (place,)) for place, (_, (start, end)) in enumerate(found))


def _spans(text: str) -> Iterator[tuple[int, int]]:
    """The spans of words and punctuation in a text: runs of letters, digits and accents, else single characters."""
    start = None
    for i, character in enumerate(text):
        if _in_word(text, i):
            start = i if start is None else start
            continue
        if start is not None:
            yield start, i
            start = None
        if not character.isspace():
            yield i, i + 1
    if start is not None:
        yield start, len(text)


def _in_word(text: str, i: int) -> bool:
    """Whether a character is part of a word, not a blank, punctuation, or a word by itself."""
    character = text[i]
    if _ALONE(character):
        return False
    if character in _APOSTROPHES or character in _JOINERS:
        return 0 < i < len(text) - 1 and _letter(text[i - 1]) and _letter(text[i + 1])
    return _letter(character)


def _letter(character: str) -> bool:
    # Unicode gives the vowel signs of many scripts the category M (mark); here they count as letters.
    return character.isalnum() or character == "_" or unicodedata.category(character)[0] == "M"
