"""Training: language models on a text, translation on pairs, from a small file of settings (``limelight train``).

`loop` is the training loop; its parts have one file each: `settings`, `data` (the batch of each step), `tokenizing`,
`preparation`, `objective`, `loss` (over the vocabulary, in linear memory), `optimizer`, `schedule`, `checkpoint`,
`curve`, `translation` (BLEU), `processes`, `folder`.
"""

from .data import Batch, Corpus, Pairs, Texts
from .loss import vocabulary_loss
from .objective import Objective
from .optimizer import adamw
from .schedule import learning_rate
from .settings import Settings, read_settings

__all__ = [
    "Batch",
    "Corpus",
    "Objective",
    "Pairs",
    "Settings",
    "Texts",
    "adamw",
    "learning_rate",
    "read_settings",
    "vocabulary_loss",
]
