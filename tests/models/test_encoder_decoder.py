"""The shape with an encoder: sources, layouts, names, targets."""

import dataclasses

import pytest
import torch
from support.agreement import assert_equal
from support.peers import PAIRS, made
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

import limelight
from limelight import ArgumentError, Packed, Padded
from limelight.checkpoints.load import load
from limelight.models import EncoderDecoder
from limelight.text import Tokenizer

SOURCE = torch.arange(10, 24).reshape(2, 7)
IDS = torch.arange(20, 30).reshape(2, 5)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bart")
    made("bart", PAIRS).save_pretrained(folder)
    backend = Backend(models.WordLevel({word: number for number, word in enumerate("abcdefghijkl")}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return dataclasses.replace(load(folder, dtype=torch.float64), tokenizer_or_why=Tokenizer(backend))


def test_a_source_read_once(model):
    network = model.network
    whole = network(IDS, source=SOURCE, hidden=True)
    encoded = network.encode(SOURCE)
    assert encoded.hidden is None
    assert len(whole.encoded.hidden) == 3
    assert torch.equal(encoded.states, whole.encoded.states)
    assert torch.equal(network(IDS, source=encoded).logits, whole.logits)


def test_what_pads_a_source_is_not_seen(model):
    network, lengths = model.network, torch.tensor([4, 7])
    padded = SOURCE.where(torch.arange(7) < lengths[:, None], 3)
    together = network(IDS, source=padded, source_layout=Padded(lengths))
    alone = network(IDS[:1], source=SOURCE[:1, :4])
    assert_equal(together.logits[:1], alone.logits)
    other = network(IDS, source=padded.where(padded != 3, 9), source_layout=Padded(lengths))
    assert torch.equal(other.logits, together.logits)


def test_packed_pairs_are_separate_pairs(model):
    network, sources, targets = model.network, (4, 3), (2, 3)
    packed = network(
        IDS[:1], source=SOURCE[:1], source_layout=Packed(sources), layout=Packed(targets)
    ).logits.split(targets, dim=1)  # fmt: skip
    pairs = zip(IDS[:1].split(targets, dim=1), SOURCE[:1].split(sources, dim=1), packed, strict=True)
    for written, read, logits in pairs:
        assert_equal(logits, network(written, source=read).logits)
    with pytest.raises(ArgumentError, match="`layout` must be Packed for source and tokens, or of one document a row"):
        network(IDS, source=SOURCE, layout=Packed(targets))


def test_every_attention_is_seen_by_its_name(model):
    network = model.network
    assert isinstance(network, EncoderDecoder)
    with limelight.watching(limelight.Observe(entropy=True)) as seen:
        network(IDS, source=SOURCE)
    names = (*network.encoder.attention_names, *network.attention_names, *network.cross_names)
    assert set(seen) == set(names)
    assert "encoder.layers.1.attention" in names
    shapes = [seen.calls(name)[0].entropy.shape for name in ("encoder.layers.0.attention", "layers.2.cross")]
    assert shapes == [(2, 4, 7), (2, 2, 5)]


def test_a_target_begins_with_its_mark(model):
    assert model.special_token_ids["decoder_start_token_id"] == 2
    first = model("d e f")
    assert first.logits.shape == (1, 1, 50)
    whole = model(["d e f", "g h"], target=["h i", "j k l"])
    source, target = torch.tensor([[3, 4, 5], [6, 7, 0]]), torch.tensor([[2, 7, 8, 0], [2, 9, 10, 11]])
    layouts = {"source_layout": Padded(torch.tensor([3, 2])), "layout": Padded(torch.tensor([3, 4]))}
    plain = model.network(target, source=source, **layouts)
    assert torch.equal(whole.logits, plain.logits)
    assert_equal(whole.logits[:1, :1], first.logits)
    given = model(source, layout=layouts["source_layout"], target=target, target_layout=layouts["layout"])
    assert torch.equal(given.logits, plain.logits)


def test_what_cannot_be_meant(model, tmp_path):
    with pytest.raises(
        ArgumentError, match="`source` must have a row for each row of `tokens`, but `source` has 2 rows, `tokens` 1"
    ):
        model.network(IDS[:1], source=SOURCE)
    encoded = model.network.encode(SOURCE)
    with pytest.raises(ArgumentError, match="`source_layout` belongs to a source that is not read yet"):
        model.network(IDS, source=encoded, source_layout=Padded(3))
    with pytest.raises(ArgumentError, match="`target_layout` belongs to token ids"):
        model("a", target="b", target_layout=Padded(1))
    with pytest.raises(ArgumentError, match="`target` must be padded at the right"):
        model("a", target=model.read(["a", "b c"], side="left"))
    with pytest.raises(ArgumentError, match="decoder_start_token_id"):
        dataclasses.replace(model, special_token_ids={})("a")
    with pytest.raises(ArgumentError, match="`config` must have an `encoder`"):
        EncoderDecoder(dataclasses.replace(model.config, encoder=None))
    made("gpt2").save_pretrained(tmp_path)
    with pytest.raises(ArgumentError, match="`target` is for a model with an encoder and a decoder"):
        load(tmp_path)(IDS, target=IDS)


def test_what_is_no_sound(tmp_path):
    made("whisper", PAIRS).save_pretrained(tmp_path)
    network = load(tmp_path).network
    for sound in (torch.zeros(2, 7, 20), torch.zeros(6, 20), SOURCE):
        with pytest.raises(ArgumentError, match=r"`source` must be the \(B, 6, frames\) spectrum of a sound"):
            network(IDS, source=sound)
    with pytest.raises(ArgumentError, match="10 positions"):
        network(IDS, source=torch.zeros(2, 6, 21))
    assert network(IDS, source=torch.zeros(2, 6, 7)).encoded.states.shape == (2, 4, 32)


def test_what_is_no_picture(tmp_path):
    made("vit-classes").save_pretrained(tmp_path)
    model = load(tmp_path)
    for picture in (torch.zeros(1, 2, 8, 8), torch.zeros(2, 8, 12), SOURCE):
        with pytest.raises(ArgumentError, match=r"`tokens` must be \(B, 2, 8, 12\) pictures"):
            model(picture)
    assert model(torch.zeros(3, 2, 8, 12)).logits.shape == (3, 3)
    assert model.network.head.labels == ("LABEL_0", "LABEL_1", "LABEL_2")


@pytest.mark.parametrize("name", PAIRS)
def test_gradients_reach_every_parameter(tmp_path, name):
    made(name).save_pretrained(tmp_path)
    network = load(tmp_path).network.requires_grad_()
    source = torch.randn(2, 6, 20) if name.startswith("whisper") else SOURCE
    with torch.enable_grad():
        output = network(IDS, source=source)
        (output.states if output.logits is None else output.logits).square().mean().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
