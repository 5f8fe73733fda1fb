"""CTranslate2: one ``model.bin`` with numbers and tensors by name (https://opennmt.net/CTranslate2).

The layout of such a file, all of it little-endian::

    version | specification, revision | count | variables: name, rank, sizes, type, bytes, data | aliases: two names

A text is its length in two bytes and its characters with a zero at the end. As in GGUF, every length is compared with
the bytes that are left before anything is read.
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

VERSION = 6
MAX_DIMENSIONS = 8
MAX_TENSORS = 1 << 16
TYPES = (torch.float32, torch.int8, torch.int16, torch.int32, torch.float16, torch.bfloat16)  # by their number


@dataclass(frozen=True)
class Variable:
    """Where a tensor lies, and what it is."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    start: int
    size: int


class CTranslate2File(MappedFile):
    """The variables of a ``model.bin``, tensors read on demand.

    Args:
        path: the file.

    Attributes:
        specification: what kind of model it is (``"WhisperSpec"``).
        numbers: variables without dimensions: sizes and choices.

    Raises:
        CheckpointError: no such file, another version, lengths that do not fit.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        version = self._number("I")
        if version != VERSION:
            raise CheckpointError(
                f"{path} has version {version} of CTranslate2's format, and Limelight reads version {VERSION}. "
                "Convert the model again with a newer CTranslate2, or take its safetensors."
            )
        self.specification, _revision = self._text(), self._number("I")
        self._variables: dict[str, Variable] = {}
        count = self._number("I")
        if count > MAX_TENSORS:
            raise damaged(path, f"it claims {count:,} variables")
        for _ in range(count):
            name, variable = self._text(), self._variable()
            if name in self._variables:
                raise damaged(path, f"two variables have the same name {name!r}")
            self._variables[name] = variable
        aliases = self._number("I")
        if aliases > MAX_TENSORS:
            raise damaged(path, f"it claims {aliases:,} aliases")
        self.aliases = {self._text(): self._text() for _ in range(aliases)}
        if self._at != len(self._data):
            raise damaged(path, f"{len(self._data) - self._at:,} bytes follow its end")
        scalars = [name for name, variable in self._variables.items() if not variable.shape]
        self.numbers = {name: self.read(name).item() for name in scalars}

    def keys(self) -> list[str]:
        """The names of the tensors that have dimensions."""
        return [name for name, variable in self._variables.items() if variable.shape]

    def shape(self, key: str) -> tuple[int, ...]:
        """The shape of one tensor, without reading it."""
        return self._variables[key].shape

    def read(self, key: str) -> Tensor:
        """One tensor as it is stored."""
        one = self._variables[key]
        stored = bytearray(self._data[one.start : one.start + one.size])  # torch needs writable memory
        if not stored:
            return torch.empty(one.shape, dtype=one.dtype, device="cpu")
        return torch.frombuffer(stored, dtype=one.dtype).reshape(one.shape)

    def _variable(self) -> Variable:
        rank = self._number("B")
        if rank > MAX_DIMENSIONS:
            raise damaged(self.path, f"a variable claims {rank} dimensions")
        shape = tuple(self._number("I") for _ in range(rank))
        kind = self._number("B")
        if kind >= len(TYPES):
            raise damaged(self.path, f"a variable has the unknown type number {kind}")
        size = self._number("I")
        if size != math.prod(shape) * TYPES[kind].itemsize:
            raise damaged(self.path, f"{size:,} bytes are no {TYPES[kind]} of shape {shape}")
        return Variable(shape, TYPES[kind], self._skip(size), size)

    def _text(self) -> str:
        size = self._number("H")
        start = self._skip(size)
        try:
            return bytes(self._data[start : start + size]).rstrip(b"\0").decode()
        except UnicodeDecodeError as error:
            raise damaged(self.path, "a name is not UTF-8") from error

    def _number(self, code: str) -> int:
        size = struct.calcsize("<" + code)
        start = self._skip(size)
        value: int = struct.unpack_from("<" + code, self._data, start)[0]
        return value
