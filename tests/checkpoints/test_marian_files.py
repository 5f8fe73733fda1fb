"""Marian's files: read as they were written; anything damaged is an error and nothing worse."""

import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from limelight.formats.errors import CheckpointError
from limelight.formats.marian_files import FLOAT32, INT8, SETTINGS, MarianFile
from limelight.models.families import MARIAN

YAML = 'type: transformer\ndec-cell: ssru\nlist:\n  - 3\ntransformer-heads: 2\nempty: ""\n'


def file_of(entries, *, version=1, gap=3):
    """``entries``: name, (kind, shape, data)."""
    heads = b"".join(
        struct.pack("<4Q", len(name) + 1, kind, len(shape), len(data)) for name, (kind, shape, data) in entries.items()
    )
    names = b"".join(name.encode() + b"\0" for name in entries)
    shapes = b"".join(struct.pack(f"<{len(shape)}i", *shape) for _, shape, _ in entries.values())
    data = b"".join(data for _, _, data in entries.values())
    return (
        struct.pack("<2Q", version, len(entries)) + heads + names + shapes + struct.pack("<Q", gap) + bytes(gap) + data
    )


FLOATS = torch.arange(6.0).reshape(2, 3)
BYTES = torch.arange(-6, 6, dtype=torch.int8)
ENTRIES = {
    "a": (FLOAT32, (2, 3), FLOATS.numpy().tobytes() + bytes(232)),  # padded, as Marian does it
    "W": (INT8, (3, 4), BYTES.numpy().tobytes() + struct.pack("<f", 2.0) + bytes(240)),
    "Wemb": (INT8, (3, 4), BYTES.numpy().tobytes() + struct.pack("<f", 4.0)),
    SETTINGS: (0x101, (len(YAML) + 1,), YAML.encode() + b"\0"),
}


def written(folder, data):
    (folder / "model.bin").write_bytes(data)
    return folder / "model.bin"


def test_tensors_and_settings(tmp_path):
    file = MarianFile(written(tmp_path, file_of(ENTRIES)))
    assert file.keys() == ["a", "W", "Wemb"]
    assert file.shape("W") == (3, 4)
    assert torch.equal(file.read("a"), FLOATS)
    assert torch.equal(file.read("W"), BYTES.float().reshape(4, 3).T / 2)
    assert torch.equal(file.read("Wemb"), BYTES.float().reshape(3, 4) / 4)
    assert file.settings["transformer-heads"] == "2"
    assert file.settings["empty"] == ""


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is empty"),
        (b"\0" * 8, "promises 16 more bytes"),
        (file_of(ENTRIES, version=2), "version 2 of Marian's format"),
        (struct.pack("<2Q", 1, 2**60), "more than it can hold"),
        (file_of(ENTRIES)[:-1], "more bytes"),
        (file_of({}), "lacks special:model.yml"),
        (file_of(ENTRIES | {"a": (FLOAT32, (1,) * 9, b"")}), "claims 9 dimensions"),
        (file_of(ENTRIES | {"a": (FLOAT32, (-2,), b"")}), r"claims the shape \(-2,\)"),
    ],
)
def test_hostile_files(tmp_path, data, message):
    with pytest.raises(CheckpointError, match=message):
        MarianFile(written(tmp_path, data))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ((FLOAT32, (2, 3), bytes(20)), "has 20 bytes, not 24"),
        ((FLOAT32, (2**31 - 1, 2**31 - 1), bytes(20)), "has 20 bytes, not"),
        ((INT8, (2, 3), bytes(9)), "has 9 bytes, not 10"),
        ((0x202, (2, 3), bytes(90)), "type 0x202"),
    ],
)
def test_tensors_that_do_not_fit(tmp_path, entry, message):
    file = MarianFile(written(tmp_path, file_of(ENTRIES | {"a": entry})))
    with pytest.raises(CheckpointError, match=message):
        file.read("a")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("dec-cell: ssru", "dec-cell = 'gru', and Limelight reads there 'ssru'"),
        ("type: transformer", "type = 's2s'"),
        ("transformer-heads: 2", "encoder_layers = None"),
    ],
)
def test_models_of_another_kind(tmp_path, change, message):
    other = YAML.replace("ssru", "gru") if change.startswith("dec") else YAML
    other = YAML.replace("transformer\n", "s2s\n") if change.startswith("type") else other
    entry = (0x101, (len(other),), other.encode())
    file = MarianFile(written(tmp_path, file_of(ENTRIES | {SETTINGS: entry})))
    with pytest.raises(CheckpointError, match=message):
        MARIAN.marian.configure(file)


@settings(max_examples=100)
@given(data=st.data())
def test_a_damaged_byte_is_an_error_or_changes_values(tmp_path_factory, data):
    whole = bytearray(file_of(ENTRIES))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, 260))] = data.draw(st.sampled_from([0, 1, 9, 127, 128, 255]))
    path = written(tmp_path_factory.mktemp("broken"), whole[: data.draw(st.integers(1, len(whole)))])
    try:
        file = MarianFile(path)
        total = sum(file.read(name).numel() for name in file.keys())  # noqa: SIM118
    except CheckpointError as error:
        assert len(str(error)) > 30  # noqa: PT017
    else:
        assert total < 1000


def test_tensors_without_elements(tmp_path):
    for kind, data in ((FLOAT32, b""), (INT8, struct.pack("<f", 1.0))):
        file = MarianFile(written(tmp_path, file_of(ENTRIES | {"empty": (kind, (0, 3), data)})))
        assert file.read("empty").shape == (0, 3)
    with pytest.raises(CheckpointError, match="claims the shape"):
        MarianFile(written(tmp_path, file_of(ENTRIES | {"empty": (FLOAT32, (0, *[2**31 - 1] * 3), b"")})))


@pytest.mark.parametrize("multiplier", [0.0, -1.0, float("nan"), float("inf")])
def test_a_multiplier_that_is_none(tmp_path, multiplier):
    data = BYTES.numpy().tobytes() + struct.pack("<f", multiplier)
    file = MarianFile(written(tmp_path, file_of(ENTRIES | {"W": (INT8, (3, 4), data)})))
    with pytest.raises(CheckpointError, match="W was multiplied with"):
        file.read("W")


def test_two_tensors_of_one_name(tmp_path):
    data = file_of(ENTRIES)
    with pytest.raises(CheckpointError, match="the same name"):
        MarianFile(written(tmp_path, data.replace(b"Wemb\0", b"W\0\0\0\0", 1)))
