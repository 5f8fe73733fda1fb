"""What a run leaves on the disk, each piece whole or not at all.

::

    output/
      config.json  tokenizer.json  model.safetensors    the best model so far: limelight.load(output)
      losses.csv  curve.svg
      checkpoints/step-00000500/                        a model too, with
        optimizer.safetensors  training.json            what it takes to go on

A folder or file is written beside its place, waited for until it is on the disk, and renamed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from ..checkpoints.errors import damaged
from ..checkpoints.safetensors_files import SINGLE
from ..checkpoints.save import in_one_step, to_disk, write_model
from ..models import Pretrained

OPTIMIZER, TRAINING, CHECKPOINTS = "optimizer.safetensors", "training.json", "checkpoints"


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
    with in_one_step(folder) as staging:
        write_model(model, staging)
        save_file({name: values.contiguous() for name, values in optimizer.items()}, staging / OPTIMIZER)
        values = {**about, "progress": asdict(progress)}
        (staging / TRAINING).write_text(json.dumps(values, indent=1) + "\n", "utf-8")
    return folder


def newest(output: Path) -> Path | None:
    """The last checkpoint of a run; ``None`` before the first."""
    return max(_checkpoints(output), default=None)


def read_checkpoint(folder: Path) -> tuple[dict[str, Tensor], Progress, dict[str, Any]]:
    """The optimizer's state, where the run stood, and whatever else was kept.

    Raises:
        CheckpointError: a damaged file.
    """
    try:
        about = json.loads((folder / TRAINING).read_text("utf-8"))
        progress = Progress(**about.pop("progress"))
        state = load_file(folder / OPTIMIZER)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(folder / TRAINING, str(error)) from error
    except Exception as error:  # the safetensors library has an error of its own
        raise damaged(folder / OPTIMIZER, str(error)) from error
    return state, progress, about


def forget(output: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` checkpoints, and what a run that was killed left half written."""
    for folder in sorted(_checkpoints(output))[:-keep]:
        shutil.rmtree(folder)
    for half in (*(output / CHECKPOINTS).glob(".step-*"), *output.glob(".*.part*")):
        shutil.rmtree(half) if half.is_dir() else half.unlink()


def write_best(output: Path, model: Pretrained) -> None:
    """Make ``output`` the folder of this model: file by file, the weights at last; the rest is the same all along."""
    staging = output / ".best.part"
    shutil.rmtree(staging, ignore_errors=True)
    with in_one_step(staging) as folder:
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
    return [folder for folder in (output / CHECKPOINTS).glob("step-*") if folder.is_dir()]
