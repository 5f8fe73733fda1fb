"""Text in and out: the ids of transformers, and where each piece lies."""

import unicodedata

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from real_models import fetched

from limelight import ArgumentError, Padded
from limelight.text import printable

BIDIRECTIONAL = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
SAMPLES = [
    "The bank is near the river.",
    "Don't   stop — naïve café, 12345 €, 3.14!\n\n\tIt's <|im_end|> over.",
    "日本語のテキスト and emoji 👩‍🚀🏳️‍🌈",
    "",
    " ",
    "ALL CAPS & [MASK] [CLS]",
    "\u00e9 against e\u0301; zero\u200bwidth; \ufeffmark",
]
# any text, and more often than by chance what tokenizers treat in a way of its own
TEXTS = st.text(max_size=60) | st.lists(
    st.sampled_from([" ", "  ", "\n", "the", "bank", "'s", "12", "é", "<|im_start|>", "[SEP]", ".", "Ġ", "##ing"]),
    max_size=20,
).map("".join)


class Pairs:
    """Our tokenizers and theirs; printed short, since hypothesis prints what it is given."""

    def __init__(self, *pairs):
        self.pairs = pairs


@pytest.fixture(scope="module")
def both(minilm, smollm2):
    folder = fetched("smollm2")
    wordpiece = transformers.AutoTokenizer.from_pretrained(fetched("minilm"))
    bpe = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=next(folder.glob("*.gguf")).name)
    return Pairs((minilm.tokenizer, wordpiece), (smollm2.tokenizer, bpe))


@pytest.mark.parametrize("text", SAMPLES)
def test_samples(both, text):
    for ours, theirs in both.pairs:
        assert list(ours.read(text).ids) == theirs(text)["input_ids"]


@settings(max_examples=200)
@given(text=TEXTS)
def test_any_text(both, text):
    for ours, theirs in both.pairs:
        read = ours.read(text)
        assert list(read.ids) == theirs(text)["input_ids"]
        assert all(0 <= start <= end <= len(text) for start, end in read.spans)
        ends = [word.last for word in read.whole_words]
        assert ends == sorted(ends)
    if text.isascii() and text.isprintable():  # some rare bytes are not in the vocabulary
        bpe = both.pairs[1][0]
        assert bpe.write(bpe.read(text).ids, marks=True) == text


def test_the_whole_text_is_read(minilm):
    """The file asks for truncation to 128 tokens and padding to 128; neither is done silently."""
    assert len(minilm.tokenizer.read("word " * 600)) == 602
    assert len(minilm.tokenizer.read("word")) == 3
    with pytest.raises(ArgumentError, match=r"512 positions.*602 tokens"):
        minilm("word " * 600)


def test_pieces_and_words(minilm, smollm2):
    text = minilm.tokenizer.read("Unbelievable  banks.")
    assert text.tokens == ("[CLS]", "unbelievable", "banks", ".", "[SEP]")
    assert text.pieces == ("[CLS]", "Unbelievable", "banks", ".", "[SEP]")
    assert text.special == (True, False, False, False, True)
    assert [(word.text, word.first, word.last) for word in text.whole_words] == [
        ("Unbelievable", 1, 2),
        ("banks", 2, 3),
        (".", 3, 4),
    ]
    text = smollm2.tokenizer.read("An unbelievableness <|im_end|>")
    assert "".join(text.pieces).replace(" ", "") == "Anunbelievableness<|im_end|>"
    assert [word.text for word in text.whole_words][:2] == ["An", "unbelievableness"]
    assert text.special[-1]
    assert text.words[-1] is None
    word = text.whole_words[1]
    assert word.last - word.first > 1
    assert text.text[word.start : word.end] == word.text


def test_batches(minilm):
    tokens = minilm.read(["one two three", "one"], side="left")
    assert tokens.ids.shape == (2, 5)
    assert tokens.ids[1].tolist()[:2] == [0, 0]
    assert isinstance(tokens.layout, Padded)
    assert tokens.layout.side == "left"
    assert minilm.read(["one", "two"]).layout is None
    assert minilm.read("one").ids.dtype == torch.int64
    assert minilm.read([]).ids.shape == (0, 0)
    assert len(minilm.read(["one", "two"])) == 2


def test_the_chat_template_is_text(minilm, smollm2):
    assert "<|im_start|>" in smollm2.tokenizer.chat_template
    assert minilm.tokenizer.chat_template is None
    assert smollm2.tokenizer.size == 49152


def test_what_is_no_text(minilm):
    with pytest.raises(ArgumentError, match=r"`text` must be a str.*bytes"):
        minilm.read([b"bytes"])
    with pytest.raises(ArgumentError, match="`side` must be"):
        minilm.read("text", side="top")


@given(st.text(st.characters(exclude_categories=())))
def test_nothing_that_a_terminal_acts_on_is_printable(text):
    shown = printable(text)
    controls = [c for c in shown if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t"]
    reordering = [c for c in shown if unicodedata.bidirectional(c) in BIDIRECTIONAL]
    assert not controls
    assert not reordering
    plain = [c for c in text if unicodedata.category(c) not in ("Cc", "Cs", "Cf")]
    assert [c for c in shown if c in plain] or not plain
    assert printable("".join(plain)) == "".join(plain)


def test_controls_are_pictures():
    assert printable("\x1b]0;title\x07 a\tb\n\r\x7f\x9b2J \u202eabc\u2066") == (
        "␛]0;title␇ a\tb\n␍␡<U+009B>2J <U+202E>abc<U+2066>"
    )
    assert printable("\ud800") == "\ufffd"
