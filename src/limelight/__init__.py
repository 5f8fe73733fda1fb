"""Limelight: exact attention in every form, fast on any machine, and visible.

>>> import torch, limelight
>>> q = k = v = torch.randn(1, 8, 128, 64)
>>> output = limelight.attention(q, k, v, pattern=limelight.Causal())
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import _interrupted as _interrupted  # first: it is for the seconds in which the others are imported
from . import outputs as outputs  # what `torch.export.load` makes of the results of an exported model
from ._version import __version__ as __version__
from .backends.contract import BackendError
from .forms.coordinates import Where
from .forms.layouts import Aligned, KeyMask, Layout, Packed, Padded, Paged, Subset
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
from .forms.quantized import Quantized
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
from .operator.attention import attention
from .operator.merging import merge
from .tensors import first_calls as _first_calls
from .tensors.shapes import ArgumentError

if TYPE_CHECKING:
    from .checkpoints.load import load
    from .microscope.heads import heads
    from .microscope.look import look
    from .operator.explanation import Explanation, explain
    from .pretrained import Pretrained


_first_calls.call_each()

LATE = {
    "Explanation": ".operator.explanation",
    "Pretrained": ".pretrained",
    "explain": ".operator.explanation",
    "heads": ".microscope.heads",
    "load": ".checkpoints.load",
    "look": ".microscope.look",
}
PACKAGES = ("compat", "generation", "models", "nn")

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
    "Paged",
    "Pattern",
    "Predicate",
    "Prefix",
    "Pretrained",
    "Quantized",
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
    "heads",
    "load",
    "look",
    "merge",
    "watching",
]


def __getattr__(name: str) -> Any:
    """The packages, `explain` with the backends of GPUs, and `load` with the libraries of file formats are imported
    when first used."""
    if name in PACKAGES:
        return import_module(f".{name}", __name__)
    if name in LATE:
        globals()[name] = found = getattr(import_module(LATE[name], __name__), name)
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *PACKAGES, *__all__})
