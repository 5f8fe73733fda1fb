"""Sounds that a subject hears."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...formats.errors import CheckpointError, read_json
from ...models.sound import RATE, recording
from ...tensors.shapes import describe, wrong

LONGEST = 30  # seconds that Whisper reads
FRAME_SECONDS = 0.02  # from one state of Whisper's encoder to the next


def heard(source: Any) -> Tensor:
    """The samples ``(n,)`` of a WAV file, or those given, 16,000 a second.

    Raises:
        ArgumentError: neither a file nor samples, or more than 30 seconds of sound.
    """
    if isinstance(source, np.ndarray):
        source = torch.tensor(source)
    if isinstance(source, (str, os.PathLike)):
        if not Path(source).is_file():
            got = f"{os.fspath(source)!r:.80} is none"
            raise wrong("text", "must name a WAV file, for a model that hears", got, "Check the path.")
        samples = recording(source)
    elif isinstance(source, Tensor) and source.dim() == 1 and source.is_floating_point():
        samples = source
    else:
        rule = "must name a WAV file, or be its (n,) float samples, for a model that hears"
        raise wrong("text", rule, f"it is {describe(source)}", "limelight.models.sound.recording reads a file.")
    if not 0 < len(samples) <= LONGEST * RATE:
        got = f"it is {len(samples) / RATE:.1f} seconds long"
        raise wrong("text", f"must be a sound of at most {LONGEST} seconds", got, "Cut it into parts.")
    return samples


def states_of(samples: Tensor) -> int:
    """How many states of Whisper's encoder a sound has."""
    return max(1, round(len(samples) / RATE / FRAME_SECONDS))


def alignment_heads_in(folder: Path, layers: int, heads: int) -> tuple[tuple[int, int], ...]:
    """The heads that a checkpoint's files name as following the sound; none where they name none that exists."""
    for name in ("generation_config.json", "config.json"):
        try:
            named = read_json(folder / name).get("alignment_heads") if (folder / name).is_file() else None
        except CheckpointError:
            continue
        if found := existing_heads(named, layers, heads):
            return found
    return ()


def existing_heads(named: Any, layers: int, heads: int) -> tuple[tuple[int, int], ...]:
    """``[[layer, head], ...]`` as pairs, if all of them exist; else none."""
    if not isinstance(named, (list, tuple)):
        return ()
    pairs = [tuple(pair) if isinstance(pair, (list, tuple)) else () for pair in named]
    fine = all(
        len(pair) == 2 and all(type(n) is int and 0 <= n < most for n, most in zip(pair, (layers, heads), strict=True))
        for pair in pairs
    )
    return tuple((pair[0], pair[1]) for pair in pairs) if fine else ()
