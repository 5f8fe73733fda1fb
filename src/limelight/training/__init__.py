"""Training: language models on a text, translation on pairs, from a small file of settings (``limelight train``).

`loop` is the whole of it; what it uses stands beside it, one idea per file: `data` (what is read at which step),
`loss` (over the vocabulary, in linear memory), `objective`, `optimizer`, `schedule`, `checkpoint`, `curve`.
"""

from .data import Batch, Corpus, Pairs, Texts
from .loss import vocabulary_loss
from .objective import Objective
from .optimizer import adamw
from .schedule import rate
from .settings import Settings, read_settings

__all__ = [
    "Batch",
    "Corpus",
    "Objective",
    "Pairs",
    "Settings",
    "Texts",
    "adamw",
    "rate",
    "read_settings",
    "vocabulary_loss",
]
