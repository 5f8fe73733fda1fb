"""Texts that a model writes: how the next token is chosen, when a text ends, and what comes back.

>>> import limelight
>>> from limelight.generation import Sample
>>> model = limelight.load("smollm2")  # doctest: +SKIP
>>> model.generate("Once upon a time", Sample(temperature=0.8, top_p=0.9), seed=1).text  # doctest: +SKIP
"""

from .beam import Beam
from .conversation import Conversation, Message
from .loop import Stream
from .results import Continuation, Generation
from .sampling import Greedy, Sample, Sampler

__all__ = ["Beam", "Continuation", "Conversation", "Generation", "Greedy", "Message", "Sample", "Sampler", "Stream"]
