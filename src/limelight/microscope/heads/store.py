"""A file from which an interrupted run goes on: the sums of every measure, and how many texts they hold."""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from ...tensors.shapes import ArgumentError, wrong
from .measure import Measure
from .run import Progress

VERSION = 2
_WHAT = "state"


def save_state(path: Path, of: dict[str, Any], progress: list[Progress]) -> None:
    """Write how far a run has come, in one step.

    Args:
        path: the file, a NumPy archive without pickled objects.
        of: what the run measures: model, corpus, context.
        progress: of every probe.

    Raises:
        OSError: the folder does not exist or cannot be written to.
    """
    probes = {one.probe.name: {"samples": one.samples, "tokens": one.tokens, "ended": one.ended} for one in progress}
    meta = json.dumps({"version": VERSION, "of": of, "probes": probes}).encode()
    arrays = {name: array for one in progress for name, array in _arrays(one).items()}
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            _write({"meta": np.frombuffer(meta, np.uint8)} | arrays, file)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _write(arrays: dict[str, Any], file: IO[bytes]) -> None:
    """Write a NumPy archive, compressed at the fastest level: halves the sums of the bootstrap."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.asanyarray(array), allow_pickle=False)


def restore_state(path: Path, of: dict[str, Any], progress: list[Progress]) -> None:
    """Take over what `save_state` wrote.

    Raises:
        ArgumentError: there is no such file, it is damaged, or it is of another run.
    """
    way_out = "Run without resume to begin again."
    if not path.is_file():
        raise wrong(_WHAT, "needs the file of an interrupted run", f"{path} does not exist", way_out)
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            meta = json.loads(file["meta"].tobytes())
            _check(path, meta, of)
            for one in progress:
                known = meta["probes"].get(one.probe.name)
                if known is None:
                    continue
                one.samples, one.tokens, one.ended = known["samples"], known["tokens"], known["ended"]
                for prefix, measure in _measures(one):
                    names = [name for name in file.files if name.startswith(prefix)]
                    measure.restore({name.removeprefix(prefix): file[name] for name in names})
    except ArgumentError:
        raise
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        got = f"{path} is damaged, or of another version ({type(error).__name__}: {error})"
        raise wrong(_WHAT, "needs the file of an interrupted run", got, way_out) from None


def _check(path: Path, meta: dict[str, Any], of: dict[str, Any]) -> None:
    found = {"version": meta["version"], **meta["of"]}
    for name, value in {"version": VERSION, **of}.items():
        if found.get(name) != value:
            got = f"that of {path} is {found.get(name)!r}, and now it is {value!r}"
            raise wrong(_WHAT, f"needs a run of the same {name}", got, "Run without resume to begin again.")


def _measures(progress: Progress) -> list[tuple[str, Measure]]:
    kinds = {"measure": progress.measures, "control": progress.controls}
    return [
        (f"{progress.probe.name}/{kind}/{place}/", measure)
        for kind, measures in kinds.items()
        for place, measure in enumerate(measures)
    ]


def _arrays(progress: Progress) -> dict[str, Any]:
    return {
        f"{prefix}{name}": array for prefix, measure in _measures(progress) for name, array in measure.state().items()
    }
