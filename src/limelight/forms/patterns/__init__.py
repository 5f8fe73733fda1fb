"""Patterns: which keys a query may see, by their positions.

A pattern is a frozen, hashable value. It holds no matrix of zeros and minus infinities, prints itself, draws itself
and says what it costs::

    >>> from limelight.forms.patterns import Causal, Keys, Window
    >>> streaming = Causal() & (Window(back=2, ahead=0) | Keys(first=1))
    >>> streaming
    Causal() & (Window(back=2, ahead=0) | Keys(first=1))
    >>> print(streaming.draw(6))
    ■ · · · · ·
    ■ ■ · · · ·
    ■ ■ ■ · · ·
    ■ ■ ■ ■ · ·
    ■ · ■ ■ ■ ·
    ■ · · ■ ■ ■
    >>> streaming.pairs(6)
    18

``&`` allows what both allow, ``|`` what either allows, ``~`` what the pattern does not. Positions come from the
layout (`limelight.forms.layouts`); by default the last query has the position of the last key.

Here ``p`` is the position of the query and ``j`` that of the key:

==========================  ====================================================================
``Full()``                  always
``Causal()``                ``j <= p``
``Window(back, ahead)``     ``p - back <= j <= p + ahead``
``DilatedWindow(...)``      every ``step``-th key of a window: ``(j - p) % step == 0``
``Prefix(length)``          ``p < length and j < length``
``Chunks(size)``            ``p // size == j // size``
``Keys(first=n)``           ``j < n``
``Blocks(table, size)``     ``table[..., p // size, j // size]``
``Explicit(mask)``          ``mask[..., i, j]``, by the index of the tokens
``Predicate(function)``     ``function(at)``, a predicate of everything above
==========================  ====================================================================
"""

from .base import And, Not, Or, Pattern
from .intervals import Causal, Chunks, DilatedWindow, Full, Keys, Prefix, Window
from .masks import Blocks, Explicit, Predicate

__all__ = [
    "And",
    "Blocks",
    "Causal",
    "Chunks",
    "DilatedWindow",
    "Explicit",
    "Full",
    "Keys",
    "Not",
    "Or",
    "Pattern",
    "Predicate",
    "Prefix",
    "Window",
]
