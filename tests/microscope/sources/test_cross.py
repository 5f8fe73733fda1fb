"""Encoder-decoders: words aligned with their source, and with the time at which they are said."""

import itertools
import json

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from support.families import ENCODER_DECODERS
from support.observed import drawn, eager, largest_error, observed
from transformers.models.whisper import generation_whisper

from limelight import ArgumentError
from limelight.microscope import look
from limelight.microscope.sources.timing import _median, first_states, warp
from limelight.microscope.subjects import subject_of
from limelight.microscope.subjects.sound import existing_heads
from limelight.models.sound import recording

ENGLISH = "The bank of the river was covered with flowers."
PORTUGUESE = "A margem do rio estava coberta de flores."
ALIGNED = ["The", "bank", "the", "river", "was", "covered", "with", "flowers", "."]
SAID = " Ever tried, ever failed. No matter, try again. Fail again. Fail better."


@pytest.mark.parametrize("target", [None, PORTUGUESE])
def test_marian_aligns_words(translator, target):
    """One head alone follows the source, and it is found without a word about it in the checkpoint."""
    report = look(translator, ENGLISH, target=target)
    assert report.model.kind == "encoder-decoder"
    assert report.readings[0].text == PORTUGUESE
    assert report.cross.heads == ((1, 0),)
    rows = report.tables["alignment"]
    assert [row["source"] for row in rows] == ALIGNED
    assert " ".join(row["word"] for row in rows) == "A margem do rio estava coberta de flores ."
    assert rows[3]["uniform"] == pytest.approx(1 / 11, abs=1e-5)
    river = [row for row in report.tables["cross"] if (row["word"], row["layer"], row["head"]) == ("rio", 1, 0)]
    assert (river[0]["source"], river[0]["weight"]) == ("river", pytest.approx(rows[3]["weight"], abs=1e-5))
    assert [row["part"] for row in report.tables["source"]] == [*ENGLISH[:-1].split(), ".", "</s>"]
    assert report.tables["heads"] == report.tables["relations"] == []  # the decoder has no attention to itself
    assert any("1.0" in note for note in report.notes)
    assert json.loads(report.to_json())["model"]["kind"] == "encoder-decoder"
    assert report.source.tables["heads"][-1]["layer"] == 5  # the encoder's self-attention
    assert report.source.readings[0].text == ENGLISH
    assert look(translator, ENGLISH, target=PORTUGUESE, words=["rio"]).tables["path"][0]["word"] == "rio"


def test_the_weights_are_those_of_the_queries_that_predict(translator):
    report = look(translator, ENGLISH)
    subject = subject_of(translator)
    source, target = subject.read_source(ENGLISH), subject.read_target(PORTUGUESE)
    seen = observed(subject, torch.tensor([target.ids]), source=source.input)
    weights = seen["layers.1.cross"][0, 0]
    number = [row["word"] for row in report.tables["alignment"]].index("margem")
    first = report.readings[0].words[number].tokens
    bank = source.text.pieces.index("bank")
    expected = weights[[place - 1 for place in first], bank].mean()
    assert report.tables["alignment"][number]["weight"] == pytest.approx(float(expected), abs=1e-5)


def test_whisper_says_when_each_word_is_said(whisper, beckett):
    report = look(whisper, beckett)
    assert report.readings[0].text == SAID
    rows = report.tables["alignment"]
    times = {row["word"]: (row["start"], row["end"]) for row in rows}  # of a word said twice the last
    assert all(before["end"] == after["start"] for before, after in itertools.pairwise(rows))
    assert all(row["start"] <= row["end"] for row in rows)
    assert times["better"] == (pytest.approx(8.5, abs=0.15), pytest.approx(8.75, abs=0.15))
    assert rows[-1]["end"] <= 9.96  # the length of the sound
    sliced = report.tables["source"]
    assert (sliced[7]["start"], sliced[7]["end"]) == (0.7, 0.8)
    matter = next(row for row in rows if row["word"] == "matter")
    assert 3.6 < sliced[matter["source_index"]]["start"] < 4.3
    assert matter["uniform"] == pytest.approx(5 / 1500, rel=1e-3)
    assert report.tables["heads"]
    samples = recording(beckett)
    for sound in (beckett, samples, samples.numpy()):
        assert look(whisper, sound, target="Ever tried.").readings[0].text == "Ever tried."


def test_the_path_is_that_of_transformers():
    generator = np.random.default_rng(3)
    for rows, columns in ((1, 1), (1, 5), (4, 1), (9, 40)):
        cost = generator.normal(size=(rows, columns)).astype(np.float32)
        ours, theirs = warp(cost), generation_whisper._dynamic_time_warping(cost.astype(np.float64))
        np.testing.assert_array_equal(ours, theirs)
    scores = generator.normal(size=(2, 3, 20)).astype(np.float32)
    theirs = generation_whisper._median_filter(torch.from_numpy(scores), 7).numpy()
    np.testing.assert_array_equal(_median(scores), theirs)
    assert len(first_states(np.abs(generator.normal(size=(2, 3, 20))).astype(np.float32))) == 3


