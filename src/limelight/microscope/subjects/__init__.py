"""What the microscope can look at: a model with its tokenizer, behind one small interface (`Subject`)."""

from __future__ import annotations

from typing import Any

from ...checkpoints.load import load
from ...pretrained import Pretrained
from ...tensors.shapes import describe, wrong
from .base import Run, Subject
from .pretrained import PretrainedSubject

__all__ = ["PretrainedSubject", "Run", "Subject", "subject_of"]


def subject_of(model: Any) -> Subject:
    """The subject that a model is, or that a name stands for.

    Args:
        model: a name or path for `limelight.load`, a `Pretrained`, or a `Subject`.

    Raises:
        ArgumentError: something else, or a model without a tokenizer.
    """
    if isinstance(model, Subject):
        return model
    if isinstance(model, str):
        model = load(model)
    if isinstance(model, Pretrained):
        return PretrainedSubject(model)
    raise wrong(
        "model",
        "must be a name, a folder, a .gguf file or what limelight.load returns",
        f"it is {describe(model)}",
        'As in look("minilm", "The bank is near the river.").',
    )
