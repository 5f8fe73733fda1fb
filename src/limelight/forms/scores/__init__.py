"""Score rules: what changes a score before the softmax, in the order in which they are given.

=============================  ===========================================================================
``ALiBi(slopes)``              ``s - slope * |key position - query position|`` (Press et al. 2022)
``RelativeBias(table, ...)``   ``s + table[head, bucket(key position - query position)]`` (Raffel et al. 2020)
``Bias(tensor)``               ``s + tensor[b, h, i, j]``
``SoftCap(limit)``             ``limit * tanh(s / limit)`` (Gemma 2)
=============================  ===========================================================================

and ``compare``: how a query and a key make a score in the first place. ``None`` is the dot product,
``scale * q . k``; others are comparisons (`Comparison`):

=============================  ===========================================================================
``Additive(vector)``           ``v . tanh(q + k)`` (Bahdanau et al. 2015)
``CosineSimilarity(t)``        ``q . k / (|q| |k| t)`` (Henry et al. 2020, Liu et al. 2022)
=============================  ===========================================================================
"""

from .comparisons import Additive, Comparison, CosineSimilarity
from .rules import ALiBi, Bias, RelativeBias, ScoreRule, SoftCap, T5Buckets

__all__ = [
    "ALiBi",
    "Additive",
    "Bias",
    "Comparison",
    "CosineSimilarity",
    "RelativeBias",
    "ScoreRule",
    "SoftCap",
    "T5Buckets",
]