# --- Models of transformers ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reader():
    """A tokenizer of words, which ends a text with </s>."""
    words = ["<pad>", "<s>", "</s>", "<unk>", "the", "bank", "river", "a", "margem", "rio", "."]
    words += [f"w{number}" for number in range(49)]
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: n for n, word in enumerate(words)}, "<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", pair="$A $B </s>", special_tokens=[("</s>", 2)]
    )
    named = {"pad_token": "<pad>", "eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **named)


@pytest.mark.parametrize("name", ["bart", "t5", "m2m_100"])
def test_look_at_an_encoder_decoder_of_transformers(name, reader):
    model = ENCODER_DECODERS[name].build()
    report = look(model, "the bank.", target="a margem.", tokenizer=reader)
    tokens = [token.text for token in report.readings[0].tokens]
    assert tokens[1:] == ["a", "margem", "."]
    assert [row["part"] for row in report.tables["source"]] == ["the", "bank", ".", "</s>"]
    assert {row["layer"] for row in report.tables["cross"]} == {0, 1}
    encoder = torch.stack(eager(model.get_encoder(), {"input_ids": torch.tensor([[4, 5, 10, 2]])}))[:, 0]
    torch.testing.assert_close(torch.from_numpy(report.source.readings[0].shares), encoder, rtol=0, atol=1e-5)
    inputs = {
        "input_ids": torch.tensor([[4, 5, 10, 2]]),
        "decoder_input_ids": torch.tensor([[model.config.decoder_start_token_id, 7, 8, 10]]),
    }
    weights = torch.stack(eager(model, inputs, "cross_attentions"))[:, 0]
    torch.testing.assert_close(torch.from_numpy(report.cross.weights), weights, rtol=0, atol=1e-5)
    assert report.warnings == []
    unknown = look(model, "the shore.", target="a margem.", tokenizer=reader)
    assert unknown.warnings == ["1 of 4 tokens of the source are unknown (<unk>)."]
    for bad in ({"target": " "}, {"target": "a", "compare": "b"}):
        with pytest.raises(ArgumentError, match=r"`target` must hold at least one word|`compare` is for"):
            look(model, "the bank.", tokenizer=reader, **bad)
    with pytest.raises(ArgumentError, match="`text` must hold at least one word"):
        look(model, "", target="a", tokenizer=reader)
    if name == "bart":
        for source, target, argument in (("the " * 70, "a", "text"), ("the", "a " * 70, "target")):
            with pytest.raises(ArgumentError, match=f"`{argument}` must fit the 64 positions"):
                look(model, source, target=target, tokenizer=reader)


@pytest.mark.parametrize("name", ["bart", "t5"])
def test_our_own_models_say_the_same(name, reader, tmp_path):
    theirs = ENCODER_DECODERS[name].build()
    theirs.save_pretrained(tmp_path)
    reader.save_pretrained(tmp_path)
    ours = look(tmp_path, "the bank.", target="a margem.")
    other = look(theirs, "the bank.", target="a margem.", tokenizer=reader)
    assert [token.text for token in ours.readings[0].tokens] == [token.text for token in other.readings[0].tokens]
    np.testing.assert_allclose(ours.cross.weights, other.cross.weights, atol=1e-5)
    np.testing.assert_allclose(ours.readings[0].shares, other.readings[0].shares, atol=1e-5)
    np.testing.assert_allclose(ours.readings[0].path, other.readings[0].path, atol=1e-4)


def test_what_a_model_of_transformers_writes(reader, monkeypatch):
    monkeypatch.setattr("limelight.microscope.subjects.transformers.MAX_WRITTEN", 6)
    model = ENCODER_DECODERS["t5"].build()
    subject = subject_of(model, tokenizer=reader)
    written = subject.write(subject.read_source("the bank."))
    with torch.no_grad():
        ids = model.generate(torch.tensor([[4, 5, 10, 2]]), max_new_tokens=6, do_sample=False)[0].tolist()
    while len(ids) > 1 and ids[-1] in (0, 1, 2, 3):
        ids.pop()
    assert list(written.ids) == ids
    assert [written.text[start:end] for start, end in written.spans if end > start] == [
        token for token, special in zip(written.tokens, written.special, strict=True) if not special
    ]


def test_a_target_is_for_an_encoder_decoder(minilm):
    with pytest.raises(ArgumentError, match="`target` is for an encoder-decoder"):
        look(minilm, ENGLISH, target=PORTUGUESE)


@pytest.fixture(scope="module")
def small_whisper():
    config = transformers.WhisperConfig(
        vocab_size=60, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=32, decoder_ffn_dim=32, num_mel_bins=8, max_source_positions=20,
        max_target_positions=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.WhisperForConditionalGeneration(config).eval()


def test_the_weights_of_whisper_are_those_of_eager(small_whisper):
    subject = subject_of(small_whisper)
    assert (subject.hears, subject.limit, len(subject.cross_names)) == (True, 16, 2)
    sound, ids = torch.randn(1, 8, 40, generator=torch.Generator().manual_seed(0)), drawn(1, 9)
    seen = observed(subject, ids, source=sound)
    small_whisper.set_attn_implementation("eager")
    inputs = {"input_features": sound, "decoder_input_ids": ids}
    for names, kind in (
        (subject.encoder_names, "encoder_attentions"),
        (subject.attention_names, "decoder_attentions"),
        (subject.cross_names, "cross_attentions"),
    ):
        assert largest_error(seen, names, eager(small_whisper, inputs, kind)) < 1e-5


def test_sounds_that_are_refused(whisper, tmp_path):
    for bad, why in (
        (tmp_path / "none.wav", "must name a WAV file"),
        (torch.zeros(31 * 16_000), "at most 30 seconds"),
        (torch.zeros(0), "at most 30 seconds"),
        (3, "must name a WAV file"),
    ):
        with pytest.raises(ArgumentError, match=why):
            look(whisper, bad)


def test_names_in_a_checkpoint_that_are_no_heads(whisper):
    assert existing_heads([[0, 1], [3, 5]], 4, 6) == ((0, 1), (3, 5))
    for bad in (None, 3, [], [[4, 0]], [[0, -1]], [[0, True]], [[0]], "ab", [{"a": 1}]):
        assert existing_heads(bad, 4, 6) == ()
    assert subject_of(whisper).alignment_heads[0] == (1, 0)
