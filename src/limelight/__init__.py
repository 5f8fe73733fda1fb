"""Limelight: exact attention in every form, fast on any machine, and visible.

>>> import torch, limelight
>>> q = k = v = torch.randn(1, 8, 128, 64)
>>> output = limelight.attention(q, k, v, pattern=limelight.Causal())
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import _interrupted as _interrupted  # first: it is for the seconds in which the others are imported
from .backends.contract import BackendError
from .forms.layouts import Aligned, Chosen, KeyMask, Layout, Packed, Padded
from .forms.observations import Observations, Observe, Seen, watching
from .forms.patterns import Blocks, Causal, Chunks, Explicit, Full, Keys, Pattern, Prefix, Rule, Where, Window
from .forms.scores import Additive, ALiBi, Bias, RelativeBias, ScoreRule, SoftCap, T5Buckets
from .operator.attention import attention
from .operator.explanation import Explanation, explain
from .operator.merging import merge
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
    "Chosen",
    "Chunks",
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
    "Prefix",
    "RelativeBias",
    "Rule",
    "ScoreRule",
    "Seen",
    "SoftCap",
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
