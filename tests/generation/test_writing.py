"""The text of tokens as they come: together the pieces are the whole, and no character is cut."""

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from limelight.generation.writing import Writing
from limelight.text import Tokenizer


def by_bytes():
    """Every token one byte, and some longer ones that begin or end within a character."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(alphabet)}
    ends = [(alphabet[a], alphabet[b]) for a, b in ((200, 201), (150, 80), (90, 233))]
    vocabulary |= {a + b: 256 + number for number, (a, b) in enumerate(ends)}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, ends))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.add_special_tokens(["<end>"])
    return Tokenizer(backend)


def by_words():
    """Words with a mark for the blank before them, which the decoder leaves out at the beginning, and bytes."""
    words = ["▁the", "▁", "a", "▁cat", "s", "<unk>", ".", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend = tokenizers.Tokenizer(models.BPE({w: n for n, w in enumerate(words)}, [], byte_fallback=True))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<end>"])
    return Tokenizer(backend)


TOKENIZERS = {"bytes": by_bytes(), "words": by_words()}


def pieces(tokenizer, ids, context=(), stops=()):
    writing, shown, found = Writing.after(tokenizer, context, stops), 0, []
    for token in ids:
        writing = writing.add(token)
        found.append(writing.text[shown : writing.certain])
        shown = writing.certain
        if writing.stopped:
            return found, writing
    writing = writing.finished()
    return [*found, writing.text[shown:]], writing


@pytest.mark.parametrize("name", TOKENIZERS)
@given(st.data())
def test_together_they_are_the_text(name, data):
    tokenizer = TOKENIZERS[name]
    ids = data.draw(st.lists(st.integers(0, tokenizer.size - 1), max_size=30))
    found, writing = pieces(tokenizer, ids)
    whole = tokenizer.write(ids)
    assert "".join(found) == writing.text
    # one byte that is no character spoils all that stand beside it, for a decoder of bytes between words
    assert writing.text == whole or (name == "words" and "\ufffd" in whole)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(st.text(max_size=20), st.text(alphabet="a é☂🎉", max_size=20))
def test_whole_characters_come(name, before, text):
    tokenizer = TOKENIZERS[name]
    if name == "words":
        ids, context = ([7 + byte for byte in one.encode()] for one in (text, before))
    else:
        ids, context = (tokenizer.backend.encode(one).ids for one in (text, before))
    found, _ = pieces(tokenizer, ids, context)
    assert "".join(found) == text or (name == "words" and not before)  # whose first blank is left out
    assert all("\ufffd" not in piece for piece in found)


def test_a_blank_between_words_is_written_after_a_context():
    words = TOKENIZERS["words"]
    assert pieces(words, [3, 4], context=[0])[0] == [" cat", "s", ""]
    assert pieces(words, [3, 4])[0] == ["cat", "s", ""]
    end = words.size - 1
    assert "".join(pieces(words, [0, end, 3, end, 3])[0]) == "the cat cat"


@given(st.lists(st.sampled_from("abc"), max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
def test_a_text_stands_before_what_stops_it(letters, stops):
    tokenizer, text = TOKENIZERS["bytes"], "".join(letters)
    found, writing = pieces(tokenizer, tokenizer.backend.encode(text).ids, stops=tuple(stops))
    # where it is first complete, at its earliest beginning
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    first = min(ends)[0] if ends else None
    expected = text if first is None else text[: min(begin for end, begin in ends if end == first)]
    assert "".join(found) == writing.text == expected
    assert writing.stopped == bool(ends)


@given(st.data())
def test_special_tokens_are_spelled_out_for_what_stops(data):
    tokenizer = TOKENIZERS["bytes"]
    end = tokenizer.size - 1
    letters = {letter: tokenizer.backend.token_to_id(letter) for letter in "ab"} | {"<end>": end}
    written = data.draw(st.lists(st.sampled_from(sorted(letters)), max_size=12))
    spelled = "".join(written)
    cuts = st.integers(0, len(spelled))
    parts = st.tuples(cuts, cuts).map(lambda cut: spelled[min(cut) : max(cut)]).filter(bool)
    stops = data.draw(st.lists(parts if spelled else st.just("a"), max_size=2))
    sofar, expected, stopped = "", None, False
    for one in written:  # by the definition: after each token, is one of the stops in all that is spelled?
        sofar += one
        begins = [sofar.find(stop) for stop in stops if stop in sofar]
        if begins:
            # a special token that the stop cuts is none of the text, nor is a part of it
            whole = sofar[: min(begins)]
            expected, stopped = whole.replace("<end>", "").partition("<")[0], True
            break
    found, writing = pieces(tokenizer, [letters[one] for one in written], stops=tuple(stops))
    assert writing.stopped == stopped
    assert "".join(found) == writing.text == (expected if stopped else spelled.replace("<end>", ""))
