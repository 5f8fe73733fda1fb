"""Errors about files: what is wrong, with which values, and what to do, in one paragraph."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..tensors.shapes import ArgumentError


class CheckpointError(ArgumentError):
    """A checkpoint is missing, damaged or of another make: what happened, with which values, what to do."""


class FamilyError(CheckpointError):
    """A checkpoint is of a family that is not built here.

    Args:
        message: what happened, with which values, what to do.
        path: the file that names the family.
    """

    def __init__(self, message: str, path: Path = Path()) -> None:
        super().__init__(message)
        self.path = path


def damaged(path: Path, what: str) -> CheckpointError:
    """The error for a file whose content is not of its format."""
    return CheckpointError(
        f"{path} is damaged or incomplete: {what}. Nothing was loaded from it. "
        "Fetch or copy the file again, and compare its size and sha256 with those of its source."
    )


def missing(path: Path, way_out: str) -> CheckpointError:
    """The error for a file that does not exist."""
    return CheckpointError(f"{path} does not exist. {way_out}")


@contextmanager
def guarded(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong while a checkpoint is read into a `CheckpointError` that names it.

    What a file may not say is refused where it is read, in words of its own. This is for the rest: libraries that raise
    errors of their own about what a file holds, and the system where it cannot be read. Running out of memory stays
    what it is.
    """
    try:
        yield
    except (CheckpointError, MemoryError):
        raise
    except ArgumentError as error:
        raise CheckpointError(f"{path} describes a model that cannot be made: {error}") from error
    except Exception as error:
        reason = str(error).strip().splitlines() or ["no reason given"]
        raise CheckpointError(
            f"{path} cannot be read as a model ({type(error).__name__}: {reason[0]:.300}). It is damaged, or of "
            "another make than its names say. Compare its size and sha256 with those of its source."
        ) from error


MAX_JSON_BYTES = 1 << 26  # bytes; an index of a hundred thousand tensors has a tenth of it


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: a file that is missing, larger than 64 MiB, no JSON, or nested too deep.
    """
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise damaged(path, f"it has {size:,} bytes, and a description of a model at most {MAX_JSON_BYTES:,}")
        values = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise missing(path, "A model folder holds it beside its weights.") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Check its name and its permissions.") from error
    except RecursionError as error:
        raise damaged(path, "its values are nested too deep") from error
    except ArgumentError:
        raise
    except ValueError as error:
        raise damaged(path, f"it is no JSON ({error})") from error
    if not isinstance(values, dict):
        raise damaged(path, "it is no JSON object")
    return values


def shortened(value: object, limit: int = 100) -> str:
    """A value of a file for an error, of at most ``limit`` characters: a hostile one is long, or nests without end."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # Python writes no whole number of more than 4,300 digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= limit else f"{text[: limit - 4]} ..."


PICKLED = (".bin", ".pt", ".pth", ".ckpt")  # what files of pickled weights end with


def pickled_weights(path: Path) -> str:
    """Why a file of pickled weights is not read, and the command that converts it."""
    code = (
        "import sys, torch; from safetensors.torch import save_file; "
        "save_file({k: v.contiguous().clone() for k, v in torch.load(sys.argv[1], weights_only=True).items()}, "
        "sys.argv[2], {'format': 'pt'})"
    )
    paths = " ".join(shlex.quote(str(one)) for one in (path, path.with_name("model.safetensors")))
    return (
        f"{path} looks like pickled weights that can run code when they are read, so they are not read here; convert "
        f'them once: python -c "{code}" {paths}'
    )


def listed(names: list[str], limit: int = 8) -> str:
    """The first names of a long list, and how many more there are."""
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
