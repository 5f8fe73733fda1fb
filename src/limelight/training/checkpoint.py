"""What a run leaves on the disk, each piece whole or not at all.

::

    output/
      config.json  tokenizer.json  model.safetensors    the best model so far: limelight.load(output)
      losses.csv  curve.svg
      checkpoints/step-00000500/                        a model too, with
        optimizer.safetensors  training.json            what it takes to go on
        SHA256SUMS                                      of each of these files, as `sha256sum --check` reads it

A folder or file is written beside its place, waited for until it is on the disk, and renamed.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..formats.errors import CheckpointError, damaged
from ..formats.safetensors_files import SINGLE
from ..models.saving import in_one_step, to_disk, write_model
from ..pretrained import Pretrained
from ..tensors.shapes import ArgumentError

OPTIMIZER, TRAINING, CHECKPOINTS, SUMS = "optimizer.safetensors", "training.json", "checkpoints", "SHA256SUMS"


@dataclass
class Progress:
    """Where a run stands.

    Args:
        step: steps made.
        best: the lowest loss of an evaluation, in nats per token; ``None`` before the first.
        best_step: the step after which it was measured.
        worse: evaluations since then.
    """

    step: int = 0
    best: float | None = None
    best_step: int = 0
    worse: int = 0


def write_checkpoint(
    output: Path, model: Pretrained, optimizer: Mapping[str, Tensor], progress: Progress, about: Mapping[str, Any]
) -> Path:
    """Write the checkpoint of a step, unless it is there.

    Args:
        output: of the run.
        model: as it is after the step.
        optimizer: its state.
        progress: where the run stands.
        about: whatever else is kept: the settings, the fingerprint of the data.
    """
    folder = output / CHECKPOINTS / f"step-{progress.step:08}"
    if folder.exists():
        return folder
    with _written(folder), in_one_step(folder) as staging:
        write_model(model, staging)
        save_file({name: values.contiguous() for name, values in optimizer.items()}, staging / OPTIMIZER)
        values = {**about, "progress": asdict(progress)}
        (staging / TRAINING).write_text(json.dumps(values, indent=1) + "\n", "utf-8")
        (staging / SUMS).write_text("".join(_sums(staging)), "utf-8")
    return folder


def newest(output: Path) -> Path | None:
    """The last checkpoint of a run; ``None`` before the first."""
    return next(reversed(_checkpoints(output)), None)


def read_checkpoint(folder: Path) -> tuple[dict[str, Tensor], Progress, dict[str, Any]]:
    """The optimizer's state, where the run stood, and whatever else was kept.

    Raises:
        CheckpointError: a damaged file; the message names an older checkpoint where there is one.
    """
    try:
        _check_sums(folder)
        return _read_checkpoint(folder)
    except CheckpointError as error:
        older = [other for other in _checkpoints(folder.parent.parent) if other != folder]
        way_out = f"Remove {folder} to go on from {older[-1]}." if older else "There is no older checkpoint."
        raise CheckpointError(f"{error} {way_out}") from error


def _read_checkpoint(folder: Path) -> tuple[dict[str, Tensor], Progress, dict[str, Any]]:
    try:
        about = json.loads((folder / TRAINING).read_text("utf-8"))
        progress = Progress(**about.pop("progress"))
        if folder.name != f"step-{progress.step:08}" or not math.isfinite(progress.best or 0.0):
            raise ValueError(f"it says {progress}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(folder / TRAINING, str(error)) from error
    try:
        return load_file(folder / OPTIMIZER), progress, about
    except SafetensorError as error:
        raise damaged(folder / OPTIMIZER, str(error)) from error


def _check_sums(folder: Path) -> None:
    """Raise unless every file of a checkpoint is as it was written, to the bit."""
    try:
        kept = (folder / SUMS).read_text("utf-8").splitlines(keepends=True)
    except (OSError, ValueError) as error:
        raise damaged(folder / SUMS, str(error)) from error
    written = set(_sums(folder))
    for line in kept:
        if line not in written:
            name = Path(line[64:].strip()).name
            raise damaged(folder / name, f"it is not as {SUMS} says")
    for name in (OPTIMIZER, TRAINING):
        if not any(line.endswith(f" {name}\n") for line in kept):
            raise damaged(folder / SUMS, f"it does not name {name}")


def _sums(folder: Path) -> list[str]:
    """A line of `SUMS` for each file of a checkpoint."""
    return [f"{_sha256(path)}  {path.name}\n" for path in sorted(folder.iterdir()) if path.name != SUMS]


def _sha256(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**20):
            found.update(piece)
    return found.hexdigest()


@contextmanager
def _written(path: Path) -> Iterator[None]:
    """What keeps a model from the disk, the disk being full above all, as one paragraph."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise ArgumentError(
            f"{path} could not be written: {error}. Nothing is left of it, and earlier checkpoints are whole. "
            "Make room on the disk, then go on from the newest one with --resume."
        ) from error


def forget(output: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` checkpoints, and what a run that was killed left half written."""
    for folder in _checkpoints(output)[:-keep]:
        shutil.rmtree(folder)
    for half in (*(output / CHECKPOINTS).glob(".step-*"), *output.glob(".*.part*")):
        shutil.rmtree(half) if half.is_dir() else half.unlink()


def write_best(output: Path, model: Pretrained) -> None:
    """Make ``output`` the folder of this model: file by file, the weights at last; the rest is the same all along."""
    staging = output / ".best.part"
    shutil.rmtree(staging, ignore_errors=True)
    with _written(output / SINGLE), in_one_step(staging) as folder:
        write_model(model, folder, shard_bytes=2**62)
    for path in sorted(staging.iterdir(), key=lambda path: path.name == SINGLE):
        os.replace(path, output / path.name)
    staging.rmdir()
    to_disk(output)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside the final one, which it becomes when it is whole."""
    part = path.with_name(f".{path.name}.part")
    yield part
    to_disk(part)
    os.replace(part, path)


def _checkpoints(output: Path) -> list[Path]:
    """The oldest first."""
    found = (folder for folder in (output / CHECKPOINTS).glob("step-*") if folder.is_dir())
    return sorted(found, key=lambda folder: (len(folder.name), folder.name))
