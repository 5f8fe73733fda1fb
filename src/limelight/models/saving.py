"""``model.save``: a model becomes a folder as its family publishes them, whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from ..formats.errors import shortened
from ..formats.progress import counted
from ..formats.rules import Change, KeyRules
from ..formats.safetensors_files import INDEX, SINGLE
from ..tensors.shapes import FLOATS, ArgumentError, whole_number, wrong
from ..text import Tokenizer
from .families import FAMILIES
from .stack import Stack

# Copied from the folder that a model came from: how text is cut, how it generates, how sound and pictures are read.
COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "normalizer.json",
    "spiece.model",
    "tokenizer.model",
    "source.spm",
    "target.spm",
    "chat_template.jinja",
    "generation_config.json",
    "preprocessor_config.json",
)
TEMPLATES = "additional_chat_templates/*.jinja"


class Saved(Protocol):
    """The parts of a model that are saved; `limelight.Pretrained` satisfies this."""

    @property
    def network(self) -> Stack:
        """The network, of a family that can be published."""

    @property
    def source(self) -> Path:
        """Where the model came from: files beside the weights are copied from this folder, where it is one."""

    @property
    def tokenizer_or_why(self) -> Tokenizer | str:
        """The tokenizer, or why there is none."""

    @property
    def special_token_ids(self) -> Mapping[str, Any]:
        """Ids of the special tokens, by their published names."""


class _Piece(NamedTuple):
    """One tensor to be written: its published name, the change of its values, and our tensors that it consists of."""

    key: str
    change: Change
    parts: list[Tensor]

    def size(self, dtype: torch.dtype | None) -> int:
        """Bytes in the file."""
        return sum(part.numel() * (dtype or part.dtype).itemsize for part in self.parts)

    def stored(self, dtype: torch.dtype | None) -> Tensor:
        """The values as they are written; the model's own memory where nothing changes."""
        whole = self.parts[0] if len(self.parts) == 1 else torch.cat(self.parts)
        return self.change.write(whole.detach()).to("cpu", dtype or whole.dtype).contiguous()


def save(
    model: Saved, folder: str | os.PathLike[str], *, dtype: torch.dtype | None = None, shard_bytes: int = 5 * 10**9
) -> Path:
    """Write a model as its family publishes such models, into a folder that appears in one step.

    Args:
        model: what is written.
        folder: a new or an empty folder.
        dtype: what the numbers are stored as; ``None`` for their own.
        shard_bytes: size from which on the weights are cut into several files with an index.

    Returns:
        The folder.

    Raises:
        ArgumentError: a folder that holds something already, or a place where none can be written.
    """
    path = _path(folder)
    try:
        with in_one_step(path) as target:
            write_model(model, target, dtype=dtype, shard_bytes=shard_bytes, name=str(folder))
    except (OSError, SafetensorError) as error:  # no permission, no space, a name that is too long
        raise _not_there(folder, error) from error
    return path


def _path(folder: object) -> Path:
    if not isinstance(folder, (str, os.PathLike)):
        raise wrong("folder", "must be a text or a path", f"it is {folder!r}", "Name a new folder.")
    try:
        path = Path(folder).expanduser()
        os.stat(path)
    except FileNotFoundError:  # it is made
        return path
    except (OSError, RuntimeError, ValueError) as error:  # a user that there is not, characters that no name has
        raise _not_there(folder, error) from error
    return path


def _not_there(folder: object, error: Exception) -> ArgumentError:
    got = f"{shortened(str(folder))} cannot be ({getattr(error, 'strerror', None) or error})"
    return wrong("folder", "must be where a folder can be written", got, "Name another place; nothing was left there.")


def write_model(
    model: Saved,
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    shard_bytes: int = 5 * 10**9,
    name: str | None = None,
) -> None:
    """Write the files of a model into an empty folder; `save` does it in one step.

    Args:
        model: what is written.
        folder: where the files go.
        dtype: what the numbers are stored as; ``None`` for their own.
        shard_bytes: size from which on the weights are cut into several files with an index.
        name: what the progress bar calls the folder.
    """
    if dtype is not None and dtype not in FLOATS:
        raise wrong("dtype", f"must be one of {', '.join(map(str, FLOATS))}", f"it is {dtype!r}", "Leave it out.")
    whole_number("shard_bytes", shard_bytes, at_least=1)
    network = model.network
    family = FAMILIES[network.config.family]
    published = family.publish(network.config)
    pieces = _pieces(named_once(network), family.rules(network.config))
    dtypes = {dtype or part.dtype for piece in pieces for part in piece.parts}
    unset = family.unset_tokens(network.config.vocabulary)
    values = {"model_type": family.name, **unset, **model.special_token_ids, **published}
    if len(dtypes) == 1:
        values["dtype"] = str(dtypes.pop()).removeprefix("torch.")
    with counted(f"writing {name or folder}", sum(piece.size(dtype) for piece in pieces)) as report:
        _write_weights(pieces, folder, dtype, shard_bytes, report)
    _write_json(folder / "config.json", values)
    _write_companions(model, folder)


