"""What the pages of translations, sounds and pictures are given: the weights of the report, in any number of bytes."""

import base64
import dataclasses
import json
import re
import types
import zlib

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from support.families import IMAGES
from support.made_up import OTHER, SENTENCE
from support.made_up_sources import mock_picture, mock_speech, mock_translation, without_words

from limelight.microscope import look, make_page
from limelight.microscope.page.numbers import pack_rows
from limelight.microscope.page.pack_sources import PIXELS, pack_cross, pack_pictures
from limelight.microscope.reading.pictures import Picture, cells_of, joined_cells
from limelight.microscope.subjects.patches import Patches


def unpacked(packed):
    """As the page unpacks numbers."""
    raw = zlib.decompress(base64.b64decode(packed["data"]))
    codes = np.frombuffer(raw, {8: "<u1", 16: "<u2"}[packed["bits"]]).reshape(packed["shape"])
    part = codes / (2.0 ** packed["bits"] - 1)
    return packed["low"] + (packed["high"] - packed["low"]) * (part**2 if packed["root"] else part)


def weights_in(data):
    weights = data["weights"]
    return unpacked(weights["top"])[..., None] * (unpacked(weights["codes"]) / weights["levels"]) ** 2


def data_of(page):
    return json.loads(re.search(r'id="limelight-data">(.*?)</script>', page, re.DOTALL).group(1))


@pytest.mark.parametrize(("levels", "error"), [(65535, 1e-4), (255, 5e-3), (15, 0.08)])
def test_rows_are_kept_relative_to_their_largest_weight(levels, error):
    random = np.random.default_rng(0)
    weights = (random.random((3, 4, 50)) ** 8 / 50 ** random.integers(0, 3, (3, 4, 1))).astype(np.float32)
    weights[0, 0] = 0.0
    packed = {"weights": {"levels": levels, **pack_rows(weights, levels)}}
    assert packed["weights"]["codes"]["bits"] == (16 if levels > 255 else 8)
    largest = weights.max(-1, keepdims=True)
    assert np.all(np.abs(weights_in(packed) - weights) <= error * largest + 2e-5)


@pytest.mark.parametrize("report", [mock_translation(SENTENCE, OTHER), mock_speech(SENTENCE)])
def test_the_page_has_the_weights_of_the_report(report):
    data = data_of(make_page(report))
    assert (data["format"], data["version"]) == ("limelight.page", 1)
    cross = data["cross"]
    assert cross["kept"] == list(range(6))
    found = weights_in(cross).reshape(report.cross.weights.shape)
    np.testing.assert_allclose(found, report.cross.weights, atol=2e-5)
    rows = report.tables["alignment"]
    if cross["text"]:
        assert cross["alignment"] == [[row["source_index"], row["weight"], row["uniform"]] for row in rows]
        assert cross["text"]["units"]["text"] == [row["part"] for row in report.tables["source"]]
        assert cross["encoder"]["readings"][0]["text"] == SENTENCE
    else:
        assert cross["sound"]["times"] == [[row["start"], row["end"]] for row in rows]
        spectrum = report.cross.source.input[0, :, :400].numpy()
        scaled = (spectrum - spectrum.min()) / np.ptp(spectrum)
        np.testing.assert_allclose(unpacked(cross["sound"]["spectrum"]), scaled, atol=0.5 / 255 + 1e-6)


