"""Safetensors: a folder with ``model.safetensors``, or with numbered shards and their index.

The files are mapped into memory, so that a tensor costs pages only when it is used. The format's own library checks
sizes against the file before anything is allocated (https://huggingface.co/docs/safetensors).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import PICKLED, CheckpointError, damaged, listed, missing, pickled_weights, read_json, shortened

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


class SafetensorsFolder:
    """The tensors of a model folder, each read on demand.

    Args:
        folder: a folder that holds ``model.safetensors``, or ``model.safetensors.index.json`` and its shards.

    Raises:
        CheckpointError: no such file, a missing shard, a truncated file, an index that names a missing tensor.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if (folder / SINGLE).is_file():
            shards, promised = [SINGLE], None
        elif (folder / INDEX).is_file():
            promised = _read_index(folder / INDEX)
            shards = sorted(set(promised.values()))
        else:
            way_out = f"A model folder holds {SINGLE}, or {INDEX} and its shards."
            others = sorted(folder.iterdir(), key=lambda path: (not path.name.startswith("pytorch_model"), path.name))
            pickled = next((path for path in others if path.suffix in PICKLED), None)
            raise missing(folder / SINGLE, way_out if pickled is None else f"{way_out} {pickled_weights(pickled)}.")
        self._open = {name: _open(folder / name) for name in shards}
        self._where = {key: name for name, file in self._open.items() for key in file.keys()}  # noqa: SIM118
        if promised is not None and promised != self._where:
            wrong = sorted(set(promised.items()) ^ set(self._where.items()))
            names = listed([f"{key} in {name}" for key, name in wrong])
            raise damaged(folder / INDEX, f"index and shards disagree about {names}")

    def keys(self) -> list[str]:
        """The names of the tensors."""
        return list(self._where)

    def shape(self, key: str) -> tuple[int, ...]:
        """The shape of one tensor, without reading it."""
        return tuple(self._open[self._where[key]].get_slice(key).get_shape())

    def read(self, key: str) -> Tensor:
        """One tensor as it is stored, mapped into memory."""
        tensor: Tensor = self._open[self._where[key]].get_tensor(key)
        return tensor


def _read_index(path: Path) -> dict[str, str]:
    """The shard that each tensor lies in, by the index."""
    index = read_json(path).get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(name, str) for name in index.values()):
        raise damaged(path, '"weight_map" does not map names to files')
    for name in index.values():
        if Path(name).name != name or not name.endswith(".safetensors"):  # a shard lies beside its index, nowhere else
            raise damaged(path, f"{shortened(name)} is no safetensors file beside it")
    return index


def _open(path: Path) -> Any:
    try:
        if not path.is_file():
            raise missing(path, f"{INDEX} names it as a shard: copy the missing file into the folder.")
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise damaged(
            path, f"the safetensors library says {str(error)!r} of its {path.stat().st_size:,} bytes"
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"{shortened(str(path), 300)} cannot be read ({error.strerror or error}). Check its name and permissions."
        ) from error