def named_once(network: nn.Module) -> dict[str, Tensor]:
    """Everything that a network stores. What several modules share has the name under which it is met first."""
    first = {id(tensor): (name, tensor) for name, tensor in reversed(network.state_dict(keep_vars=True).items())}
    return dict(reversed(first.values()))


def _pieces(tensors: Mapping[str, Tensor], rules: KeyRules) -> list[_Piece]:
    found: dict[str, tuple[Change, dict[int, Tensor]]] = {}
    for name, values in tensors.items():
        published = rules.published(name)
        if published is None:
            raise wrong(
                "model",
                "must have parameters of its family only, to be saved as its family publishes them",
                f"{name} is none of them",
                "Save the state_dict of a network that was changed.",
            )
        found.setdefault(published.key, (published.change, {}))[1][published.part[0]] = values
    return [_Piece(key, change, [parts[n] for n in sorted(parts)]) for key, (change, parts) in found.items()]


def _write_weights(
    pieces: list[_Piece], folder: Path, dtype: torch.dtype | None, most: int, report: Callable[[int], None]
) -> None:
    """One file, or shards of ``most`` bytes and their index. No more than one shard is held beside the model."""
    shards = list(_shards(pieces, dtype, most))
    where: dict[str, str] = {}
    done = 0
    for number, shard in enumerate(shards, 1):
        name = SINGLE if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file({piece.key: piece.stored(dtype) for piece in shard}, folder / name, metadata={"format": "pt"})
        where |= {piece.key: name for piece in shard}
        done += sum(piece.size(dtype) for piece in shard)
        report(done)
    if len(shards) > 1:
        _write_json(folder / INDEX, {"metadata": {"total_size": done}, "weight_map": where})


def _shards(pieces: list[_Piece], dtype: torch.dtype | None, most: int) -> Iterator[list[_Piece]]:
    """Neighbours together, as many as fit; a tensor larger than a shard has one to itself."""
    shard: list[_Piece] = []
    size = 0
    for piece in pieces:
        if shard and size + piece.size(dtype) > most:
            yield shard
            shard, size = [], 0
        shard.append(piece)
        size += piece.size(dtype)
    yield shard


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _write_companions(model: Saved, folder: Path) -> None:
    """Write the files beside the weights: copied from the model's source, or made from its tokenizer."""
    if model.source.is_dir():
        for name in COMPANIONS:
            if (model.source / name).is_file():
                shutil.copyfile(model.source / name, folder / name)
        for path in model.source.glob(TEMPLATES):
            (folder / path.parent.name).mkdir(exist_ok=True)
            shutil.copyfile(path, folder / path.parent.name / path.name)
    if isinstance(model.tokenizer_or_why, str) or (folder / "tokenizer.json").is_file():
        return
    tokenizer = model.tokenizer_or_why
    tokenizer.backend.save(str(folder / "tokenizer.json"))
    special = tokenizer.named_special_tokens(model.special_token_ids)
    _write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **special})
    if tokenizer.chat_template is not None:
        (folder / "chat_template.jinja").write_text(tokenizer.chat_template, "utf-8")


@contextmanager
def in_one_step(folder: Path) -> Iterator[Path]:
    """A folder beside the final one, which it becomes at the end, on the disk for good; or nothing at all."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise wrong(
            "folder",
            "must be a new or an empty folder, so that no model is overwritten by half of another",
            f"{folder} holds something",
            "Name another, or remove it first.",
        )
    staging = folder.parent / f".{folder.name}.{secrets.token_hex(4)}"
    staging.mkdir(parents=True)
    try:
        yield staging
        for path in staging.rglob("*"):
            if path.is_file():  # safetensors leaves its own to their owner alone, whatever the umask
                path.chmod(staging.stat().st_mode & 0o666)
        for path in (*staging.rglob("*"), staging):
            to_disk(path)
        if folder.exists():
            folder.rmdir()
        os.replace(staging, folder)
        to_disk(folder.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def to_disk(path: Path) -> None:
    """Wait until a file or the names in a folder have reached the disk."""
    if path.is_dir() and os.name == "nt":  # Windows has no handle of a folder to wait for
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
