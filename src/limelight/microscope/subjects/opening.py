"""Folders whose family is not built here, opened by transformers: data files only, no code of theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

from ...formats.errors import CheckpointError, listed, read_json

HEADS = ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM", "AutoModelForMaskedLM", "AutoModel")


def open_folder(name: str, folder: Path) -> tuple[Any, Any]:
    """A model of transformers in float32 and its tokenizer (or processor).

    Weights are read from safetensors alone, and no code that lies with them is run.

    Args:
        name: what the user called it.
        folder: where its files lie.

    Raises:
        CheckpointError: transformers does not have this model, or its files do not make it.
    """
    safe = {"trust_remote_code": False}
    try:
        config = transformers.AutoConfig.from_pretrained(folder, **safe)
        kind = _kind(config, read_json(folder / "config.json").get("architectures"))
        model, info = kind.from_pretrained(
            folder, config=config, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **safe
        )
        reader: Any = transformers.AutoProcessor
        tokenizer = reader.from_pretrained(_with_tokenizer(name, folder), **safe)
    except CheckpointError:
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or "no reason given"
        raise CheckpointError(
            f"{folder} holds a family that Limelight does not build, and transformers {transformers.__version__} "
            f"cannot open it ({type(error).__name__}: {reason:.300}). A folder needs config.json, safetensors weights "
            "and the tokenizer's files; models with code of their own are not run."
        ) from error
    if info["missing_keys"]:
        raise CheckpointError(
            f"{folder} lacks weights of {type(model).__name__}: {listed(sorted(info['missing_keys']))}. "
            "Name a folder that holds the whole model."
        )
    model.name_or_path = name
    return model.eval(), tokenizer


def _kind(config: Any, architectures: Any) -> Any:
    """The class that the folder names, or the one with the most of a head."""
    for named in architectures if isinstance(architectures, list) else ():
        kind = getattr(transformers, named, None) if isinstance(named, str) else None
        if isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel):
            return kind
    for head in HEADS:
        kind = getattr(transformers, head)
        if type(config) in kind._model_mapping:
            return kind
    return transformers.AutoModel


def _with_tokenizer(name: str, folder: Path) -> str | Path:
    """Where the tokenizer's files are: a folder of the hub's cache holds no others than ``tokenizer.json``."""
    return folder if (folder / "tokenizer.json").is_file() or Path(name).expanduser().exists() else name
