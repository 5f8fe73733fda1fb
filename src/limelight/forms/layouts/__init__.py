"""Layouts: the position and document of each token, and which tokens exist.

A layout belongs to the call, not to the pattern: no ``~`` or ``|`` of a pattern brings a missing key or another
document back. It gives every query and every key a document and a position; patterns, score rules, ``distance``
and dropout are functions of these positions and of nothing else.

=============  ==========================================================================================
``Aligned``    one document per batch row; by default the last query has the position of the last key
``Padded``     one document per batch row, of its own length, padded at its right or left
``Packed``     documents laid end to end in every batch row
``Paged``      documents laid end to end whose keys and values lie in pages of memory
``KeyMask``    one document per batch row, some of whose keys do not exist
``Subset``     a subset of the queries of a larger call, at their original positions
``Portion``    some queries and some keys of a larger call; ``ScatteredPortion`` where their keys have gaps
=============  ==========================================================================================
"""

from .base import Layout
from .masked import KeyMask, Subset
from .packed import Packed
from .paged import Paged
from .portion import Portion, ScatteredPortion
from .rows import Aligned, Padded

__all__ = ["Aligned", "KeyMask", "Layout", "Packed", "Padded", "Paged", "Portion", "ScatteredPortion", "Subset"]
