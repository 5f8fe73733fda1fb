"""The name of the layer that is calling."""

from __future__ import annotations

import sys
import weakref

from torch import nn

_Names = weakref.WeakKeyDictionary[nn.Module, str]
# The names within each outermost module, found when one of its layers is first observed.
_within: weakref.WeakKeyDictionary[nn.Module, _Names] = weakref.WeakKeyDictionary()


def of_layer(module: nn.Module | None = None) -> str | None:
    """The name of a layer in the outermost module whose ``forward`` is running.

    Attention functions are given no name. Layers of encoder and decoder, or self- and cross-attention, have the same
    indices, and only the call stack shows the model around them.

    Args:
        module: the layer; ``None`` for the innermost module whose ``forward`` is running.
    """
    running = _running()
    if not running:
        return None
    module, outermost = running[0] if module is None else module, running[-1]
    names = _within.get(outermost)
    if names is None or module not in names:
        names = _within[outermost] = weakref.WeakKeyDictionary(
            {inner: name for name, inner in outermost.named_modules()}
        )
    return names.get(module)


def _running() -> list[nn.Module]:
    """The modules whose ``forward`` is on the call stack, innermost first."""
    found = []
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_name == "forward" and isinstance(frame.f_locals.get("self"), nn.Module):
            found.append(frame.f_locals["self"])
    return found
