"""Limelight: exact attention in every form, fast on any machine, and visible.

>>> import torch, limelight
>>> q = k = v = torch.randn(1, 8, 128, 64)
>>> output = limelight.attention(q, k, v, pattern=limelight.Causal())
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import _interrupted as _interrupted  # first: it is for the seconds in which the others are imported
from .backends.contract import BackendError
from .forms.coordinates import Where
from .forms.layouts import Aligned, KeyMask, Layout, Packed, Padded, Subset
from .forms.observations import Observations, Observe, Seen, watching
from .forms.patterns import (
    Blocks,
    Causal,
    Chunks,
    DilatedWindow,
    Explicit,
    Full,
    Keys,
    Pattern,
    Predicate,
    Prefix,
    Window,
)
from .forms.scores import (
    Additive,
    ALiBi,
    Bias,
    Comparison,
    CosineSimilarity,
    RelativeBias,
    ScoreRule,
    SoftCap,
    T5Buckets,
)
from .operator.attention import Explanation, attention, explain, merge
from .tensors.shapes import ArgumentError

if TYPE_CHECKING:
    from .checkpoints.load import load

__version__ = "0.1.0"

__all__ = [
    "ALiBi",
    "Additive",
    "Aligned",
    "ArgumentError",
    "BackendError",
    "Bias",
    "Blocks",
    "Causal",
    "Chunks",
    "Comparison",
    "CosineSimilarity",
    "DilatedWindow",
    "Explanation",
    "Explicit",
    "Full",
    "KeyMask",
    "Keys",
    "Layout",
    "Observations",
    "Observe",
    "Packed",
    "Padded",
    "Pattern",
    "Predicate",
    "Prefix",
    "RelativeBias",
    "ScoreRule",
    "Seen",
    "SoftCap",
    "Subset",
    "T5Buckets",
    "Where",
    "Window",
    "attention",
    "explain",
    "load",
    "merge",
    "watching",
]


def __getattr__(name: str) -> Any:
    """`load`, with the libraries of file formats behind it, is imported when it is first used."""
    if name == "load":
        from .checkpoints.load import load

        globals()["load"] = load
        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
