"""Messages whose special tokens are nothing but text: the ids of plain text, and no others where none is spelled."""

import pytest
import tokenizers
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from limelight import ArgumentError
from limelight.generation.conversation import conversation
from limelight.pretrained import Pretrained
from limelight.text import Tokenizer

TURNS = (
    "<s>{% for m in messages %}<|turn|>{{ m['role'] }}\n{{ m['content'] | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n<think>\n{% endif %}"
)
# A template that reads the messages: it writes one as JSON, slices it, and joins the texts of two.
BUSY = (
    "<s>{% for m in messages %}<|{{ m.role }}|>{{ m.content.split('<think>')[-1] }}{{ m | tojson(ensure_ascii=true) }}"
    "{{ m.content[:3] }}{{ m.content[3:] }}{% endfor %}{% for m in messages %}{{ m.content }}{% endfor %}<|end|>"
)
SPECIAL = ["<s>", "<|turn|>", "<|end|>", "<|user|>", "<|user"]
SPELLED = [
    *SPECIAL,
    "<think>",
    "<",
    "|",
    ">",
    "end|>",
    "<|en",
    "s>",
    "\n",
    " ",
    "a",
    "the cat",
    "é",
    "日",
    "\ue000",
    "<S>",
]
TALK = st.lists(st.sampled_from(SPELLED), max_size=8).map("".join)
HARMLESS = st.text(alphabet="abc \n<>|é日\ue000", max_size=20)


def added(backend, **how):
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True, **how) for token in SPECIAL])
    backend.add_tokens([AddedToken("<think>", normalized=False, special=False), "aa"])
    return backend


def by_bytes(merges=True, **how):
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=330 if merges else 256,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    backend.train_from_iterator(["the cat <|end|> sat <|turn|> <s> <think> on\n the"] * 3, trainer)
    return added(backend, **how)


