"""Marian's binary files (https://marian-nmt.github.io): settings and tensors, float32 or int8 with one multiplier each.

The layout of such a file, all of it little-endian::

    version | count | for each: bytes of its name, type, dimensions, bytes of its data | names | sizes | gap | data

An int8 matrix is stored column by column, except the embedding; the float after it is the factor by which its
values were multiplied. As in GGUF, every length is compared with the bytes that are left before anything is read.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .errors import CheckpointError, damaged
from .mapped_file import MappedFile

VERSION = 1
FLOAT32, INT8 = 0x404, 0x4101
SETTINGS, EMBEDDING = "special:model.yml", "Wemb"
MAX_DIMENSIONS = 8
MAX_TENSORS = 1 << 16


@dataclass(frozen=True)
class Stored:
    """The type, shape and byte range of a tensor in the file."""

    kind: int
    shape: tuple[int, ...]
    start: int
    size: int


class MarianFile(MappedFile):
    """The tensors of a Marian model, each as Marian's own matrices ``(in, out)``, read on demand.

    Args:
        path: the file.

    Attributes:
        settings: the model's settings in the file, as text by name.

    Raises:
        CheckpointError: no such file, another version, lengths that do not fit.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        version, count = self._numbers(2)
        if version != VERSION:
            raise damaged(path, f"it has version {version} of Marian's format, and Limelight reads {VERSION}")
        heads = [self._numbers(4) for _ in range(self._checked(count, 32))]
        names = [self._text(length) for length, _, _, _ in heads]
        shapes = [self._shape(rank) for _, _, rank, _ in heads]
        self._skip(self._numbers(1)[0])
        if len(set(names)) != len(names):
            raise damaged(path, "two of its tensors have the same name")
        self._stored = {
            name: Stored(kind, shape, self._skip(size), size)
            for name, shape, (_, kind, _, size) in zip(names, shapes, heads, strict=True)
        }
        self.settings = self._settings()

    def keys(self) -> list[str]:
        """The names of the tensors."""
        return [name for name in self._stored if name != SETTINGS]

    def shape(self, key: str) -> tuple[int, ...]:
        """The shape of one tensor, without reading it."""
        return self._stored[key].shape

    def read(self, key: str) -> Tensor:
        """One tensor, dequantised to float32 where it is stored as int8."""
        one = self._stored[key]
        count = math.prod(one.shape)
        needed = {FLOAT32: 4 * count, INT8: count + 4}.get(one.kind)
        if needed is None:
            raise CheckpointError(
                f"{self.path} holds {key} of type {one.kind:#x}, and Limelight reads float32 and int8."
            )
        if one.size < needed:
            raise damaged(self.path, f"{key} of shape {one.shape} has {one.size:,} bytes, not {needed:,}")
        if not count:
            return torch.empty(one.shape)
        stored = bytearray(self._data[one.start : one.start + needed])
        if one.kind == FLOAT32:
            return torch.frombuffer(stored, dtype=torch.float32).reshape(one.shape)
        multiplier: float = struct.unpack_from("<f", stored, count)[0]
        if not 0 < multiplier < math.inf:
            raise damaged(self.path, f"{key} was multiplied with {multiplier} to become whole numbers")
        values = torch.frombuffer(stored, dtype=torch.int8, count=count).float() / multiplier
        return values.reshape(one.shape) if key == EMBEDDING else values.reshape(one.shape[::-1]).T

    def _settings(self) -> dict[str, str]:
        """Lines of ``name: value``; lists and what else YAML may hold are left as they stand."""
        if SETTINGS not in self._stored:
            raise damaged(self.path, f"it lacks {SETTINGS}")
        one = self._stored[SETTINGS]
        text = bytes(self._data[one.start : one.start + one.size]).rstrip(b"\0").decode(errors="replace")
        pairs = (line.partition(":") for line in text.splitlines() if not line.startswith((" ", "-")))
        return {name: value.strip().strip('"') for name, colon, value in pairs if colon}

    def _numbers(self, count: int) -> tuple[int, ...]:
        return struct.unpack_from(f"<{count}Q", self._data, self._skip(8 * count))

    def _shape(self, rank: int) -> tuple[int, ...]:
        if rank > MAX_DIMENSIONS:
            raise damaged(self.path, f"a tensor claims {rank} dimensions")
        shape: tuple[int, ...] = struct.unpack_from(f"<{rank}i", self._data, self._skip(4 * rank))
        if any(size < 0 for size in shape) or (0 in shape and math.prod(max(1, size) for size in shape) >= 1 << 60):
            raise damaged(self.path, f"a tensor claims the shape {shape}")
        return shape

    def _text(self, length: int) -> str:
        start = self._skip(length)
        return bytes(self._data[start : start + length]).rstrip(b"\0").decode(errors="replace")

    def _checked(self, count: int, size: int) -> int:
        if count > MAX_TENSORS or count * size > len(self._data) - self._at:
            raise damaged(self.path, f"it claims {count:,} tensors, more than it can hold")
        return count
