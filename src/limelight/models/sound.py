"""Sound as input: the samples of a recording, and the log-mel spectrum that Whisper reads."""

from __future__ import annotations

import math
import os
import wave
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from ..tensors.shapes import describe, whole_number, wrong

RATE = 16_000  # samples per second
FRAME, STEP = 400, 160  # samples: 25 ms, every 10 ms
LOUDNESS = 8.0  # powers of ten below the loudest that are kept


def recording(path: str | os.PathLike[str]) -> Tensor:
    """The samples ``(n,)`` of a WAV file, between -1 and 1; several channels are averaged.

    Raises:
        ArgumentError: no such file, no 16-bit PCM, another rate than 16,000 samples per second.
    """
    try:
        with wave.open(str(Path(path).expanduser()), "rb") as file:
            rate, width, channels = file.getframerate(), file.getsampwidth(), file.getnchannels()
            data = file.readframes(file.getnframes())
    except (OSError, EOFError, wave.Error) as error:
        raise wrong("path", "must name a WAV file", f"{path} is none ({error})", "Convert the sound to WAV.") from error
    if rate != RATE or width != 2:
        raise wrong(
            "path",
            f"must name a WAV file of 16-bit samples, {RATE:,} a second",
            f"{path} has {8 * width} bits, {rate:,} a second",
            f"Convert it: ffmpeg -i {path} -ar {RATE} -acodec pcm_s16le converted.wav",
        )
    samples = (
        torch.frombuffer(bytearray(data), dtype=torch.int16)
        if data
        else torch.empty(0, dtype=torch.int16, device="cpu")
    )
    return samples.view(-1, channels).float().mean(-1) / 2**15


def spectrum(samples: Tensor, *, bands: int = 80, seconds: int | None = 30) -> Tensor:
    """The logarithmic mel spectrum ``(B, bands, frames)`` of sounds ``(B, n)`` or one sound ``(n,)``.

    Power of 25 ms under a Hann window, every 10 ms, summed in bands of equal pitch (Slaney's scale and area), as
    ``log10`` bent up to 8 below the loudest, then ``(x + 4) / 4``: what Whisper was trained on (arXiv:2212.04356).

    Args:
        samples: 16,000 a second, between -1 and 1.
        bands: number of mel bands.
        seconds: length that every sound is padded to with silence; ``None`` leaves it. Whisper reads 30 seconds.

    Raises:
        ArgumentError: samples of another shape, or longer than ``seconds``.
    """
    if not isinstance(samples, Tensor) or samples.dim() not in (1, 2) or not samples.is_floating_point():
        raise wrong("samples", "must be an (n,) or (B, n) float tensor", f"it is {describe(samples)}", "Use recording.")
    samples = samples if samples.dim() == 2 else samples[None]
    if seconds is not None:
        wanted = whole_number("seconds", seconds, at_least=1) * RATE
        if samples.shape[1] > wanted:
            rule, got = f"must be no longer than {seconds} seconds", f"it is {samples.shape[1] / RATE:.2f} seconds long"
            way_out = f"Split it into parts: samples.split({wanted}, dim=-1). Only `seconds=None` takes any length."
            raise wrong("samples", rule, got, way_out)
        samples = torch.nn.functional.pad(samples, (0, wanted - samples.shape[1]))
    samples = samples.to(torch.promote_types(samples.dtype, torch.float32))
    window = torch.hann_window(FRAME, dtype=samples.dtype, device=samples.device)
    waves = torch.stft(samples, FRAME, STEP, window=window, return_complex=True)[..., :-1]  # (B, FRAME / 2 + 1, frames)
    power = _bands(bands).to(samples) @ waves.abs().square()
    levels = power.clamp(min=1e-10).log10()
    levels = torch.maximum(levels, levels.amax((1, 2), keepdim=True) - LOUDNESS)
    return (levels + 4) / 4


@lru_cache(maxsize=8)
def _bands(count: int) -> Tensor:
    """``(count, FRAME / 2 + 1)``: triangles over the frequencies, evenly spaced in pitch, of equal area."""
    whole_number("bands", count, at_least=1)
    hertz = torch.linspace(0, RATE / 2, FRAME // 2 + 1, dtype=torch.float64, device="cpu")
    corners = _hertz(torch.linspace(0, _pitch(RATE / 2), count + 2, dtype=torch.float64, device="cpu"))
    low, top, high = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    triangles = torch.minimum((hertz - low) / (top - low), (high - hertz) / (high - top)).clamp(min=0)
    return triangles * 2 / (high - low)


# Slaney's scale: even up to 1,000 Hz, 15 steps; then a factor of 6.4 takes 27 steps.
_EVEN, _FROM, _FACTOR = 200 / 3, 1000.0, math.log(6.4) / 27


def _pitch(hertz: float) -> float:
    return hertz / _EVEN if hertz < _FROM else _FROM / _EVEN + math.log(hertz / _FROM) / _FACTOR


def _hertz(pitch: Tensor) -> Tensor:
    steps = pitch - _FROM / _EVEN
    return torch.where(steps < 0, pitch * _EVEN, _FROM * torch.exp(_FACTOR * steps))