def by_pieces(scheme):
    pieces = ["<unk>", "▁", *"abcdefgst<>|_é\n", "▁the", "▁cat", "▁a", "<|", "|>", "▁<"]
    backend = tokenizers.Tokenizer(models.Unigram([(piece, -float(n)) for n, piece in enumerate(pieces)], 0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return added(backend)


def by_words():
    pieces = ["[UNK]", *(mark + letter for letter in "abcdefghst<>|_\n" for mark in ("", "##")), "the", "cat"]
    backend = tokenizers.Tokenizer(models.WordPiece({piece: n for n, piece in enumerate(pieces)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return added(backend)


def by_normalised_special_tokens():
    """Special tokens that are looked for in what the normalizer makes of a text: "<S>" is one too."""
    backend = tokenizers.Tokenizer.from_str(by_bytes().to_str().replace('"normalized":false', '"normalized":true'))
    backend.normalizer = normalizers.Lowercase()
    return backend


BACKENDS = {
    "bytes": by_bytes(),
    "bytes, and blanks beside tokens": by_bytes(lstrip=True, rstrip=True),
    "pieces, first": by_pieces("first"),
    "pieces, always": by_pieces("always"),
    "words": by_words(),
    "normalised": by_normalised_special_tokens(),
}


def made(backend, template):
    return Pretrained("none", None, "here", (), Tokenizer(backend, template), {})


MODELS = {(name, template): made(one, template) for name, one in BACKENDS.items() for template in (TURNS, BUSY)}


def messages_of(*contents):
    return [{"role": ("user", "system")[n % 2], "content": content} for n, content in enumerate(contents)]


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("template", [TURNS, BUSY], ids=["turns", "busy"])
@given(contents=st.lists(HARMLESS, min_size=1, max_size=3))
def test_what_spells_no_special_token_is_read_as_ever(name, template, contents):
    model = MODELS[name, template]
    apart = any(token in "".join(contents) for token in [*SPECIAL, "<think>"])
    if not apart:
        assert conversation(model, messages_of(*contents), True, False) == conversation(
            model, messages_of(*contents), True
        )


@pytest.mark.parametrize("name", BACKENDS)
@given(contents=st.lists(TALK, min_size=1, max_size=3))
def test_only_the_template_writes_special_tokens(name, contents):
    """The definition: text between the template's own tokens is tokenized without special tokens in the vocabulary."""
    model, talk = MODELS[name, TURNS], messages_of(*contents)
    read = conversation(model, talk, True, False)
    assert read.text == conversation(model, talk, True).text
    written = [
        model.tokenizer.backend.token_to_id(token)
        for token in ["<s>", *["<|turn|>", "<|end|>"] * len(talk), "<|turn|>", "<think>"]
    ]
    unusual = {model.tokenizer.backend.token_to_id(token) for token in [*SPECIAL, "<think>"]}
    assert [token for token in read.ids if token in unusual] == written
    assert [token in unusual for token in read.ids] == [
        s or t == written[-1] for s, t in zip(read.special, read.ids, strict=True)
    ]
    ends = [end for _, end in read.spans]
    assert all(0 <= start <= end <= len(read.text) for start, end in read.spans)
    assert ends == sorted(ends)
    if name == "bytes":
        assert model.tokenizer.write(read.ids, skip_special_tokens=False) == read.text


@given(contents=st.lists(TALK, min_size=1, max_size=3))
def test_segments_of_bytes_are_tokenized_alone(contents):
    model, talk = MODELS["bytes", TURNS], messages_of(*contents)
    plain = tokenizers.Tokenizer.from_str(BACKENDS["bytes"].to_str().replace('"special":false', '"special":true', 1))
    plain.encode_special_tokens = True
    named = {token: BACKENDS["bytes"].token_to_id(token) for token in ["<s>", "<|turn|>", "<|end|>", "<think>"]}
    expected = [named["<s>"]]
    for message in talk:
        text = f"{message['role']}\n{message['content'].strip()}"
        expected += [named["<|turn|>"], *plain.encode(text).ids, named["<|end|>"], *plain.encode("\n").ids]
    expected += [named["<|turn|>"], *plain.encode("assistant\n").ids, named["<think>"], *plain.encode("\n").ids]
    assert list(conversation(model, talk, True, False).ids) == expected


@given(contents=st.lists(TALK.map(str.strip), min_size=1, max_size=3))
def test_as_transformers_reads_sanitized_messages(contents):
    """Its pieces are split at the spelling of special tokens, which changes merges; so a vocabulary without merges."""
    backend = by_bytes(merges=False)
    other = transformers.PreTrainedTokenizerFast(tokenizer_object=backend)
    other.chat_template = TURNS
    contents = [content.replace("\ue000", "").replace("aa", "a") for content in contents]
    wanted = other.apply_chat_template(
        messages_of(*contents), add_generation_prompt=True, sanitize_control_tokens=True, return_dict=False
    )
    assert list(conversation(made(backend, TURNS), messages_of(*contents), True, False).ids) == wanted


def test_parts_do_not_make_a_token_together():
    model = MODELS["bytes", BUSY]
    inside = BACKENDS["bytes"].token_to_id("<|end|>")
    for contents in (["<|en", "d|>"], ["<", "|end|>"], ["<|end|", ">"], ["a<|", "end|>b"]):
        assert list(conversation(model, messages_of(*contents), True).ids).count(inside) > 1
        assert list(conversation(model, messages_of(*contents), True, False).ids).count(inside) == 1


def test_a_role_makes_the_tokens_that_the_template_means():
    model = MODELS["bytes", BUSY]
    user = BACKENDS["bytes"].token_to_id("<|user|>")
    assert conversation(model, messages_of("<|user|>"), True, False).ids[:2] == (
        BACKENDS["bytes"].token_to_id("<s>"),
        user,
    )
    assert list(conversation(model, messages_of("<|user|>"), True, False).ids).count(user) == 1


def test_nested_contents_are_escaped_too():
    template = (
        "<s>{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{{ m.calls[0].name }}{% endfor %}"
    )
    talk = [{"role": "user", "content": [{"text": "<s>"}, {"text": "<|end|>"}], "calls": ({"name": "<|turn|>"},)}]
    read = conversation(made(BACKENDS["bytes"], template), talk, True, False)
    assert read.text == "<s><s><|end|><|turn|>"
    assert sum(read.special) == 1


def test_a_vocabulary_that_holds_a_special_token_as_a_word():
    backend = tokenizers.Tokenizer(models.WordLevel({"[UNK]": 0, "</s>": 1, "a": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["</s>", "[UNK]"])
    model = made(backend, "{% for m in messages %}{{ m.content }} </s> {% endfor %}")
    assert conversation(model, "a b", True, False).ids == (2, 0, 1)
    with pytest.raises(ArgumentError, match=r"`text` must be characters that are no special token, .*'</s>'"):
        conversation(model, "a </s> a", True, False)


def test_every_private_character_in_use():
    everything = "".join(map(chr, range(0xE000, 0xF8FE)))
    with pytest.raises(ArgumentError, match=r"`conversation` must leave three characters .* it leaves 2"):
        conversation(MODELS["bytes", TURNS], everything, True, False)
