"""Encoders of pictures: patches as tokens."""

import json
import sys

import numpy as np
import pytest
import torch
from support.families import IMAGES
from support.observed import eager, largest_error

import limelight
from limelight import ArgumentError, Observe
from limelight.cli import main
from limelight.microscope import look, make_page
from limelight.microscope.subjects import subject_of


@pytest.mark.parametrize(("name", "before"), [("vit", 1), ("dinov2", 1), ("clip vision", 1), ("siglip vision", 0)])
def test_weights_of_patches_are_those_of_eager(name, before):
    model = IMAGES[name].build()
    picture = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    subject = subject_of(model)
    assert (subject.kind, subject.layers, subject.grid) == ("encoder", 2, (4, 4, 4))
    with limelight.watching(Observe(rows=range(16 + before))) as seen:
        run = subject.run(picture, hidden=True)
    assert [states.shape[1] for states in run.hidden] == [16 + before] * 3
    weights = {layer: seen[layer].rows for layer in subject.attention_names}
    assert largest_error(weights, subject.attention_names, eager(model, {"pixel_values": picture})) < 1e-5
    report = look(model, picture[0], words=["r2c3"])
    tokens = report.tables["tokens"]
    assert [row["token"] for row in tokens if not row["special"]][:6] == [
        "r0c0",
        "r0c1",
        "r0c2",
        "r0c3",
        "r1c0",
        "r1c1",
    ]
    assert sum(row["special"] for row in tokens) == before
    assert {row["word"] for row in report.tables["relations"]} == {"r2c3"}
    assert any("r0c0 to r3c3" in note for note in report.notes)
    assert make_page(report)


def test_a_picture_through_its_processor():
    class Processor:
        def __call__(self, images, return_tensors):
            assert return_tensors == "pt"
            return {"pixel_values": torch.from_numpy(images).float().permute(2, 0, 1)[None] / 255}

    picture = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)
    model = IMAGES["vit"].build()
    assert look(model, picture, processor=Processor()).readings[0].length == 17
    with pytest.raises(ArgumentError, match=r"`model` must read text, but .* reads pictures"):
        limelight.heads((model, Processor()), "A text. " * 20)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_pictures_of_any_mode_are_read_in_colour(mode):
    Image = pytest.importorskip("PIL.Image", reason="pictures are read by Pillow")

    class Processor:
        def __call__(self, images, return_tensors):
            return {"pixel_values": torch.tensor(np.asarray(images)).float().permute(2, 0, 1)[None] / 255}

    picture = Image.new("RGB", (16, 16), (255, 255, 255)).convert(mode)
    assert look(IMAGES["vit"].build(), picture, processor=Processor()).readings[0].length == 17


def test_a_file_and_a_folder(tmp_path, monkeypatch, capsys):
    """As the command line takes them."""
    Image = pytest.importorskip("PIL.Image", reason="pictures are read by Pillow")
    IMAGES["vit"].build().save_pretrained(tmp_path / "model")
    monkeypatch.setattr("sys.argv", ["limelight", "look", "--model", str(tmp_path / "model"), "--json", "--file"])
    settings = {"image_processor_type": "ViTImageProcessorPil", "size": {"height": 16, "width": 16}}
    (tmp_path / "model" / "preprocessor_config.json").write_text(json.dumps(settings))
    Image.new("RGB", (40, 30), (200, 10, 10)).save(tmp_path / "red.png")
    report = look(tmp_path / "model", tmp_path / "red.png")
    assert report.readings[0].length == 17
    sys.argv.append(str(tmp_path / "red.png"))
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    assert json.loads(capsys.readouterr().out)["tables"]["tokens"][1]["token"] == "r0c0"
    (tmp_path / "red.png").write_bytes(b"no picture")
    for bad in (tmp_path / "red.png", "a text"):
        with pytest.raises(ArgumentError, match="`text` must name a picture file"):
            look(tmp_path / "model", bad)


def test_our_own_model_of_pictures(tmp_path):
    theirs = IMAGES["vit"].build()
    theirs.save_pretrained(tmp_path)
    picture = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(0))
    ours, other = look(limelight.load(tmp_path), picture), look(theirs, picture)
    np.testing.assert_allclose(ours.readings[0].shares, other.readings[0].shares, atol=1e-5)
    assert [row["token"] for row in ours.tables["tokens"]] == [row["token"] for row in other.tables["tokens"]]
    with pytest.raises(ArgumentError, match="where there is no processor"):
        look(limelight.load(tmp_path), "a text")


def test_what_is_no_picture():
    model = IMAGES["vit"].build()
    for bad in ("a text", torch.zeros(2, 3, 16, 16), torch.zeros(3, 16, 16, dtype=torch.int64), torch.zeros(1, 16, 16)):
        with pytest.raises(ArgumentError, match="`text` must be"):
            look(model, bad)
    with pytest.raises(ArgumentError, match=r"`model` must .*SwinModel"):
        subject_of(IMAGES["swin"].build())
