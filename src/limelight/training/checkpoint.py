"""The files of a run, each written atomically.

::

    output/
      config.json  tokenizer.json  model.safetensors    the best model so far: limelight.load(output)
      losses.csv  curve.svg
      checkpoints/step-00000500/                        a model too, with
        optimizer.safetensors  training.json            the state to resume from
        SHA256SUMS                                      of each of these files, as `sha256sum --check` reads it
    checkpoints/step-00000500/                          of a model that is divided among processes:
        shard-00001-model-00001-of-00001.safetensors    what a process holds of weights and optimizer state
        training.json  SHA256SUMS

A folder or file is written under a temporary name in the same folder, flushed to the disk, and renamed.
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
from typing import Any, Protocol

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..distributed.saving import write_parts
from ..formats.errors import CheckpointError, damaged
from ..formats.safetensors_files import SINGLE
from ..models.saving import in_one_step, to_disk, write_model
from ..pretrained import Pretrained
from ..tensors.shapes import ArgumentError

OPTIMIZER, TRAINING, CHECKPOINTS, SUMS = "optimizer.safetensors", "training.json", "checkpoints", "SHA256SUMS"


class Waiting(Protocol):
    """The processes of a run, as far as files are concerned (`limelight.training.processes.Ranks`)."""

    rank: int

    @property
    def main(self) -> bool:
        """Whether this process writes what one process writes."""

    def wait(self) -> None:
        """Return when all processes have called it."""


@dataclass
class Progress:
    """The progress of a run.

    Args:
        step: completed optimizer steps.
        best: lowest evaluation loss, in nats per token; ``None`` before the first evaluation.
        best_step: the step after which it was measured.
        evaluations_since_best: evaluations after that one.
    """

    step: int = 0
    best: float | None = None
    best_step: int = 0
    evaluations_since_best: int = 0


def write_checkpoint(
    output: Path, model: Pretrained, optimizer: Mapping[str, Tensor], progress: Progress, metadata: Mapping[str, Any]
) -> Path:
    """Write the checkpoint of a step, unless it exists.

    Args:
        output: the folder of the run.
        model: the model after the step.
        optimizer: the state of the optimizer.
        progress: the progress of the run.
        metadata: further JSON values: the settings, the fingerprint of the data.

    Returns:
        The folder of the checkpoint.
    """
    folder = folder_of(output, progress.step)
    if folder.exists():
        return folder
    with _written(folder), in_one_step(folder) as staging:
        write_model(model, staging)
        save_file({name: values.contiguous() for name, values in optimizer.items()}, staging / OPTIMIZER)
        _describe(staging, progress, metadata)
    return folder


def folder_of(output: Path, step: int) -> Path:
    """Return the folder of the checkpoint of a step."""
    return output / CHECKPOINTS / f"step-{step:08}"


def write_divided(
    output: Path, state: Mapping[str, Tensor], progress: Progress, metadata: Mapping[str, Any], ranks: Waiting
) -> None:
    """Write the checkpoint of a step of a divided model, unless it exists; all processes call it.

    Args:
        output: the folder of the run.
        state: weights and optimizer state (`limelight.training.resuming.weights_of`, `state_of`).
        progress: the progress of the run.
        metadata: further JSON values: the settings, the fingerprint of the data.
        ranks: the processes.
    """
    folder = folder_of(output, progress.step)
    staging = folder.with_name(f".{folder.name}.part")
    ranks.wait()  # all see whether it exists before it appears
    if folder.exists():
        return
    with _written(folder):
        if ranks.main:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(parents=True)
        ranks.wait()
        write_parts(staging, state)
        own = sorted(staging.glob(f"shard-{ranks.rank + 1:05}-*"))  # each rank reads what it wrote, which is cached
        (staging / f"{SUMS}.{ranks.rank}").write_text("".join(map(_sum, own)), "utf-8")
        ranks.wait()
        if ranks.main:
            _describe(staging, progress, metadata)
            for path in staging.iterdir():
                to_disk(path)
            to_disk(staging)
            os.replace(staging, folder)
            to_disk(folder.parent)


def is_divided(folder: Path) -> bool:
    """Whether a checkpoint holds the parts of a divided model."""
    return not (folder / OPTIMIZER).exists()


def _describe(folder: Path, progress: Progress, metadata: Mapping[str, Any]) -> None:
    """Write the progress, the metadata and the checksums of a checkpoint."""
    values = {**metadata, "progress": asdict(progress)}
    (folder / TRAINING).write_text(json.dumps(values, indent=1) + "\n", "utf-8")
    computed = sorted(folder.glob(f"{SUMS}.*"))
    lines = [line for path in computed for line in path.read_text("utf-8").splitlines(keepends=True)]
    for path in computed:
        path.unlink()
    names = {_name(line) for line in lines}
    lines += [_sum(path) for path in sorted(folder.iterdir()) if path.name not in names]
    (folder / SUMS).write_text("".join(lines), "utf-8")


def newest(output: Path) -> Path | None:
    """Return the newest checkpoint of a run; ``None`` before the first."""
    return next(reversed(_checkpoints(output)), None)


def read_checkpoint(folder: Path, rank: int = 0, ranks: int = 1) -> tuple[dict[str, Tensor], Progress, dict[str, Any]]:
    """Read the optimizer's state, the progress and the metadata of a checkpoint; no state of a divided model.

    Args:
        folder: the checkpoint.
        rank: which of several processes this is; each compares some of the files with their checksums.
        ranks: the number of these processes.

    Raises:
        CheckpointError: a file is damaged; the message names an older checkpoint where there is one.
    """
    try:
        _check_sums(folder, rank, ranks)
        return _read_checkpoint(folder)
    except CheckpointError as error:
        older = [other for other in _checkpoints(folder.parent.parent) if other != folder]
        way_out = f"Remove {folder} to resume from {older[-1]}." if older else "There is no older checkpoint."
        raise CheckpointError(f"{error} {way_out}") from error


def _read_checkpoint(folder: Path) -> tuple[dict[str, Tensor], Progress, dict[str, Any]]:
    try:
        metadata = json.loads((folder / TRAINING).read_text("utf-8"))
        progress = Progress(**metadata.pop("progress"))
        if folder.name != f"step-{progress.step:08}" or not math.isfinite(progress.best or 0.0):
            raise ValueError(f"it says {progress}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(folder / TRAINING, str(error)) from error
    if is_divided(folder):
        return {}, progress, metadata
    try:
        return load_file(folder / OPTIMIZER), progress, metadata
    except SafetensorError as error:
        raise damaged(folder / OPTIMIZER, str(error)) from error


def _check_sums(folder: Path, rank: int, ranks: int) -> None:
    """Compare the files of a checkpoint with their checksums; each of several ranks some of them."""
    try:
        kept = (folder / SUMS).read_text("utf-8").splitlines(keepends=True)
    except (OSError, ValueError) as error:
        raise damaged(folder / SUMS, str(error)) from error
    for line in kept[rank::ranks]:
        path = folder / _name(line)
        if not path.is_file() or line != _sum(path):
            raise damaged(path, f"its checksum is not that of {SUMS}")
    for name in (TRAINING,) if any(" shard-" in line for line in kept) else (OPTIMIZER, TRAINING):
        if not any(line.endswith(f" {name}\n") for line in kept):
            raise damaged(folder / SUMS, f"it does not name {name}")


def _sum(path: Path) -> str:
    """Return the line of `SUMS` for a file."""
    return f"{_sha256(path)}  {path.name}\n"


def _name(line: str) -> str:
    """Return the name of the file of a line of `SUMS`."""
    return Path(line[64:].strip()).name


def _sha256(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**20):
            found.update(piece)
    return found.hexdigest()


@contextmanager
def _written(path: Path) -> Iterator[None]:
    """Turn what prevents writing (above all a full disk) into an `ArgumentError` of one paragraph."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise ArgumentError(
            f"{path} could not be written: {error}. Nothing is left of it, and earlier checkpoints are whole. "
            "Make room on the disk, then resume from the newest one with --resume."
        ) from error


def prune(output: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` checkpoints, and the incomplete files of a killed run."""
    for folder in _checkpoints(output)[:-keep]:
        shutil.rmtree(folder)
    for partial in (*(output / CHECKPOINTS).glob(".step-*"), *output.glob(".*.part*")):
        shutil.rmtree(partial) if partial.is_dir() else partial.unlink()


def write_best(output: Path, model: Pretrained) -> None:
    """Write the best model into ``output``, file by file, the weights last: the other files never change."""
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
    """Yield a temporary path, which replaces ``path`` when it has been written completely."""
    part = path.with_name(f".{path.name}.part")
    yield part
    to_disk(part)
    os.replace(part, path)


def _checkpoints(output: Path) -> list[Path]:
    """Return the checkpoints of a run, the oldest first."""
    found = (folder for folder in (output / CHECKPOINTS).glob("step-*") if folder.is_dir())
    return sorted(found, key=lambda folder: (len(folder.name), folder.name))
