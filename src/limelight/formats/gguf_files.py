"""GGUF: one file with metadata, tokenizer and (often quantised) tensors.

The layout of such a file (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md)::

    magic, version, tensor count, field count | fields: key, type, value | tensors: name, shape, type, offset | data

Every length in the file is compared with the bytes that are left before anything is read or allocated: a damaged or
hostile file ends in a `CheckpointError`, not in a crash or in all of the memory. The arithmetic of the quantised
types is that of the ``gguf`` package; its own reader walks the vocabulary object by object and takes seconds.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from .errors import CheckpointError, damaged, missing, shortened

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMENSIONS = 4  # the format's own limit
MAX_TENSORS = 1 << 16  # and fields: the largest models have a few thousand
MAX_ENTRIES = 1 << 22  # of an array: several times the largest vocabularies
DEFAULT_ALIGNMENT = 32
LONG_ROW = 1 << 16  # numbers

# struct's code for each scalar type number of the format
SCALARS = dict(enumerate(("B", "b", "H", "h", "I", "i", "f", "?"))) | {10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9

# A model in several files: how many, which of them this is (from 0), and the tensors of all.
SPLIT_COUNT, SPLIT_NUMBER, SPLIT_TENSORS = "split.count", "split.no", "split.tensors.count"

# What the fields are that are not checked where a configuration is read.
KINDS = {
    **dict.fromkeys(("general.architecture", "tokenizer.chat_template"), "a text"),
    **dict.fromkeys(("tokenizer.ggml.model", "tokenizer.ggml.pre"), "a text"),
    **dict.fromkeys(("tokenizer.ggml.tokens", "tokenizer.ggml.merges"), "a list of texts"),
    **dict.fromkeys(("tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token"), "true or false"),
    **{f"tokenizer.ggml.{name}_token_id": "the id of a token" for name in ("bos", "eos", "eot", "eom", "padding")},
    **dict.fromkeys((SPLIT_COUNT, SPLIT_NUMBER, SPLIT_TENSORS), "a whole number"),
    "tokenizer.ggml.token_type": "a list of whole numbers",
}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: ``size`` bytes at ``start``, ``shape`` in row-major order."""

    name: str
    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    start: int
    size: int

    @property
    def long_rows(self) -> tuple[int, int]:
        """A shape for the stored bytes of few long rows, each of whole rows of the tensor.

        The gguf package works on 16 rows at a time, whatever their length; rows of a few hundred numbers, as they
        are, take three times as long.
        """
        rows, width = math.prod(self.shape[:-1]), max(1, self.shape[-1] if self.shape else 1)
        most = max(1, LONG_ROW // width)
        together = next(k for k in range(min(most, max(1, rows)), 0, -1) if rows % k == 0)
        return rows // together, self.size // max(1, rows) * together


class GGUFFile:
    """An open GGUF file: ``fields`` (metadata) and tensors, each read and dequantised on demand.

    A model that is split over several files (``name-00001-of-00003.gguf``, as llama.cpp writes them) is read whole,
    whichever of them is named; all lie in one folder.

    Args:
        path: the file.

    Raises:
        CheckpointError: the file, or another part of the same model, is missing, cut short, or not GGUF version 2 or 3.
    """

    def __init__(self, path: Path) -> None:
        named = _Part(path)
        parts = _all_parts(named)
        self.path = path
        self.fields = parts[0].fields
        self.tensors: dict[str, StoredTensor] = {}
        self._holder: dict[str, _Part] = {}
        for part in parts:
            for name, tensor in part.tensors.items():
                if name in self.tensors:
                    raise damaged(part.path, f"its tensor {name!r} is also in {self._holder[name].path.name}")
                self.tensors[name], self._holder[name] = tensor, part
        promised = named.fields.get(SPLIT_TENSORS, len(self.tensors))
        if promised != len(self.tensors):
            raise damaged(path, f"{SPLIT_TENSORS} is {shortened(promised)}, and its parts hold {len(self.tensors)}")

    def keys(self) -> list[str]:
        """The names of the tensors."""
        return list(self.tensors)

    def shape(self, key: str) -> tuple[int, ...]:
        """The shape of one tensor, without reading it."""
        return self.tensors[key].shape

    def read(self, key: str) -> Tensor:
        """One tensor, dequantised to float32. Nothing else is held in memory."""
        stored, part = self.tensors[key], self._holder[key]
        if not math.prod(stored.shape):
            return torch.empty(stored.shape)
        raw = np.frombuffer(part.bytes, np.uint8, stored.size, stored.start).reshape(stored.long_rows)
        try:
            numbers = gguf.dequantize(raw, stored.kind)
        except NotImplementedError as error:
            raise CheckpointError(
                f"{part.path} stores {key} as {stored.kind.name}, which the gguf package cannot dequantise. "
                "Take another quantisation of the model (Q4_0 to Q8_0, the K types, F16, BF16, F32)."
            ) from error
        if numbers.dtype != np.float32 or not numbers.flags.writeable:  # float32 comes as a view of the mapped file
            numbers = numbers.astype(np.float32)
        return torch.from_numpy(numbers).reshape(stored.shape)


class _Part:
    """One file: all of a model, or a part of it."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise missing(path, "Name an existing .gguf file.")
        self.path = path
        with path.open("rb") as file:
            if path.stat().st_size == 0:
                raise damaged(path, "it is empty")
            self.bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        cursor = _Cursor(path, self.bytes)
        if cursor.take(4) != MAGIC:
            raise damaged(path, f"a GGUF file begins with {MAGIC!r}, this one with {bytes(self.bytes[:4])!r}")
        version = cursor.scalar("I")
        if version not in VERSIONS:
            raise CheckpointError(
                f"{path} is GGUF version {version}, and versions {VERSIONS} are read. "
                "Convert it with a current llama.cpp (big-endian files are not read)."
            )
        tensor_count, field_count = cursor.count(least_bytes=8), cursor.count(least_bytes=8)
        if max(tensor_count, field_count) > MAX_TENSORS:
            raise damaged(path, f"it claims {tensor_count:,} tensors and {field_count:,} fields")
        self.fields: dict[str, Any] = {}
        for _ in range(field_count):
            key = cursor.text()
            self.fields[key] = cursor.value(cursor.scalar("I"))
        _check_kinds(path, self.fields)
        stored = [_read_stored(cursor) for _ in range(tensor_count)]
        data = _aligned(cursor.at, self.fields.get("general.alignment", DEFAULT_ALIGNMENT), path)
        self.tensors = {
            name: _place(path, len(self.bytes), name, shape, kind, data + offset)
            for name, shape, kind, offset in stored
        }
        if len(self.tensors) != tensor_count:
            raise damaged(path, "two of its tensors have the same name")


def part_of_split(path: Path) -> tuple[str, int, int] | None:
    """``("name", 2, 3)`` of ``name-00002-of-00003.gguf``; ``None`` of a name of another form."""
    found = re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})\.gguf", path.name, re.DOTALL)
    return None if found is None else (found[1], int(found[2]), int(found[3]))


def _all_parts(named: _Part) -> list[_Part]:
    """All parts of the model of which one is ``named``, in order."""
    path, count = named.path, named.fields.get(SPLIT_COUNT, 1)
    if count == 1 or count == 0:
        return [named]
    form = part_of_split(path)
    if form is None or form[2] != count or form[1] != named.fields.get(SPLIT_NUMBER, -1) + 1:
        raise CheckpointError(
            f"{path} is one of {count} files that hold a model together, and its name does not say which. "
            f"Name the files as they were published, name-00001-of-{count:05}.gguf and so on, all in one folder."
        )
    parts = []
    for number in range(1, count + 1):
        one = path.with_name(f"{form[0]}-{number:05}-of-{count:05}.gguf")
        if not one.is_file():
            raise missing(one, f"It is part {number} of {count} that hold the model together: copy it into the folder.")
        part = named if one == path else _Part(one)
        if (part.fields.get(SPLIT_COUNT), part.fields.get(SPLIT_NUMBER)) != (count, number - 1):
            raise damaged(one, f"it does not say that it is part {number} of {count}")
        parts.append(part)
    return parts


def _check_kinds(path: Path, fields: dict[str, Any]) -> None:
    """Every field that Limelight reads, by itself or for the tokenizer, has the kind of value that it is read as."""
    for name, kind in KINDS.items():
        if name in fields and not _KINDS_OF_FIELDS[kind](fields[name]):
            raise damaged(path, f"{name} is {shortened(fields[name])}, and should be {kind}")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_list_of(kind: type) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list) and all(isinstance(one, kind) for one in value)


_KINDS_OF_FIELDS: dict[str, Callable[[object], bool]] = {
    "a text": lambda value: isinstance(value, str),
    "true or false": lambda value: isinstance(value, bool),
    "the id of a token": lambda value: _is_whole(value) and -1 <= value < 2**32,  # type: ignore[operator]
    "a whole number": lambda value: _is_whole(value) and 0 <= value < 2**32,  # type: ignore[operator]
    "a list of texts": _is_list_of(str),
    "a list of whole numbers": _is_list_of(int),
}


class _Cursor:
    """Reads forward through the file, and never past its end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at = path, data, 0

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            left = len(self.data) - self.at
            raise damaged(self.path, f"at byte {self.at:,} it promises {size:,} more bytes and has {left:,}")
        taken = self.data[self.at : self.at + size]
        self.at += size
        return taken

    def scalar(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def count(self, least_bytes: int) -> int:
        """A number of things to come, each of which takes at least so many bytes."""
        at, number = self.at, int(self.scalar("Q"))
        if number * least_bytes > len(self.data) - self.at:
            raise damaged(self.path, f"at byte {at:,} it promises {number:,} entries, more than the file can hold")
        return number

    def text(self) -> str:
        at, raw = self.at, self.take(int(self.scalar("Q")))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise damaged(self.path, f"the text at byte {at:,} is not UTF-8") from error

    def value(self, kind: int) -> Any:
        if kind in SCALARS:
            return self.scalar(SCALARS[kind])
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            return self._array()
        raise damaged(self.path, f"before byte {self.at:,} stands the unknown type {kind}")

    def _array(self) -> list[Any]:
        kind = self.scalar("I")
        if kind in SCALARS:
            number = self._entries(least_bytes=struct.calcsize("<" + SCALARS[kind]))
            code = f"<{number}{SCALARS[kind]}"
            return list(struct.unpack(code, self.take(struct.calcsize(code))))
        read: Callable[[], Any] = self.text
        if kind != STRING:
            # Arrays of arrays are legal, in no known file, and would let a small file nest without end.
            raise damaged(self.path, f"before byte {self.at:,} stands an array of the unsupported type {kind}")
        return [read() for _ in range(self._entries(least_bytes=8))]

    def _entries(self, least_bytes: int) -> int:
        """How many entries an array has. Each takes much more memory than its bytes in the file."""
        at, number = self.at, self.count(least_bytes)
        if number > MAX_ENTRIES:
            raise damaged(self.path, f"the array at byte {at:,} has {number:,} entries, and {MAX_ENTRIES:,} are read")
        return number


def _read_stored(cursor: _Cursor) -> tuple[str, tuple[int, ...], gguf.GGMLQuantizationType, int]:
    """One entry of the tensor table: name, shape, type, offset into the data."""
    name, dimensions = cursor.text(), cursor.scalar("I")
    if dimensions > MAX_DIMENSIONS:
        raise damaged(cursor.path, f"tensor {name!r} claims {dimensions} dimensions")
    shape = tuple(int(cursor.scalar("Q")) for _ in range(dimensions))[::-1]  # stored fastest dimension first
    number = cursor.scalar("I")
    try:
        kind = gguf.GGMLQuantizationType(number)
    except ValueError as error:
        raise damaged(cursor.path, f"tensor {name!r} has the unknown type number {number}") from error
    return name, shape, kind, int(cursor.scalar("Q"))


def _aligned(at: int, alignment: object, path: Path) -> int:
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
        raise damaged(path, f"general.alignment is {alignment!r}, not a power of two")
    return -(-at // alignment) * alignment


def _place(
    path: Path, file_size: int, name: str, shape: tuple[int, ...], kind: gguf.GGMLQuantizationType, start: int
) -> StoredTensor:
    """Check that a tensor lies inside the file before its memory is allocated."""
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    last = shape[-1] if shape else 1
    if last % block:
        raise damaged(
            path, f"tensor {name!r} of shape {shape} does not divide into the {block}-number blocks of {kind.name}"
        )
    size = math.prod(shape) // block * block_bytes
    if start + size > file_size:
        raise damaged(path, f"tensor {name!r} should end at byte {start + size:,}, and the file has {file_size:,}")
    if math.prod(max(1, side) for side in shape) >= 1 << 60:  # of no numbers, and no tensor all the same
        raise damaged(path, f"tensor {name!r} claims the shape {shape}")
    return StoredTensor(name, shape, kind, start, size)
