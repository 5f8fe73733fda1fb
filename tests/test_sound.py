"""Sound against the feature extractor of transformers, and files that are none."""

import wave

import numpy as np
import pytest
import torch
import transformers

from limelight import ArgumentError
from limelight.models.sound import recording, spectrum


def written(path, samples, *, rate=16_000, width=2, channels=1):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return path


@pytest.mark.parametrize("bands", [80, 128])
@pytest.mark.parametrize("length", [100, 16_001, 32_000])
def test_the_spectrum_is_that_of_transformers(bands, length):
    sound = 0.3 * np.random.default_rng(length).standard_normal(length).astype(np.float32)
    extractor = transformers.WhisperFeatureExtractor(feature_size=bands, chunk_length=2)
    theirs = extractor(sound, sampling_rate=16_000, return_tensors="pt").input_features
    ours = spectrum(torch.from_numpy(sound), bands=bands, seconds=2)
    assert ours.shape == theirs.shape == (1, bands, 200)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_sounds_of_a_batch_are_separate():
    sounds = torch.randn(3, 5000, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1.0], [0.01], [0.1]])
    together = spectrum(sounds, seconds=1)
    for row, sound in zip(together, sounds, strict=True):
        torch.testing.assert_close(row, spectrum(sound, seconds=1)[0], rtol=1e-5, atol=1e-5)
    assert spectrum(sounds, seconds=None).shape == (3, 80, 31)
    assert spectrum(sounds.double(), seconds=None).dtype == torch.float64


def test_a_sound_that_is_too_long_is_not_cut_without_a_word():
    with pytest.raises(ArgumentError, match=r"`samples` must be no longer than 2 seconds, but it is 2.50 seconds long"):
        spectrum(torch.zeros(40_000), seconds=2)
    parts = torch.zeros(40_000).split(32_000, dim=-1)
    assert [spectrum(part, seconds=2).shape for part in parts] == [(1, 80, 200)] * 2
    assert spectrum(torch.zeros(40_000), seconds=None).shape == (1, 80, 250)


def test_silence_is_finite():
    assert spectrum(torch.zeros(0), seconds=1).isfinite().all()


@pytest.mark.parametrize("channels", [1, 2])
def test_a_recording(tmp_path, channels):
    samples = np.array([[0, 0], [16384, -16384], [-32768, -32768]], dtype=np.int16)[:, :channels]
    got = recording(written(tmp_path / "a.wav", samples, channels=channels))
    assert got.tolist() == ([0.0, 0.5, -1.0] if channels == 1 else [0.0, 0.0, -1.0])


def test_what_is_no_sound(tmp_path):
    (tmp_path / "text.wav").write_text("none")
    for name in ("nowhere.wav", "text.wav"):
        with pytest.raises(ArgumentError, match=rf"`path` must name a WAV file, but .*{name} is none"):
            recording(tmp_path / name)
    fast = written(tmp_path / "fast.wav", np.zeros(4, dtype=np.int16), rate=44_100)
    with pytest.raises(ArgumentError, match=r"16 bits, 44,100 a second.*ffmpeg"):
        recording(fast)
    with pytest.raises(ArgumentError, match="8 bits"):
        recording(written(tmp_path / "short.wav", np.zeros(4, dtype=np.uint8), width=1))
    for samples in (torch.zeros(1, 2, 3), torch.zeros(3, dtype=torch.int64), [0.0]):
        with pytest.raises(ArgumentError, match="`samples` must be"):
            spectrum(samples)
    for how in ({"bands": 0}, {"seconds": 0}):
        with pytest.raises(ArgumentError, match=f"`{next(iter(how))}` must be at least 1"):
            spectrum(torch.zeros(10), **how)