def test_a_page_of_a_long_sound_fits():
    """By fewer levels, then states joined, at last the heads that align alone."""
    report = mock_speech(SENTENCE * 4, 10.0, layers=4, heads=4)
    sizes, whole = [], pack_cross(report, 20_000_000)["cross"]
    assert (whole["weights"]["levels"], whole["sound"]["join"], len(whole["kept"])) == (65535, 1, 16)
    for limit in (500_000, 250_000, 150_000, 120_000, 50_000):
        cross = pack_cross(report, limit)["cross"]
        sizes.append((len(cross["kept"]), cross["weights"]["levels"], -cross["sound"]["join"]))
        width = -(-report.cross.source.length // cross["sound"]["join"])
        assert cross["weights"]["codes"]["shape"][-1] == width
        if limit > 50_000:
            assert len(json.dumps(cross)) <= limit
    assert sizes == sorted(sizes, reverse=True)
    assert cross["kept"] == cross["aligning"] == [4]
    joined = np.add.reduceat(report.cross.weights[1, 0], np.arange(0, 500, cross["sound"]["join"]), axis=-1)
    assert np.all(np.abs(weights_in(cross)[0] - joined) <= 0.16 * joined.max(-1, keepdims=True))
    assert len(make_page(report, 600_000).encode()) <= 600_000


def test_the_largest_pictures_fit():
    random = np.random.default_rng(0)
    weights = random.random((3, 4, 401, 401)).astype(np.float32)
    pixels = random.integers(0, 256, (1200, 800, 3)).astype(np.uint8)
    picture = Picture(pixels, 20, 20, 1, 1, weights / weights.sum(-1, keepdims=True))
    (fine,) = pack_pictures([picture], 30_000_000)["pictures"]
    assert (fine["width"], fine["height"]) == (400, 600)
    assert fine["width"] * fine["height"] <= PIXELS
    np.testing.assert_allclose(
        unpacked(fine["pixels"]), pixels.reshape(600, 2, 400, 2, 3).mean((1, 3)).round(), atol=1e-6
    )
    (small,) = pack_pictures([picture], 1_000_000)["pictures"]
    assert small["join"] > 1
    side = -(-20 // small["join"])
    assert small["weights"]["codes"]["shape"] == [3, 4, 1 + side**2, 1 + side**2]
    assert weights_in(small).sum(-1).mean() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(("rows", "columns", "join"), [(4, 4, 2), (5, 3, 2), (3, 7, 4)])
def test_patches_are_joined_into_cells(rows, columns, join):
    """Against four loops: sums over keys, means over queries."""
    before = 2
    length = before + rows * columns
    weights = torch.rand(3, length, length, generator=torch.Generator().manual_seed(0))
    across = -(-columns // join)
    part = [*range(before)]
    part += [before + row // join * across + column // join for row in range(rows) for column in range(columns)]
    cells = cells_of(before, rows, columns, join)
    assert cells.tolist() == part
    count = max(part) + 1
    expected = torch.zeros(3, count, count)
    for query in range(length):
        for key in range(length):
            expected[:, part[query], part[key]] += weights[:, query, key] / part.count(part[query])
    torch.testing.assert_close(joined_cells(weights, cells), expected)
    picture = Picture(np.zeros((8, 8, 3), np.uint8), rows, columns, before, 1, weights[None].numpy())
    np.testing.assert_allclose(picture.coarser(join).weights[0], expected.numpy(), rtol=1e-5)
    assert picture.coarser(join).join == join


def test_the_pixels_are_those_that_the_model_reads():
    numbers = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    shown = (255 * numbers[0].permute(1, 2, 0)).round().to(torch.uint8).numpy()
    plain = Patches(3, 8, 8, 4)
    np.testing.assert_array_equal(plain.pixels(numbers), shown)
    named = dataclasses.replace(plain, mean=(0.5, 0.4, 0.3), deviation=(0.2, 0.3, 0.4))
    mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in (named.mean, named.deviation))
    assert np.abs(named.pixels((numbers - mean) / deviation).astype(int) - shown).max() <= 1
    stretched = plain.pixels(numbers * 8 - 3)
    assert (stretched.min(), stretched.max()) == (0, 255)
    assert Patches(1, 8, 8, 4).pixels(numbers[:, :1]).shape == (8, 8, 3)
    assert plain.pixels(torch.full((1, 3, 8, 8), torch.nan)).max() == 0


def test_a_processor_says_how_pixels_were_normalised():
    model = IMAGES["vit"].build()
    settings = {"size": {"height": 16, "width": 16}, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.2, 0.2]}
    processor = transformers.ViTImageProcessorPil(**settings)
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    report = look(model, picture, processor=processor)
    assert np.abs(report.pictures[0].pixels.astype(int) - picture).max() <= 1
    np.testing.assert_array_equal(report.pictures[0].weights, report.readings[0].shares)
    assert data_of(make_page(report))["pictures"][0]["rows"] == 4


def test_whisper_of_transformers_has_a_page(tmp_path):
    config = transformers.WhisperConfig(
        vocab_size=60, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=32, decoder_ffn_dim=32, num_mel_bins=8, max_source_positions=50,
        max_target_positions=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.WhisperForConditionalGeneration(config).eval()
    words = ["<pad>", "<s>", "</s>", "<unk>", "ever", "tried", *(f"w{number}" for number in range(54))]
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: n for n, word in enumerate(words)}, "<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    reader = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", bos_token="<s>", unk_token="<unk>"
    )
    extractor = transformers.WhisperFeatureExtractor(feature_size=8, chunk_length=1)
    processor = types.SimpleNamespace(tokenizer=reader, feature_extractor=extractor)
    samples = torch.randn(9600, generator=torch.Generator().manual_seed(0)) / 10
    report = look(model, samples, target="ever tried", processor=processor)
    cross = data_of(make_page(report))["cross"]
    assert (cross["states"], cross["sound"]["length"], len(cross["sound"]["times"])) == (50, 30, 2)
    np.testing.assert_allclose(weights_in(cross).reshape(report.cross.weights.shape), report.cross.weights, atol=2e-5)
    assert cross["sound"]["spectrum"]["shape"] == [8, 60]
    (encoder,) = cross["encoder"]["readings"]
    assert (len(encoder["tokens"]["text"]), encoder["keys"], encoder["map"]["block"]) == (30, 50, 1)
    assert report.to_dict()["encoder"]["tables"]["tokens"][29]["token"] == "0.58 s"


def test_titles_and_reports_without_words():
    assert "<title>A picture · made-up · Limelight</title>" in make_page(mock_picture())
    report = mock_translation("a", "...")
    assert data_of(make_page(report))["cross"]["alignment"]
    none = without_words(report)
    assert none.tables["alignment"] == []
    assert data_of(make_page(none))["cross"]["aligning"] == []
