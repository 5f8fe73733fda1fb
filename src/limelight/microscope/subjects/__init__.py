"""What the microscope can look at: a model with its tokenizer, behind one small interface (`Subject`)."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

from ...checkpoints.load import load
from ...formats.errors import CheckpointError, FamilyError
from ...nn import PatchEmbedding
from ...pretrained import Pretrained
from ...tensors.shapes import describe, wrong
from .base import Run, Source, Subject
from .pretrained import PretrainedSubject

__all__ = ["PretrainedSubject", "Run", "Source", "Subject", "subject_of"]


def subject_of(model: Any, *, tokenizer: Any = None, processor: Any = None) -> Subject:
    """The subject that a model is, or that a name stands for.

    Args:
        model: a name or path for `limelight.load`, or a folder or hub name of another family, which transformers opens
            (no code that lies there is run); a `Pretrained`; a model of transformers, with its ``tokenizer`` or
            ``processor``, or in a pair with it; or a `Subject`.
        tokenizer: of a model of transformers.
        processor: of a model of transformers that reads sound or pictures; it may hold a tokenizer.

    Raises:
        ArgumentError: something else, a model none of whose attention layers can be observed, a tokenizer that does not
            fit.

    Example:
        >>> subject_of("minilm").kind
        'encoder'
    """
    if isinstance(model, tuple) and len(model) == 2 and tokenizer is None:
        model, tokenizer = model
    reader = tokenizer if processor is None else processor
    model = getattr(model, "_orig_mod", model)  # of torch.compile, which nothing sees into
    if _of_transformers(model):
        return _theirs(model, reader)
    if reader is not None:
        got = f"`model` is {describe(model)}"
        raise wrong("tokenizer", "belongs to a model of transformers", got, "Leave it out.")
    if isinstance(model, Subject):
        return model
    if isinstance(model, (str, os.PathLike)):
        try:
            model = load(model)
        except FamilyError as error:
            return _opened(os.fspath(model), error)
        if isinstance(model.network.embedding, PatchEmbedding) and model.source.is_dir():
            with suppress(CheckpointError):  # transformers has processors of pictures
                return _opened(model.name, FamilyError(f"{model.name} reads pictures.", model.source / "config.json"))
    if isinstance(model, Pretrained):
        return PretrainedSubject(model)
    what = f"it is a {type(model).__name__} of {type(model).__module__.partition('.')[0]}"
    raise wrong(
        "model",
        "must be a name, a folder, a .gguf file, what limelight.load returns, or a model of transformers",
        what,
        'As in look("minilm", "The bank is near the river."), or look(model, text, tokenizer=tokenizer).',
    )


def _of_transformers(model: object) -> bool:
    """Whether this is a model of transformers, found without an import of it."""
    return any(
        cls.__name__ == "PreTrainedModel" and cls.__module__.partition(".")[0] == "transformers"
        for cls in type(model).__mro__
    )


def _theirs(model: Any, reader: Any) -> Subject:
    from .pictures import PictureSubject  # both need an optional library
    from .transformers import TransformersSubject

    if getattr(model, "main_input_name", None) == PictureSubject.reads:
        return PictureSubject(model, reader)
    return TransformersSubject(model, reader)


def _opened(name: str, error: FamilyError) -> Subject:
    """A model of a family that is not built here."""
    try:
        from .opening import open_folder  # an optional library
    except ImportError:
        raise FamilyError(f"{error} `pip install limelight[transformers]` opens it.", error.path) from error
    return _theirs(*open_folder(name, error.path.parent))
